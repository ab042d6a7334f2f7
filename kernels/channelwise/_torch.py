"""Plain-PyTorch kernels of the channelwise product: forward, gradient, gradient of the gradient.

Everything is in "ir_mul" layout, channels fastest, and grouped by the block of x1 that the paths
read; `_blocks.py` has the mathematics of a block. Rows are edges, in chunks that fit the cache:
senders' and receivers' rows are gathered for a chunk, worked on, and summed at their nodes in the
order of the edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise._blocks import Block, ScalarBlock, TensorBlock
from eqtp.kernels.channelwise._program import FIRST_ORDER, SECOND_ORDER
from eqtp.kernels.channelwise.config import chunk_rows
from eqtp.problem import Path, TensorProductProblem
from eqtp.rows import add_rows
from eqtp.so3 import wigner_3j

__all__ = ["run"]


@dataclass(frozen=True)
class Plan:
    """A problem laid out for the kernels.

    Attributes:
        blocks: The blocks of x1 that some path reads.
        dim_out: Columns of the result.
        unit: Greatest common divisor of the multiplicities: weights move in units of this many.
        unit_order: Order that sorts the blocks' units to those of the flat weight; None where each
            block has its units side by side.
        has_unweighted: Whether a path has no weight; it then reads a unit after the last.
    """

    blocks: tuple[Block, ...]
    dim_out: int
    unit: int
    unit_order: Tensor | None
    has_unweighted: bool


@lru_cache(maxsize=256)
def _make_plan(problem: TensorProductProblem, dtype: torch.dtype, device: torch.device) -> Plan:
    """Lays out a problem."""
    in1, out = problem.irreps_in1, problem.irreps_out
    paths = [path for path in problem.paths if in1[path.i_in1].mul > 0]
    unit = math.gcd(*(in1[path.i_in1].mul for path in paths)) or 1
    num_units = problem.weight_numel // unit
    blocks, order = [], []
    for i_in1, (mul, ir) in enumerate(in1):
        mine = [path for path in paths if path.i_in1 == i_in1]
        if not mine:
            continue
        units: list[int] = []
        for path in mine:
            first, size = path.weight_start // unit, mul // unit
            units += range(first, first + size) if path.has_weight else [num_units] * size
        order += units
        dims = [out[path.i_out].ir.dim for path in mine]
        path_sum = torch.block_diag(*[torch.ones(1, dim, dtype=torch.float64) for dim in dims])
        coupling = _coupling(mine, problem)
        if ir.l == 0:  # spread over paths: [dim2, (p, k), q]
            coupling = coupling * path_sum.T
        blocks.append(
            (ScalarBlock if ir.l == 0 else TensorBlock)(
                columns=in1.slices()[i_in1],
                dim=ir.dim,
                mul=mul,
                out=tuple(out.slices()[path.i_out] for path in mine),
                weight_units=_side_by_side(units, num_units) or torch.tensor(units, device=device),
                row_path=torch.repeat_interleave(torch.tensor(dims)).to(device),
                coupling=coupling.flatten(1).to(device, dtype),
                path_sum=path_sum.to(device, dtype),
            )
        )
    position = {index: rank for rank, index in enumerate(order)}
    unit_order = None
    if not all(isinstance(block.weight_units, slice) for block in blocks):
        unit_order = torch.tensor([position[i] for i in range(num_units)]).to(device)
    has_unweighted = not all(path.has_weight for path in paths)
    return Plan(tuple(blocks), out.dim, unit, unit_order, has_unweighted)


def _side_by_side(units: list[int], num_units: int) -> slice | None:
    """The units as a slice where they are weights that follow one another."""
    first, last = units[0], units[-1]
    follow = units == list(range(first, last + 1)) and last < num_units
    return slice(first, last + 1) if follow else None


def _coupling(paths: Sequence[Path], problem: TensorProductProblem) -> Tensor:
    """C of one block's paths, [dim2, (p, k), i]."""
    in2 = problem.irreps_in2
    couplings = []
    for path in paths:
        w3j = path.coefficient * wigner_3j(*problem.degrees(path)).permute(1, 2, 0)
        coupling = w3j.new_zeros(in2.dim, *w3j.shape[1:])
        coupling[in2.slices()[path.i_in2]] = w3j
        couplings.append(coupling)
    return torch.cat(couplings, 1)


def run(
    problem: TensorProductProblem,
    graph: Graph | None,
    operands: Mapping[str, Tensor],
    wanted: Sequence[str],
) -> dict[str, Tensor]:
    """Computes results, see `_ops`; weights come as w."""
    x, y, w = operands["x"], operands["y"], operands.get("w")
    if "out" in wanted:
        return {"out": _forward(x, y, w, problem, graph)}
    g, where = operands["g"], (problem, graph)
    if any(name in wanted for name in SECOND_ORDER.values()):
        v_x, v_y, v_w = (operands.get(name) for name in ("vx", "vy", "vw"))
        need_g, need_x, need_y, need_w = (name in wanted for name in SECOND_ORDER.values())
        needs = need_g, need_x, need_y, need_w
        second = _double_backward(v_x, v_y, v_w, g, x, y, w, *where, needs)
        return _present(SECOND_ORDER.values(), second)
    need_x, need_y, need_w = (name in wanted for name in FIRST_ORDER.values())
    first = _backward(g, x, y, w, *where, (need_x, need_y, need_w))
    return _present(FIRST_ORDER.values(), first)


def _present(names: Iterable[str], tensors: Iterable[Tensor | None]) -> dict[str, Tensor]:
    """What is not None, by name."""
    return {name: t for name, t in zip(names, tensors, strict=True) if t is not None}


def _forward(
    x: Tensor, y: Tensor, w: Tensor | None, problem: TensorProductProblem, graph: Graph | None
) -> Tensor:
    """The messages summed at receivers, or the products of rows: [num_dst or rows, dim_out]."""
    plan = _make_plan(problem, x.dtype, x.device)
    inputs, weights = _split_input(x, plan), _split_weight(w, y, plan, 1.0)
    outputs = _zero_outputs(y, plan, graph)
    for chunk in _chunks(plan, y, graph):
        for b, block in enumerate(plan.blocks):
            rows = block.forward(chunk.gather(inputs[b]), y[chunk.rows], chunk.of_edge(weights[b]))
            chunk.add_to_receiver(outputs[b], rows)
    return _join_output(outputs, y, plan, graph)


def _backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum(g * forward(x, y, w)) in x, y and w, those that are needed."""
    plan = _make_plan(problem, x.dtype, x.device)
    inputs, results = _split_input(x, plan), _split_output(g, plan)
    weights = _split_weight(w, y, plan, 1.0)
    sums = _GradientSums(inputs, y, w, plan, (False, *needs), graph)
    for chunk in _chunks(plan, y, graph):
        for b, block in enumerate(plan.blocks):
            gradients = block.backward(
                chunk.gather_receiver(results[b]),
                chunk.gather(inputs[b]),
                y[chunk.rows],
                chunk.of_edge(weights[b]),
                needs,
            )
            sums.add(b, chunk, *gradients)
    return sums.joined(x, y)[1:]


def _double_backward(
    v_x: Tensor | None,
    v_y: Tensor | None,
    v_w: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    problem: TensorProductProblem,
    graph: Graph | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of sum of v_a * (gradient of sum(g * forward) in a) in g, x, y and w, in one pass.

    An absent direction (None) costs nothing.
    """
    plan = _make_plan(problem, x.dtype, x.device)
    inputs, results = _split_input(x, plan), _split_output(g, plan)
    weights = _split_weight(w, y, plan, 1.0)
    v_inputs = None if v_x is None else _split_input(v_x, plan)
    v_weights = None if v_w is None else _split_weight(v_w, y, plan, 0.0)
    sums = _GradientSums(inputs, y, w, plan, needs, graph)
    for chunk in _chunks(plan, y, graph):
        for b, block in enumerate(plan.blocks):
            gradients = block.double_backward(
                (
                    None if v_inputs is None else chunk.gather(v_inputs[b]),
                    None if v_y is None else v_y[chunk.rows],
                    None if v_weights is None else chunk.of_edge(v_weights[b]),
                ),
                chunk.gather_receiver(results[b]),
                chunk.gather(inputs[b]),
                y[chunk.rows],
                chunk.of_edge(weights[b]),
                needs,
            )
            sums.add(b, chunk, *gradients)
    return sums.joined(x, y)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive rows and the nodes they belong to."""

    rows: slice
    src: Tensor | None
    dst: Tensor | None

    def of_edge(self, w: Tensor) -> Tensor:
        """Rows of a per-edge tensor; a single row is shared by all."""
        return w if w.shape[0] == 1 else w[self.rows]

    def gather(self, x: Tensor) -> Tensor:
        """Rows of a sender's tensor."""
        return x[self.rows] if self.src is None else x.index_select(0, self.src)

    def gather_receiver(self, g: Tensor) -> Tensor:
        """Rows of a receiver's tensor."""
        return g[self.rows] if self.dst is None else g.index_select(0, self.dst)

    def add_to_sender(self, x: Tensor, rows: Tensor) -> None:
        """Adjoint of `gather`."""
        if self.src is None:
            x[self.rows] += rows
        else:
            add_rows(x, self.src, rows)

    def add_to_receiver(self, out: Tensor, rows: Tensor) -> None:
        """Adjoint of `gather_receiver`."""
        if self.dst is None:
            out[self.rows] += rows
        else:
            add_rows(out, self.dst, rows)


def _chunks(plan: Plan, y: Tensor, graph: Graph | None) -> Iterator[_Chunk]:
    widest = max((block.num_rows * block.mul for block in plan.blocks), default=1)
    step = chunk_rows(widest * y.element_size())
    for start in range(0, len(y), step):
        rows = slice(start, min(start + step, len(y)))
        if graph is None:
            yield _Chunk(rows, None, None)
        else:
            yield _Chunk(rows, graph.edge_src[rows], graph.edge_dst[rows])


class _GradientSums:
    """Gradients, summed over blocks and chunks."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        y: Tensor,
        w: Tensor | None,
        plan: Plan,
        needs: tuple[bool, bool, bool, bool],
        graph: Graph | None,
    ) -> None:
        need_g, need_x, need_y, need_w = needs
        self.plan, self.graph = plan, graph
        self.w: Tensor | None = None
        if need_w and w is not None:  # every row is written once, shared weights are summed
            self.w = torch.zeros_like(w) if w.shape[0] == 1 else torch.empty_like(w)
        self.g = _zero_outputs(y, plan, graph) if need_g else None
        self.x = [torch.zeros_like(block) for block in inputs] if need_x else None
        self.y = torch.zeros_like(y) if need_y else None
        self.parts: list[Tensor] = []

    def add(
        self,
        b: int,
        chunk: _Chunk,
        g: Tensor | None,
        x: Tensor | None,
        y: Tensor | None,
        w: Tensor | None,
    ) -> None:
        """Adds what block b found for a chunk."""
        if self.g is not None and g is not None:
            chunk.add_to_receiver(self.g[b], g)
        if self.x is not None and x is not None:
            chunk.add_to_sender(self.x[b], x)
        if self.y is not None and y is not None:
            self.y[chunk.rows] += y
        if self.w is not None:
            block = self.plan.blocks[b]
            num_rows = chunk.rows.stop - chunk.rows.start
            if w is None:
                w = self.w.new_zeros(num_rows, block.num_paths, block.mul)
            w = w.view(num_rows, -1, self.plan.unit)
            if len(self.w) == 1:
                w = w.sum(0, keepdim=True)
            units = self.w.view(len(self.w), -1, self.plan.unit)
            units = units if len(self.w) == 1 else units[chunk.rows]
            if self.plan.unit_order is None:
                self._write_units(units[:, block.weight_units], w)
            else:
                self.parts.append(w)
                if len(self.parts) == len(self.plan.blocks):
                    joined = torch.cat(self.parts, 1).index_select(1, self.plan.unit_order)
                    self._write_units(units, joined)
                    self.parts.clear()

    def _write_units(self, target: Tensor, units: Tensor) -> None:
        """Shared weights are summed over chunks, others are written once."""
        if self.w is not None and len(self.w) == 1:  # not len(target): a chunk may have one row
            target += units
        else:
            target.copy_(units)

    def joined(
        self, x: Tensor, y: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients in g, x, y and w, in the operands' own order."""
        return (
            None if self.g is None else _join_output(self.g, y, self.plan, self.graph),
            None if self.x is None else _join_input(self.x, x, self.plan),
            self.y,
            self.w,
        )


def _split_input(x: Tensor, plan: Plan) -> list[Tensor]:
    """The blocks of x1, each [nodes, i, u]."""
    return [x[:, b.columns].reshape(len(x), b.dim, b.mul) for b in plan.blocks]


def _join_input(blocks: Sequence[Tensor], x: Tensor, plan: Plan) -> Tensor:
    """Adjoint of `_split_input`; columns that no path reads are zero."""
    joined = torch.zeros_like(x)
    for block, part in zip(plan.blocks, blocks, strict=True):
        joined[:, block.columns] = part.flatten(1)
    return joined


def _split_weight(w: Tensor | None, like: Tensor, plan: Plan, unweighted: float) -> list[Tensor]:
    """The blocks' weights, each [rows or 1, p, u].

    `unweighted` is what stands for the weight of a path without one: one, or zero where w is a
    direction in the space of weights.
    """
    units = like.new_empty(1, 0, plan.unit) if w is None else w.unflatten(1, (-1, plan.unit))
    if plan.has_unweighted:
        constant = units.new_full((len(units), 1, plan.unit), unweighted)
        units = torch.cat([units, constant], 1)
    return [
        (
            units[:, b.weight_units]
            if isinstance(b.weight_units, slice)
            else units.index_select(1, b.weight_units)
        ).reshape(len(units), b.num_paths, b.mul)
        for b in plan.blocks
    ]


def _split_output(g: Tensor, plan: Plan) -> list[Tensor]:
    """The result's columns grouped by block of x1, each [nodes, (p, k), u]."""
    return [
        torch.cat([g[:, columns] for columns in b.out], 1).view(len(g), b.num_rows, b.mul)
        for b in plan.blocks
    ]


def _zero_outputs(y: Tensor, plan: Plan, graph: Graph | None) -> list[Tensor]:
    """Zeros for the sums at receivers, grouped by block of x1."""
    num_rows = _num_outputs(y, graph)
    return [y.new_zeros(num_rows, block.num_rows, block.mul) for block in plan.blocks]


def _num_outputs(y: Tensor, graph: Graph | None) -> int:
    return len(y) if graph is None else graph.num_dst


def _join_output(blocks: Sequence[Tensor], y: Tensor, plan: Plan, graph: Graph | None) -> Tensor:
    """Adjoint of `_split_output`; paths may share a block of the result."""
    joined = y.new_zeros(_num_outputs(y, graph), plan.dim_out)
    for block, part in zip(plan.blocks, blocks, strict=True):
        flat, start = part.flatten(1), 0
        for columns in block.out:
            width = columns.stop - columns.start
            joined[:, columns] += flat[:, start : start + width]
            start += width
    return joined
