"""The general product as Triton kernels, any modes and multiplicities; matrix products by torch.

Modes that mix no channels are computed by kernels alone: each owns a block of a result
(`_triton_source`), so sums at nodes, over channels and over paths stay in registers. A mode that
mixes channels is one that does not, whose channels are all pairs, followed by a matrix:

    pairs[z, k, q] = sum_ij C[i, j, k] x1[z, u, i] x2[z, v, j]            "uvuv", "uuu" or "uvu<v"
    out[z, k, w]   = sum_q pairs[z, k, q] weight[z, q, w]

and the gradients of x1 and x2 are those of the pairs, whose gradient is the result's times the
transposed matrix. With one set of weights for all edges the pairs are summed at the receivers
first: the matrix is then multiplied once per node, not once per edge.

Nothing is atomic: results are the same from run to run. float16 and bfloat16 are types of storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.codegen.multilinear_terms import Numbers, Term
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_device import ARITHMETIC, TRITON_NAME, lanes_of
from eqtp.kernels.codegen.triton_items import items_of
from eqtp.kernels.tensor_product._form import SLOTS, WEIGHT, Form
from eqtp.kernels.tensor_product._triton_source import (
    FUNCTION,
    LETTERS,
    Channels,
    Kernel,
    Part,
    Walk,
)
from eqtp.kernels.tensor_product.config import TRITON_CHUNKS, chunk_rows, triton_launch
from eqtp.kernels.tensor_product.pairs import is_empty, pairs_of
from eqtp.problem import TensorProductProblem

__all__ = ["Call", "evaluate"]

X1, OUT = SLOTS.index("x1"), SLOTS.index("out")


def evaluate(
    form: Form, terms: Sequence[Term], operands: Sequence[Tensor | None], num_results: int
) -> tuple[Tensor | None, ...]:
    """The sums of derivatives that the terms describe; None where no term adds anything."""
    operands = [None if operand is None else operand.contiguous() for operand in operands]
    like = next(operand for operand in operands if operand is not None)
    slots = {r: slot for t in terms for slot, r in enumerate(t.results) if r is not None}
    parts = [_evaluate(*part, terms, slots) for part in _chunks(form, operands, like)]
    results: list[Tensor | None] = [None] * num_results
    for number, slot in slots.items():
        total, *others = (part[number] for part in parts)
        if others:
            found = [total, *others]
            is_sum = slot == WEIGHT and form.shared
            total = torch.stack(found).sum(0) if is_sum else torch.cat(found)
        results[number] = total.to(like.dtype)
    return tuple(results)


def _chunks(
    form: Form, operands: Sequence[Tensor | None], like: Tensor
) -> Iterator[tuple[Form, Sequence[Tensor | None]]]:
    """Rows in chunks whose pairs of channels, and gradients of pairs, take a bounded memory.

    The edges of a graph stay together: they are summed.
    """
    pairs, _ = pairs_of(form.problem)
    step = chunk_rows(2 * pairs.irreps_out.dim * like.element_size(), like.device.type)
    if form.graph is not None or form.num_rows <= step:
        yield form, operands
        return
    for start in range(0, form.num_rows, step):
        rows = slice(start, min(start + step, form.num_rows))
        some = [x if x is None or x.ndim == 1 else x[rows] for x in operands]
        yield replace(form, num_rows=rows.stop - rows.start), some


def _evaluate(
    form: Form,
    operands: Sequence[Tensor | None],
    terms: Sequence[Term],
    slots: Mapping[int, int],
) -> dict[int, Tensor]:
    """All results of some rows, in the type of the arithmetic or in that of the operands."""
    like = next(operand for operand in operands if operand is not None)
    at_nodes = frozenset((X1, OUT)) if form.graph is not None else frozenset[int]()
    with torch.cuda.device_of(like):
        call = Call(form.problem, form.graph, at_nodes, form.num_rows, form.shared)
        results = call.run(terms, operands)
        for number, value in chain.from_iterable(_mix(form, term, operands) for term in terms):
            results[number] = results[number] + value if number in results else value
    for number in slots.keys() - results.keys():
        results[number] = like.new_zeros(form.shape(slots[number]))
    return results


@dataclass(frozen=True)
class Call:
    """A product of modes that mix no channels; paths of the other modes are left out.

    Attributes:
        problem: The product.
        graph: Edges, or None for rows.
        at_nodes: The slots, of x1 and of the result, whose rows are nodes; others have one per row.
        num_rows: Rows (edges).
        shared: Whether one row of weights serves all rows.
    """

    problem: TensorProductProblem
    graph: Graph | None
    at_nodes: frozenset[int]
    num_rows: int
    shared: bool

    def kernels(
        self, terms: Sequence[Term], arithmetic: torch.dtype, lanes: int
    ) -> dict[int, tuple[Kernel, ...]]:
        """By result, the kernels in the order in which they run; none where no path adds to it."""
        by_result: dict[int, tuple[int, list[Numbers]]] = {}
        for term in terms:
            for slot, number in enumerate(term.results):
                if number is not None:
                    given = (*term.operands[:slot], None, *term.operands[slot + 1 :])
                    by_result.setdefault(number, (slot, []))[1].append(given)
        made = {
            number: _kernels_of(
                *(self.problem, slot, tuple(operands), self.at_nodes, self.shared),
                *(arithmetic, lanes),
            )
            for number, (slot, operands) in by_result.items()
        }
        return {number: kernels for number, kernels in made.items() if kernels}

    def run(self, terms: Sequence[Term], operands: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """The results that some path adds to, in the type of the arithmetic.

        The operands are contiguous.
        """
        like = next(operand for operand in operands if operand is not None)
        made = self.kernels(terms, ARITHMETIC[like.dtype], lanes_of(like.device))
        return {number: self._result(made[number], operands, like) for number in made}

    def _result(
        self, kernels: Sequence[Kernel], operands: Sequence[Tensor | None], like: Tensor
    ) -> Tensor:
        """One result, block by block."""
        walk, slot, graph = kernels[0].walk, kernels[0].slot, self.graph
        values: dict[str, Tensor | int] = {}
        items = None
        number = self.num_rows
        if walk == "chunk":
            size = max(1, -(-self.num_rows // TRITON_CHUNKS))
            number = -(-self.num_rows // size)
            values |= {"chunk_rows": size, "num_rows": self.num_rows}
        elif walk != "row":
            assert graph is not None
            items = items_of(graph, walk)
            number = items.number
            values |= items.tensors
        if graph is not None:
            values |= {"sender": graph.edge_src, "receiver": graph.edge_dst}
        for index, operand in enumerate(operands):
            if operand is not None:
                values[f"x{index}"] = operand
        dim = self.problem.dims[slot]
        is_covered = number > 0 and _covers(kernels, self.problem, slot)
        make = like.new_empty if is_covered else like.new_zeros
        result = make((number, dim), dtype=ARITHMETIC[like.dtype])
        values |= {"result": result, "num_items": number}
        for kernel in kernels:
            _launch(kernel, values, number)
        if walk == "chunk":
            return result.sum(0)
        if items is None:
            return result
        items.add_pieces(result)
        return result[: items.num_nodes]


def _launch(kernel: Kernel, values: dict[str, Tensor | int], num_items: int) -> None:
    programs = -(-num_items * kernel.channels.number // kernel.channels_of_program)
    if programs == 0:
        return
    load_function(kernel.source, FUNCTION)[(programs,)](
        *(values[name] for name in kernel.arguments),
        num_warps=kernel.launch.num_warps,
        num_stages=kernel.launch.num_stages,
        enable_fp_fusion=True,
    )


@lru_cache(maxsize=1024)
def _kernels_of(
    problem: TensorProductProblem,
    slot: int,
    operands: tuple[Numbers, ...],
    at_nodes: frozenset[int],
    shared: bool,
    arithmetic: torch.dtype,
    lanes: int,
) -> tuple[Kernel, ...]:
    """The kernels of a result in the order in which they run.

    Args:
        problem: The product.
        slot: The slot of the result.
        operands: For every term, the numbers of the operands.
        at_nodes: The slots whose rows are nodes.
        shared: Whether one row of weights serves all rows.
        arithmetic: float32 or float64.
        lanes: Threads of a warp.
    """
    launch = triton_launch(arithmetic.itemsize, lanes)
    walk: Walk = "row"
    if slot == WEIGHT and shared:
        walk = "chunk"
    elif slot in at_nodes:
        walk = "sender" if slot == X1 else "receiver"
    grouped: dict[Channels, list[Part]] = {}
    for numbers in operands:
        for path in problem.paths:
            is_counted = path.has_weight or numbers[WEIGHT] == WEIGHT
            if path.mode in LETTERS and is_counted and not is_empty(problem, path):
                key = Channels.of(problem, path, slot)
                grouped.setdefault(key, []).append(Part(path, numbers))
    kernels: list[Kernel] = []
    begun: set[int] = set()
    for channels, parts in grouped.items():
        empty = Kernel(
            *(problem, slot, channels, (), False, shared, at_nodes, walk),
            *(TRITON_NAME[arithmetic], launch),
        )
        for some in _split(empty, parts):
            kernels.append(replace(empty, parts=some, begun=channels.block in begun))
            begun.add(channels.block)
    return tuple(kernels)


def _split(kernel: Kernel, parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Parts in groups that a kernel can take, filled one after the other."""
    groups: list[tuple[Part, ...]] = []
    for part in parts:
        longer = (*groups[-1], part) if groups else (part,)
        if groups and replace(kernel, parts=longer).num_products <= kernel.launch.max_products:
            groups[-1] = longer
        else:
            groups.append((part,))
    return groups


def _covers(kernels: Sequence[Kernel], problem: TensorProductProblem, slot: int) -> bool:
    """Whether every column of a result is written by some kernel."""
    written = {kernel.channels.block for kernel in kernels}
    if slot == WEIGHT:
        return written >= {path.weight_start for path in problem.paths if path.weight_numel > 0}
    irreps = problem.irreps_in1, problem.irreps_in2, None, problem.irreps_out
    blocks = irreps[slot]
    assert blocks is not None
    return written >= {index for index, (mul, _) in enumerate(blocks) if mul > 0}


def _mix(form: Form, term: Term, operands: Sequence[Tensor | None]) -> Iterator[tuple[int, Tensor]]:
    """Numbers of results, and what the paths that mix channels add to them."""
    problem, mixings = pairs_of(form.part_of(term).problem)
    if not mixings:
        return
    graph = form.graph
    at_receivers = graph is not None and form.shared
    at_nodes = frozenset((X1, OUT) if at_receivers else () if graph is None else (X1,))
    call = Call(problem, graph, at_nodes, form.num_rows, shared=True)
    like = next(operand for operand in operands if operand is not None)
    arithmetic = ARITHMETIC[like.dtype]
    x1, x2, *_ = term.operands
    grad_x1, grad_x2, grad_weight, grad_out = term.results
    given = {
        SLOTS[slot]: operand.to(arithmetic)
        for slot in (WEIGHT, OUT)
        if (number := term.operands[slot]) is not None and (operand := operands[number]) is not None
    }
    if graph is not None and not at_receivers and "out" in given:
        given["out"] = given["out"].index_select(0, graph.edge_dst)
    rows = form.shape(OUT)[0] if at_receivers else form.num_rows
    if grad_out is not None or grad_weight is not None:
        value = Term((x1, x2, WEIGHT, None), (None, None, None, 0))
        pairs = call.run((value,), operands)[0]
        sums = {}
        if grad_out is not None:
            sums["out"] = pairs.new_zeros(rows, form.dims[OUT])
        if grad_weight is not None:
            sums["weight"] = pairs.new_zeros(form.shape(WEIGHT))
        for mixing in mixings:
            mixing.step.use(mixing.view(pairs), given, sums)
        if grad_weight is not None:
            yield grad_weight, sums["weight"]
        if grad_out is not None:
            out = sums["out"]
            yield grad_out, out if graph is None or at_receivers else _sum_of_edges(graph, out)
    if grad_x1 is not None or grad_x2 is not None:
        gradient = like.new_empty(rows, problem.irreps_out.dim, dtype=arithmetic)
        for mixing in mixings:
            mixing.step.fill_gradient(mixing.view(gradient), given)
        back = Term((x1, x2, WEIGHT, len(operands)), (grad_x1, grad_x2, None, None))
        yield from call.run((back,), (*operands, gradient)).items()


def _sum_of_edges(graph: Graph, rows: Tensor) -> Tensor:
    """Edges' rows summed at their receivers, in order."""
    if len(rows) == 0:
        return rows.new_zeros(graph.num_dst, rows.shape[1])
    items = items_of(graph, "receiver").tensors
    start = items["item_start"][: graph.num_dst]
    pointers = torch.cat([start, start.new_full((1,), len(rows))])
    ordered = rows.index_select(0, items["edge"])
    # Nothing needs checking, and the check would wait for the device.
    return torch.segment_reduce(ordered, "sum", offsets=pointers, axis=0, unsafe=True)
