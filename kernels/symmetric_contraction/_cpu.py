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
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.symmetric_contraction._cpu_source import source
from eqtp.kernels.symmetric_contraction._factors import factorise
from eqtp.kernels.symmetric_contraction._torch import symmetric_contraction_torch
from eqtp.layout import Layout, to_layout
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["DTYPES", "symmetric_contraction_cpu"]

DTYPES = (torch.float32, torch.float64)


def symmetric_contraction_cpu(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_paths num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: SymmetricContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The op on CPU tensors of `DTYPES`; same arguments as the reference."""
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul")
    out: Tensor = _Value.apply(  # type: ignore[no-untyped-call]
        rows.contiguous(), weight.contiguous(), element.contiguous(), problem
    )
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


class _Value(torch.autograd.Function):
    """out = P(x, weight)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, element: Tensor, problem: SymmetricContractionProblem
    ) -> Tensor:
        ctx.save_for_backward(x, weight, element)
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        out = x.new_empty(x.shape[0], problem.irreps_out.dim)
        _run(problem, element, x=x, weight=weight, out=out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight, element = ctx.saved_tensors
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            x, weight, grad.contiguous(), element, ctx.problem, wanted_gradients(ctx, (x, weight))
        )
        return (*grads, None, None)


class _Gradient(torch.autograd.Function):
    """Gradients of <grad, P> in x and in the weights, as a differentiable function itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        grad: Tensor,
        element: Tensor,
        problem: SymmetricContractionProblem,
        need: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(x, weight, grad, element)
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        grad_x, grad_weight = (
            torch.empty_like(t) if needed else None
            for t, needed in zip((x, weight), need, strict=True)
        )
        _run(
            problem, element, x=x, weight=weight, grad=grad, grad_x=grad_x, grad_weight=grad_weight
        )
        return grad_x, grad_weight

    @staticmethod
    def backward(ctx: Any, h: Tensor | None, v: Tensor | None) -> tuple[Tensor | None, ...]:
        if h is None and v is None:
            return (None,) * 6
        x, weight, grad, element = ctx.saved_tensors
        need = wanted_gradients(ctx, (x, weight, grad))
        second = _composed_second_gradient if torch.is_grad_enabled() else _second_gradient
        return (*second(x, weight, grad, (h, v), need, element, ctx.problem), None, None, None)


def _second_gradient(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    element: Tensor,
    problem: SymmetricContractionProblem,
) -> Sequence[Tensor | None]:
    """Gradients of <directions, gradients of <grad, P>> in x, the weights and grad."""
    h, v = directions
    total: list[Tensor | None] = [None, None, None]
    if h is not None:
        total = [
            torch.empty_like(t) if needed else None
            for t, needed in zip((x, weight, grad), need, strict=True)
        ]
        operands = {"x": x, "weight": weight, "grad": grad, "h": h.contiguous()}
        results = zip(("grad_x", "grad_weight", "out"), total, strict=True)
        _run(problem, element, **operands, **dict(results))
    if v is not None:
        grad_x, out = (
            torch.empty_like(t) if needed else None for t, needed in ((x, need[0]), (grad, need[2]))
        )
        _run(problem, element, x=x, weight=v.contiguous(), grad=grad, grad_x=grad_x, out=out)
        total[0], total[2] = _sum(total[0], grad_x), _sum(total[2], out)
    return total


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _composed_second_gradient(
    x: Tensor,
    weight: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    element: Tensor,
    problem: SymmetricContractionProblem,
) -> Sequence[Tensor | None]:
    """The same, differentiable again, through the plain-torch kernels."""
    with torch.enable_grad():
        # Views, because grad may itself be a function of x and the partial derivative is wanted.
        x, weight, grad = x.view_as(x), weight.view_as(weight), grad.view_as(grad)
        out = symmetric_contraction_torch(x, weight, element, problem, layout="ir_mul")
        given = [(t, d) for t, d in zip((x, weight), directions, strict=True) if d is not None]
        gradients = torch.autograd.grad(out, [t for t, _ in given], grad, create_graph=True)
        found = torch.autograd.grad(
            gradients,
            [t for t, needed in zip((x, weight, grad), need, strict=True) if needed],
            [direction for _, direction in given],
            create_graph=True,
            allow_unused=True,
        )
    remaining = iter(found)
    return [next(remaining) if needed else None for needed in need]


class _Arguments(ctypes.Structure):
    """`Arguments` of the C++ source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_nodes", "num_elements", "channels", "threads")),
        *(
            (name, ctypes.c_void_p)
            for name in ("element", "x", "weight", "grad", "h", "out", "grad_x", "grad_weight")
        ),
    )


class _Polynomials(ctypes.Structure):
    """`Polynomials` of the C++ source."""

    _SIZES = ("dim_in", "dim_out", "num_paths", "num_factors", "num_rows", "num_entries")
    _TABLES = ("products", "rows", "right", "couplings", "path", "coefficient")
    _fields_ = (
        *((name, ctypes.c_int32) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _TABLES),
    )


def _run(problem: SymmetricContractionProblem, element: Tensor, **tensors: Tensor | None) -> None:
    """Calls the kernel: operands x, weight, grad, h; the results that are given are computed."""
    present = {name: t for name, t in tensors.items() if t is not None}
    weight = present["weight"]
    arguments = _Arguments(
        num_nodes=element.shape[0],
        num_elements=weight.shape[0],
        channels=problem.num_channels,
        threads=torch.get_num_threads(),
        element=element.data_ptr(),
        **{name: t.data_ptr() for name, t in present.items()},
    )
    _kernel(weight.dtype)(_polynomials(problem, weight.dtype), arguments)


@lru_cache
def _kernel(dtype: torch.dtype) -> Callable[[_Polynomials, _Arguments], None]:
    """The compiled function."""
    function = load_library(source(dtype)).run
    function.argtypes = [ctypes.POINTER(_Polynomials), ctypes.POINTER(_Arguments)]
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
        num_paths=problem.num_paths,
        num_factors=1 + problem.dim_in + len(factorisation.products),
        num_rows=len(rows),
        num_entries=len(entries),
        **{name: table.data_ptr() for name, table in tables.items()},
    )
    polynomials.tables = tables  # keeps the memory behind the pointers
    return polynomials
