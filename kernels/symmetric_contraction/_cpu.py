"""Symmetric contraction in C++: lanes are channels, nodes are sorted by element.

The polynomials come as sums of products of two factors (`_factors`), and the kernel walks those
tables: the program is fixed, compiled once per dtype, whatever the irreps and the correlation.

    for every chunk of nodes of one element and every vector of channels, in parallel
      c_entry = sum_k coefficient_k weight_k                      once per chunk
      for every tile of nodes
        factors F from A
        for every row (M, left)
          sum = sum_e c_e F_e                                     out_M += F_left sum
          bar F_left += g_M sum,  d = g_M F_left                  reverse mode
          bar F_e += c_e d,  bar c_e += d F_e
        bar A from bar F

The second gradient, in the direction h of x, is the derivative of all this at A + t h: the same
program on dual numbers. It is linear in the direction v of the weights, so that part of it is the
value and the first gradient with v in the place of the weights.

Results are the same for any number of threads: chunks and the order of their sums are fixed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, chain

import torch
from torch import Tensor

from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.codegen.polynomial_cpp import Arguments
from eqtp.kernels.codegen.polynomial_ops import Polynomials
from eqtp.kernels.symmetric_contraction._cpu_source import source
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["polynomials", "run"]


def polynomials(text: str) -> Polynomials:
    """The contraction of a problem's text."""
    problem = SymmetricContractionProblem.of_text(text)
    return Polynomials(problem, run, symmetric_contraction_torch, linear=True)


class _Polynomials(ctypes.Structure):
    """`Polynomials` of the C++ source."""

    _SIZES = ("dim_in", "dim_out", "num_weights", "num_factors", "num_rows", "num_entries")
    _TABLES = ("products", "rows", "right", "couplings", "path", "coefficient")
    _fields_ = (
        *((name, ctypes.c_int32) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _TABLES),
    )


def run(problem: SymmetricContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Calls the kernel: operands x, weight, grad, h; the results that are given are computed."""
    arguments = Arguments.of(element, problem.num_channels, **tensors)
    dtype = next(t.dtype for t in tensors.values() if t is not None)
    _kernel(dtype)(_polynomials(problem, dtype), arguments)


@lru_cache
def _kernel(dtype: torch.dtype) -> Callable[[_Polynomials, Arguments], None]:
    """The compiled function."""
    function = load_library(source(dtype)).run
    function.argtypes = [ctypes.POINTER(_Polynomials), ctypes.POINTER(Arguments)]
    function.restype = None
    return function


@lru_cache(maxsize=64)
def _polynomials(problem: SymmetricContractionProblem, dtype: torch.dtype) -> _Polynomials:
    """The tables of a problem; they live as long as what is returned."""
    factorisation = factorise(problem)
    rows = factorisation.rows
    ends = [*accumulate((len(row.entries) for row in rows), initial=0)]
    entries = [entry for row in rows for entry in row.entries]
    couplings = [*chain(*(entry.couplings for entry in entries))]
    numbers = {
        "products": [*chain(*factorisation.products)],
        "rows": [
            number
            for row, begin, end in zip(rows, ends, ends[1:], strict=False)
            for number in (row.out, row.left, begin, end)
        ],
        "right": [entry.right for entry in entries],
        "couplings": [*accumulate((len(entry.couplings) for entry in entries), initial=0)],
        "path": [path for path, _ in couplings],
    }
    tables = {name: torch.tensor(values, dtype=torch.int32) for name, values in numbers.items()}
    tables["coefficient"] = torch.tensor([value for _, value in couplings], dtype=dtype)
    polynomials = _Polynomials(
        dim_in=problem.dim_in,
        dim_out=problem.dim_out,
        num_weights=problem.num_paths,
        num_factors=1 + problem.dim_in + len(factorisation.products),
        num_rows=len(rows),
        num_entries=len(entries),
        **{name: table.data_ptr() for name, table in tables.items()},
    )
    polynomials.tables = tables  # keeps the memory behind the pointers
    return polynomials
