"""Many-body Gaunt product in C++: lanes are channels, nodes are sorted by element.

The values on the grid never leave the registers and the first cache: a tile of nodes goes through
the grid orbit by orbit (`_orbits`).

    flat        for every orbit
                  F = synthesis of f
                  P_L(F^k) += projection of F^k                        k = 2 ... correlation
                  bar F = sum_k k F^(k-1) (synthesis of w_k n_k grad)  reverse mode
                  bar f += projection of bar F
    iterated    for every product, one after the other, and back
                  for every orbit: the same with F_k times the synthesis of v_k B_k-1

The second gradient, in the direction h of x, is the derivative of all this at A + t h: the same
program on dual numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.compiler import load_generated
from eqtp.kernels.codegen.polynomial_cpp import Arguments
from eqtp.kernels.codegen.polynomial_ops import Polynomials
from eqtp.kernels.gaunt_contraction._cpu_source import source
from eqtp.kernels.gaunt_contraction._torch import gaunt_contraction_torch

__all__ = ["polynomials", "run"]


def polynomials(text: str) -> Polynomials:
    """The product of a problem's text."""
    problem = GauntContractionProblem.of_text(text)
    return Polynomials(problem, run, gaunt_contraction_torch, linear=False)


def run(problem: GauntContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Calls the kernel: operands x, weight, grad, h; the results that are given are computed."""
    dtype = next(t.dtype for t in tensors.values() if t is not None)
    _kernel(problem, dtype)(Arguments.of(element, problem.num_channels, **tensors))


@lru_cache(maxsize=64)
def _kernel(problem: GauntContractionProblem, dtype: torch.dtype) -> Callable[[Arguments], None]:
    """The compiled function, the same for any number of channels."""
    form = problem.degrees_in, problem.degrees_out, problem.correlation, problem.iterated
    description = f"gaunt_contraction {form} {problem.norm} {dtype}"
    function = load_generated(description, lambda: source(problem, dtype)).run
    function.argtypes = [ctypes.POINTER(Arguments)]
    function.restype = None
    return function
