"""Plain-PyTorch kernels of the channelwise product: forward, gradient, gradient of the gradient.

Everything is in "ir_mul" layout with the channels fastest, and in path space: the result has one
block per path. Rows (edges) come in chunks that fit the cache; edges are sorted by receiver.

Per row the coupling matrix of an input block is built once and shared by its channels,

    M[(p, k), i] = sum_j C_p[i, j, k] y[j]          one matrix product for all paths,
    t[(p, k), u] = sum_i M[(p, k), i] x[i, u]       one small batched product per input block,
    out[(p, k), u] = w[p, u] t[(p, k), u]           summed at the receiver,

which costs 1.6-1.9 times fewer operations than path after path. The form

    T(x, y, w; g) = sum w[p, u] M(y)[(p, k), i] x[i, u] g[(p, k), u]

is linear in each operand, so its gradients need the same three pieces with roles exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.problem import TensorProductProblem
from eqtp.so3 import wigner_3j

from .config import chunk_rows

__all__ = ["Plan", "backward", "double_backward", "forward", "make_plan"]


@dataclass(frozen=True)
class PathSlot:
    """Where one path's numbers are."""

    rows: slice  # of the coupling rows (p, k) of its input block
    out: slice  # of the flat result
    weight: slice | None  # of the flat weight; None for an unweighted path
    dim: int  # 2 l3 + 1


@dataclass(frozen=True)
class Block:
    """One block of x1 and the paths that read it."""

    x: slice  # of the flat x1
    dim: int  # 2 l1 + 1
    mul: int
    num_rows: int  # sum over its paths of 2 l3 + 1
    matrix: slice  # of the flat coupling matrices
    paths: tuple[PathSlot, ...]


@dataclass(frozen=True)
class Plan:
    """A problem in path space, laid out for the kernels."""

    blocks: tuple[Block, ...]
    coupling: Tensor  # [dim2, total size of the coupling matrices]
    dim1: int
    dim_out: int
    covers_x1: bool  # whether every column of x1 is read by some path


@lru_cache(maxsize=256)
def make_plan(problem: TensorProductProblem, dtype: torch.dtype, device: torch.device) -> Plan:
    """Lays out a problem whose every path has its own block of the result."""
    in1, in2, out = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
    blocks, columns, start = [], [], 0
    for i_in1, (mul, ir1) in enumerate(in1):
        slots: list[PathSlot] = []
        row = 0
        for path in problem.paths:
            if path.i_in1 != i_in1 or mul == 0:
                continue
            dim = out[path.i_out].ir.dim
            slots.append(
                PathSlot(
                    rows=slice(row, row + dim),
                    out=out.slices()[path.i_out],
                    weight=path.weight_slice if path.has_weight else None,
                    dim=dim,
                )
            )
            row += dim
            w3j = path.coefficient * wigner_3j(*problem.degrees(path))
            column = torch.zeros(in2.dim, dim, ir1.dim, dtype=torch.float64)
            column[in2.slices()[path.i_in2]] = w3j.permute(1, 2, 0)
            columns.append(column.flatten(1))
        if slots:
            size = row * ir1.dim
            blocks.append(
                Block(in1.slices()[i_in1], ir1.dim, mul, row, slice(start, start + size), (*slots,))
            )
            start += size
    coupling = torch.cat(columns, dim=1) if columns else torch.zeros(in2.dim, 0)
    return Plan(
        blocks=tuple(blocks),
        coupling=coupling.to(device=device, dtype=dtype),
        dim1=in1.dim,
        dim_out=out.dim,
        covers_x1=sum(block.dim * block.mul for block in blocks) == in1.dim,
    )


@dataclass(frozen=True)
class _Rows:
    """One chunk of rows: the operands' rows, gathered."""

    rows: slice
    src: Tensor | None
    dst: Tensor | None

    def gather(self, x: Tensor) -> Tensor:
        """Rows of a sender's tensor."""
        return x[self.rows] if self.src is None else x.index_select(0, self.src)

    def gather_receiver(self, g: Tensor) -> Tensor:
        """Rows of a receiver's tensor."""
        return g[self.rows] if self.dst is None else g.index_select(0, self.dst)

    def add_to_sender(self, x: Tensor, rows: Tensor) -> None:
        """Adjoint of `gather`."""
        if self.src is None:
            x[self.rows] = rows
        else:
            x.index_add_(0, self.src, rows)

    def add_to_receiver(self, out: Tensor, rows: Tensor) -> None:
        """Adjoint of `gather_receiver`."""
        if self.dst is None:
            out[self.rows] = rows
        else:
            out.index_add_(0, self.dst, rows)


def _chunks(plan: Plan, y: Tensor, graph: Graph | None) -> Iterator[_Rows]:
    step = chunk_rows(plan.dim_out * y.element_size())
    for start in range(0, len(y), step):
        rows = slice(start, min(start + step, len(y)))
        if graph is None:
            yield _Rows(rows, None, None)
        else:
            yield _Rows(rows, graph.sorted_src[rows], graph.sorted_dst[rows])


def _matrix(block: Block, matrices: Tensor) -> Tensor:
    """The coupling matrices of a block, [rows, (p, k), i]."""
    return matrices[:, block.matrix].unflatten(1, (block.num_rows, block.dim))


def _channels(x: Tensor, block: Block) -> Tensor:
    """A block of x1, [rows, i, u]."""
    return x[:, block.x].unflatten(1, (block.dim, block.mul))


def _message(rows: Tensor, slot: PathSlot, block: Block) -> Tensor:
    """A path's part of the flat result, [rows, k, u]."""
    return rows[:, slot.out].unflatten(1, (slot.dim, block.mul))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b; an inner dimension of one is an outer product, faster without BLAS."""
    return a * b if a.shape[2] == 1 else torch.bmm(a, b)


def forward(x: Tensor, y: Tensor, w: Tensor | None, plan: Plan, graph: Graph | None) -> Tensor:
    """Messages of all paths, summed at receivers: [num_dst or rows, dim_out]."""
    out = _result(x, y, plan, graph)
    for chunk in _chunks(plan, y, graph):
        matrices = y[chunk.rows] @ plan.coupling
        x_rows = chunk.gather(x)
        messages = x.new_empty(len(x_rows), plan.dim_out)
        for block in plan.blocks:
            t = _product(_matrix(block, matrices), _channels(x_rows, block))
            _write_messages(messages, t, w, block, chunk)
        chunk.add_to_receiver(out, messages)
    return out


def backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    plan: Plan,
    graph: Graph | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of T(x, y, w; g) in x, y and w, those that are needed."""
    need_x, need_y, need_w = needs
    grad_x = torch.zeros_like(x) if need_x else None
    grad_y = torch.empty_like(y) if need_y else None
    grad_w = _weight_gradient(w) if need_w and w is not None else None
    for chunk in _chunks(plan, y, graph):
        matrices = y[chunk.rows] @ plan.coupling
        x_rows, g_rows = chunk.gather(x), chunk.gather_receiver(g)
        grad_x_rows = _input_rows(x_rows, plan)
        grad_matrices = torch.empty_like(matrices)
        for block in plan.blocks:
            matrix, channels = _matrix(block, matrices), _channels(x_rows, block)
            if grad_w is not None:
                _add_weight_gradient(grad_w, _product(matrix, channels), g_rows, block, chunk)
            if need_x or need_y:
                q = _weighted(g_rows, w, block, chunk, unweighted=1.0)
                if need_x:
                    _channels(grad_x_rows, block).copy_(torch.bmm(matrix.mT, q))
                if need_y:
                    _matrix(block, grad_matrices).copy_(torch.bmm(q, channels.mT))
        if grad_x is not None:
            chunk.add_to_sender(grad_x, grad_x_rows)
        if grad_y is not None:
            torch.mm(grad_matrices, plan.coupling.T, out=grad_y[chunk.rows])
    return grad_x, grad_y, grad_w


def double_backward(
    v_x: Tensor | None,
    v_y: Tensor | None,
    v_w: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    plan: Plan,
    graph: Graph | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of T(v_x, y, w; g) + T(x, v_y, w; g) + T(x, y, v_w; g) in g, x, y and w.

    One pass over the rows; an absent direction (None) costs nothing.
    """
    need_g, need_x, need_y, need_w = needs
    grad_g = _result(x, y, plan, graph) if need_g else None
    grad_x = torch.zeros_like(x) if need_x else None
    grad_y = torch.empty_like(y) if need_y else None
    grad_w = _weight_gradient(w) if need_w and w is not None else None
    for chunk in _chunks(plan, y, graph):
        matrices = y[chunk.rows] @ plan.coupling
        v_matrices = None if v_y is None else v_y[chunk.rows] @ plan.coupling
        x_rows, g_rows = chunk.gather(x), chunk.gather_receiver(g)
        v_rows = None if v_x is None else chunk.gather(v_x)
        messages = torch.empty_like(g_rows)
        grad_x_rows = _input_rows(x_rows, plan)
        grad_matrices = torch.empty_like(matrices)
        for block in plan.blocks:
            matrix, channels = _matrix(block, matrices), _channels(x_rows, block)
            v_matrix = None if v_matrices is None else _matrix(block, v_matrices)
            v_channels = None if v_rows is None else _channels(v_rows, block)
            t_v = _sum_of_products((matrix, v_channels), (v_matrix, channels))
            if grad_w is not None:
                _add_weight_gradient(grad_w, t_v, g_rows, block, chunk)
            if need_g:
                _write_messages(messages, t_v, w, block, chunk)
                if v_w is not None:
                    _add_messages(messages, _product(matrix, channels), v_w, block, chunk)
            q = _weighted(g_rows, w, block, chunk, unweighted=1.0)
            q_v = None if v_w is None else _weighted(g_rows, v_w, block, chunk, unweighted=0.0)
            if need_x:
                total = _sum_of_products((matrix, q_v), (v_matrix, q), transpose_first=True)
                _copy_or_zero(_channels(grad_x_rows, block), total)
            if need_y:
                total = _sum_of_products((q, v_channels), (q_v, channels), transpose_second=True)
                _copy_or_zero(_matrix(block, grad_matrices), total)
        if grad_g is not None:
            chunk.add_to_receiver(grad_g, messages)
        if grad_x is not None:
            chunk.add_to_sender(grad_x, grad_x_rows)
        if grad_y is not None:
            torch.mm(grad_matrices, plan.coupling.T, out=grad_y[chunk.rows])
    return grad_g, grad_x, grad_y, grad_w


def _result(x: Tensor, y: Tensor, plan: Plan, graph: Graph | None) -> Tensor:
    """The empty result: sums at receivers start from zero, rows are written once."""
    num_rows = len(y) if graph is None else graph.num_dst
    return x.new_zeros(num_rows, plan.dim_out)


def _weight_gradient(w: Tensor) -> Tensor:
    """Room for the gradient of the weights: a row is written once, shared weights are summed."""
    return torch.zeros_like(w) if w.shape[0] == 1 else torch.empty_like(w)


def _input_rows(x_rows: Tensor, plan: Plan) -> Tensor:
    """Room for the gradient of gathered x1; columns that no path reads are zero."""
    return torch.empty_like(x_rows) if plan.covers_x1 else torch.zeros_like(x_rows)


def _weight(w: Tensor | None, slot: PathSlot, chunk: _Rows) -> Tensor | None:
    """A path's weight, [rows or 1, 1, u]; shared weights have one row."""
    if w is None or slot.weight is None:
        return None
    return (w if w.shape[0] == 1 else w[chunk.rows])[:, None, slot.weight]


def _write_messages(
    messages: Tensor, t: Tensor | None, w: Tensor | None, block: Block, chunk: _Rows
) -> None:
    """messages = w t for the paths of a block; t = None stands for zero."""
    for slot in block.paths:
        target = _message(messages, slot, block)
        weight = _weight(w, slot, chunk)
        if t is None or weight is None:
            _copy_or_zero(target, None if t is None else t[:, slot.rows])
        else:
            torch.mul(t[:, slot.rows], weight, out=target)


def _add_messages(messages: Tensor, t: Tensor, w: Tensor, block: Block, chunk: _Rows) -> None:
    """messages += w t for the weighted paths of a block."""
    for slot in block.paths:
        weight = _weight(w, slot, chunk)
        if weight is not None:
            _message(messages, slot, block).addcmul_(t[:, slot.rows], weight)


def _weighted(
    g_rows: Tensor, w: Tensor | None, block: Block, chunk: _Rows, *, unweighted: float
) -> Tensor:
    """q[(p, k), u] = w[p, u] g[(p, k), u], rows in the block's order of paths."""
    q = g_rows.new_empty(len(g_rows), block.num_rows, block.mul)
    for slot in block.paths:
        weight = _weight(w, slot, chunk)
        factor = unweighted if weight is None else weight
        torch.mul(_message(g_rows, slot, block), factor, out=q[:, slot.rows])
    return q


def _add_weight_gradient(
    grad_w: Tensor, t: Tensor | None, g_rows: Tensor, block: Block, chunk: _Rows
) -> None:
    """grad_w[p, u] = sum_k t[(p, k), u] g[(p, k), u]; also over rows for shared weights.

    t = None stands for zero.
    """
    for slot in block.paths:
        if slot.weight is None:
            continue
        if t is None:
            if grad_w.shape[0] > 1:
                grad_w[chunk.rows, slot.weight] = 0
            continue
        product = t[:, slot.rows] * _message(g_rows, slot, block)
        if grad_w.shape[0] == 1:
            grad_w[0, slot.weight] += product.sum((0, 1))
        else:
            torch.sum(product, 1, out=grad_w[chunk.rows, slot.weight])


def _sum_of_products(
    *pairs: tuple[Tensor | None, Tensor | None],
    transpose_first: bool = False,
    transpose_second: bool = False,
) -> Tensor | None:
    """Sum of batched a @ b over the pairs whose factors are both there; None if none is."""
    total: Tensor | None = None
    for a, b in pairs:
        if a is None or b is None:
            continue
        left = a.mT if transpose_first else a
        right = b.mT if transpose_second else b
        total = _product(left, right) if total is None else torch.baddbmm(total, left, right)
    return total


def _copy_or_zero(target: Tensor, value: Tensor | None) -> None:
    target.zero_() if value is None else target.copy_(value)
