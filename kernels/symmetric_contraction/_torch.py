"""Symmetric contraction in plain PyTorch: small batched products in cache-sized chunks.

With the notation of `_tables`: the gradient of the polynomials is a matrix times the monomials of
degree n - 1, and everything else comes from it,

    G[M, i] = dP_M / dA_i = sum_f table[M, i, f] F_f(A),   out_M = 1/n sum_i A_i G[M, i]  (Euler).

out and the gradient in A thus cost one product, which is done in the forward pass. The second
derivative in a direction H costs another, with dF_f = d/dt F_f(A + t H) in the place of F_f.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.kernels.symmetric_contraction._tables import Tables, contraction_tables
from eqtp.kernels.symmetric_contraction.config import ChunkConfig
from eqtp.layout import Layout, to_layout
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["symmetric_contraction_torch"]

Spans = Sequence[tuple[int, int]]


def symmetric_contraction_torch(
    x: Float[Tensor, "num_nodes dim_in"],
    weight: Float[Tensor, "num_elements num_paths num_channels"],
    element: Int64[Tensor, " num_nodes"],
    problem: SymmetricContractionProblem,
    *,
    layout: Layout = "mul_ir",
) -> Float[Tensor, "num_nodes dim_out"]:
    """The op on any device, chunked; same arguments as the reference."""
    channels = problem.num_channels
    tables = contraction_tables(problem, x.dtype, x.device)
    nodes = _Nodes.sort(element, ChunkConfig().node_multiple)

    present = weight.index_select(0, nodes.elements).transpose(1, 2)
    table = (present @ tables.paths).view(len(present), channels, *tables.block_shape)
    rows = to_layout(x, problem.irreps_in, layout, "ir_mul").view(-1, problem.dim_in, channels)
    a = rows.index_select(0, nodes.gather).permute(2, 1, 0)
    a = torch.nn.functional.pad(a, (0, 0, 1, 0), value=1.0)

    keep_gradient = torch.is_grad_enabled() and a.requires_grad
    out: Tensor = _Contraction.apply(  # type: ignore[no-untyped-call]
        a, table, keep_gradient, tables, nodes.spans
    )
    result = out.index_select(2, nodes.scatter).permute(2, 1, 0).reshape(-1, problem.irreps_out.dim)
    return to_layout(result, problem.irreps_out, "ir_mul", layout)


@dataclass(frozen=True)
class _Nodes:
    """Nodes sorted by element, those of one element padded by repeating one of them.

    What a padding column computes is dropped: it receives the gradient zero and so adds nothing.

    Attributes:
        elements: The elements present, ascending.
        gather: Node of every column.
        scatter: Column of every node.
        spans: First and last + 1 column of every element present.
    """

    elements: Int64[Tensor, " num_present"]
    gather: Int64[Tensor, " num_columns"]
    scatter: Int64[Tensor, " num_nodes"]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def sort(cls, element: Int64[Tensor, " num_nodes"], multiple: int) -> _Nodes:
        """Sorts the nodes."""
        order = element.argsort(stable=True)
        elements, counts = torch.unique_consecutive(element[order], return_counts=True)
        padded = (counts + multiple - 1) // multiple * multiple
        last = padded.cumsum(0)
        rank = torch.arange(len(order), device=order.device)
        gap = (last - padded) - (counts.cumsum(0) - counts)  # column minus rank of its first node
        scatter = torch.empty_like(order)
        scatter[order] = rank + gap.repeat_interleave(counts)
        gather = order[counts.cumsum(0) - 1].repeat_interleave(padded)
        gather[scatter] = rank
        ends = last.tolist()
        return cls(elements, gather, scatter, tuple(zip([0, *ends], ends, strict=False)))


@dataclass(frozen=True)
class _Chunk:
    """Some channels of some columns of one element.

    Attributes:
        element: Position of the element among those present.
        channels: The channels.
        columns: The columns of nodes.
        first: Whether these are the element's first columns.
    """

    element: int
    channels: slice
    columns: slice
    first: bool

    @property
    def of_nodes(self) -> tuple[slice, EllipsisType, slice]:
        """Index into [C, ..., num_columns]."""
        return self.channels, ..., self.columns

    @property
    def of_table(self) -> tuple[int, slice]:
        """Index into a table [num_present, C, classes, rows, columns]."""
        return self.element, self.channels


def _chunks(a: Tensor, tables: Tables, spans: Spans) -> Iterator[_Chunk]:
    config = ChunkConfig()
    for element, (start, stop) in enumerate(spans):
        step = config.channels(a.shape[0], stop - start, tables.num_columns, a.element_size())
        for channel in range(0, a.shape[0], step):
            for column in range(start, stop, config.max_nodes):
                yield _Chunk(
                    element,
                    slice(channel, min(channel + step, a.shape[0])),
                    slice(column, min(column + config.max_nodes, stop)),
                    column == start,
                )


class _Contraction(torch.autograd.Function):
    """out = P(A) for A [C, d + 1, N] and table [num_present, C, classes, rows, columns]."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, table: Tensor, keep_gradient: bool, tables: Tables, spans: Spans
    ) -> Tensor:
        out = a.new_empty(a.shape[0], tables.dim_out, a.shape[2])
        gradient = None
        if keep_gradient:
            gradient = a.new_empty(a.shape[0], tables.dim_out, a.shape[1], a.shape[2])
        for chunk in _chunks(a, tables, spans):
            variables = a[chunk.of_nodes]
            g = _multiply(table[chunk.of_table], _monomials(variables, tables), tables)
            if gradient is not None:
                gradient[chunk.of_nodes] = g
            out[chunk.of_nodes] = g.mul_(variables.unsqueeze(1)).sum(dim=2)
        ctx.save_for_backward(a, table, gradient)
        ctx.constants = tables, spans
        ctx.set_materialize_grads(False)
        return out.div_(tables.degree)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        a, table, gradient = ctx.saved_tensors
        grads = _ContractionBackward.apply(  # type: ignore[no-untyped-call]
            a, table, grad, gradient, *ctx.constants, wanted_gradients(ctx, (a, table))
        )
        return (*grads, None, None, None)


class _ContractionBackward(torch.autograd.Function):
    """Gradients of <grad, P(A)> in A and in the table, as a differentiable function itself.

    grad_A[i] = sum_M grad_M G[M, i],     grad_table[M, i, f] = 1/n grad_M A_i F_f.
    """

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        table: Tensor,
        grad: Tensor,
        gradient: Tensor | None,
        tables: Tables,
        spans: Spans,
        need: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        grad = grad.contiguous()
        grad_a = grad_table = None
        if need[0] and gradient is not None:
            grad_a = _sum_over_out(grad, gradient)
        if need[1]:
            grad_table = torch.empty_like(table)
            for chunk in _chunks(a, tables, spans):
                variables = a[chunk.of_nodes]
                monomials = _monomials(variables, tables)
                rows = _rows(grad[chunk.of_nodes], variables, tables)
                _add_outer(grad_table[chunk.of_table], rows, monomials, chunk.first)
            grad_table.div_(tables.degree)
        ctx.save_for_backward(a, table, grad, gradient)
        ctx.constants = tables, spans
        ctx.set_materialize_grads(False)
        return grad_a, grad_table

    @staticmethod
    def backward(
        ctx: Any, h: Tensor | None, grad_grad_table: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        a, table, grad, gradient = ctx.saved_tensors
        need = wanted_gradients(ctx, (a, table, grad))
        if h is None and grad_grad_table is None:
            grads: Sequence[Tensor | None] = (None, None, None)
        elif grad_grad_table is not None or torch.is_grad_enabled() or h is None:
            grads = _composed_double_backward(
                a, table, grad, (h, grad_grad_table), need, *ctx.constants
            )
        else:
            grads = _double_backward(a, table, grad, gradient, h, need, *ctx.constants)
        return (*grads, None, None, None, None)


def _double_backward(
    a: Tensor,
    table: Tensor,
    grad: Tensor,
    gradient: Tensor,
    h: Tensor,
    need: Sequence[bool],
    tables: Tables,
    spans: Spans,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of <h, grad_A> in A, the table and grad, with dF, dG the derivatives along h.

    In A_i: sum_M grad_M dG[M, i], dG = table dF; in table[M, i, f]: grad_M h_i F_f; in grad_M:
    sum_i h_i G[M, i].
    """
    grad_a = torch.empty_like(a) if need[0] else None
    grad_table = torch.empty_like(table) if need[1] else None
    grad_grad = torch.empty_like(grad) if need[2] else None
    for chunk in _chunks(a, tables, spans):
        direction = h[chunk.of_nodes]
        if grad_grad is not None:
            along = gradient[chunk.of_nodes] * direction.unsqueeze(1)
            grad_grad[chunk.of_nodes] = along.sum(dim=2)
        if grad_a is None and grad_table is None:
            continue
        variables = a[chunk.of_nodes]
        monomials, derivatives = _monomials_and_derivatives(variables, direction, tables)
        if grad_a is not None:
            second = _multiply(table[chunk.of_table], derivatives, tables)
            grad_a[chunk.of_nodes] = _sum_over_out(grad[chunk.of_nodes], second)
        if grad_table is not None:
            rows = _rows(grad[chunk.of_nodes], direction, tables)
            _add_outer(grad_table[chunk.of_table], rows, monomials, chunk.first)
    return grad_a, grad_table, grad_grad


def _composed_double_backward(
    a: Tensor,
    table: Tensor,
    grad: Tensor,
    directions: tuple[Tensor | None, Tensor | None],
    need: Sequence[bool],
    tables: Tables,
    spans: Spans,
) -> Sequence[Tensor | None]:
    """Gradients of <directions, (grad_A, grad_table)>, differentiable again, through autograd."""
    if not spans:  # no nodes
        return [t * 0 if needed else None for t, needed in zip((a, table, grad), need, strict=True)]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because grad may itself be a function of a and the partial derivative is wanted.
        a, table, grad = a.view_as(a), table.view_as(table), grad.view_as(grad)
        of = [
            t for t, direction in zip((a, table), directions, strict=True) if direction is not None
        ]
        gradients = torch.autograd.grad(
            _composed(a, table, tables, spans), of, grad, create_graph=True
        )
        found = torch.autograd.grad(
            gradients,
            [t for t, needed in zip((a, table, grad), need, strict=True) if needed],
            [v for v in directions if v is not None],
            create_graph=create_graph,
            allow_unused=True,
        )
    remaining = iter(found)
    return [next(remaining) if needed else None for needed in need]


def _composed(a: Tensor, table: Tensor, tables: Tables, spans: Spans) -> Tensor:
    """P(A) from differentiable operations of PyTorch."""
    monomials = _monomials(a, tables)
    parts = [
        _multiply(table[element], monomials[..., start:stop], tables)
        for element, (start, stop) in enumerate(spans)
    ]
    return (torch.cat(parts, dim=-1) * a.unsqueeze(1)).sum(dim=2) / tables.degree


def _monomials(variables: Tensor, tables: Tables) -> Tensor:
    """The monomials F: [C, d + 1, N] -> [C, classes * columns, N]."""
    if not tables.factors:
        return variables.new_ones(variables.shape[0], tables.num_columns, variables.shape[2])
    first, *others = tables.factors
    result = variables.index_select(1, first)
    for other in others:
        result = result * variables.index_select(1, other)
    return result


def _monomials_and_derivatives(
    variables: Tensor, direction: Tensor, tables: Tables
) -> tuple[Tensor, Tensor]:
    """F and dF = d/dt F(variables + t direction), by the product rule."""
    if not tables.factors:
        ones = _monomials(variables, tables)
        return ones, torch.zeros_like(ones)
    both = torch.cat([variables, direction], dim=1).index_select(1, tables.paired_factors)
    pairs = (pair.chunk(2, dim=1) for pair in both.chunk(len(tables.factors), dim=1))
    (result, derivative), *others = pairs
    for factor, slope in others:
        derivative = (derivative * factor).addcmul_(result, slope)
        result = result * factor
    return result, derivative


def _multiply(table: Tensor, monomials: Tensor, tables: Tables) -> Tensor:
    """G = table F: [C, classes, rows, columns], [C, classes * columns, N] -> [C, M, i, N]."""
    channels, _, num_nodes = monomials.shape
    classes, rows, columns = tables.block_shape
    product = torch.bmm(
        table.reshape(channels * classes, rows, columns),
        monomials.reshape(channels * classes, columns, num_nodes),
    )
    natural = product.view(channels, classes * rows, num_nodes).index_select(1, tables.position)
    return natural.view(channels, tables.dim_out, -1, num_nodes)


def _rows(grad: Tensor, components: Tensor, tables: Tables) -> Tensor:
    """Computes grad_M components_i for every row (M, i): [C, classes * rows, N]."""
    return grad.index_select(1, tables.row_out).mul_(components.index_select(1, tables.row_in))


def _add_outer(target: Tensor, rows: Tensor, monomials: Tensor, overwrite: bool) -> None:
    """Adds to target [C, classes, rows, columns]: sum_n rows[..., n] monomials[..., n]."""
    channels, classes, num_rows, num_columns = target.shape
    left = rows.view(channels * classes, num_rows, -1)
    right = monomials.reshape(channels * classes, num_columns, -1).transpose(1, 2)
    flat = target.view(channels * classes, num_rows, num_columns)
    if overwrite:
        torch.bmm(left, right, out=flat)
    else:
        flat.baddbmm_(left, right)


def _sum_over_out(grad: Tensor, gradient: Tensor) -> Tensor:
    """Computes sum_M grad[C, M, N] gradient[C, M, i, N] without a temporary of gradient's size."""
    total = gradient[:, 0] * grad[:, :1]
    for m in range(1, grad.shape[1]):
        total.addcmul_(gradient[:, m], grad[:, m : m + 1])
    return total
