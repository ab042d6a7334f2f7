"""The general product as compiled C++, any problem; `_cpu_source` says how.

Rows are taken in chunks that depend on their number alone. Where rows share a node or weights, a
chunk has sums of its own (`carry`), added in the order of the chunks at the end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.graph import EdgeOrder, SenderSums
from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_library
from eqtp.kernels.codegen.edges import chunk_edges
from eqtp.kernels.codegen.multilinear_terms import Term
from eqtp.kernels.tensor_product._cpu_source import source
from eqtp.kernels.tensor_product._form import SLOTS, WEIGHT, Form, is_weighted
from eqtp.kernels.tensor_product._tables import make_tables

__all__ = ["evaluate"]

X1, OUT = SLOTS.index("x1"), SLOTS.index("out")
Numbers = tuple[int, ...]
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


def _fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names)


class _Operand(ctypes.Structure):
    _fields_ = (("data", POINTER), ("slot", INTEGER))


class _Result(ctypes.Structure):
    _fields_ = (("data", POINTER), ("carry", POINTER), ("slot", INTEGER))


class _Pair(ctypes.Structure):
    _fields_ = _fields(INTEGER, "x1", "x2", "grad_x1", "grad_x2")


class _Group(ctypes.Structure):
    _fields_ = _fields(
        INTEGER, "weight", "out", "grad_weight", "grad_out", "weighted", "begin", "end"
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *(("paths", POINTER), ("num_paths", INTEGER), ("groups", POINTER), ("num_groups", INTEGER)),
        *(("pairs", POINTER), ("operands", POINTER), ("num_operands", INTEGER)),
        *(("results", POINTER), ("num_results", INTEGER)),
        *_fields(POINTER, *EdgeOrder._fields, *SenderSums._fields),
        ("dims", INTEGER * len(SLOTS)),
        *_fields(INTEGER, "num_rows", "chunk_rows", "num_senders", "graph", "shared", "threads"),
    )


def evaluate(
    form: Form, terms: Sequence[Term], operands: Sequence[Tensor | None], num_results: int
) -> tuple[Tensor | None, ...]:
    """The sums of derivatives that the terms describe; None where no term adds anything."""
    given: dict[int, tuple[int, Tensor]] = {}
    wanted: dict[int, int] = {}
    for term in terms:
        for slot, (number, result) in enumerate(zip(term.operands, term.results, strict=True)):
            if number is not None and (operand := operands[number]) is not None:
                given[number] = (slot, operand.contiguous())
            if result is not None:
                wanted[result] = slot
    if not wanted:
        return (None,) * num_results
    like = next(operand for _, operand in given.values())
    results: dict[int, Tensor]
    if form.num_rows == 0:
        results = {result: like.new_zeros(form.shape(slot)) for result, slot in wanted.items()}
    else:
        results = _run(form, terms, given, wanted, like)
    return tuple(results.get(number) for number in range(num_results))


def _run(
    form: Form,
    terms: Sequence[Term],
    given: Mapping[int, tuple[int, Tensor]],
    wanted: Mapping[int, int],
    like: Tensor,
) -> dict[int, Tensor]:
    """One call of the kernel; `given` and `wanted` tell the slots of operands and results."""
    tables = make_tables(form.problem, like.dtype, form.layout)
    chunk = chunk_edges(form.num_rows)
    order = _order(form)
    sums = _sender_sums(form, chunk if X1 in wanted.values() else None)
    results, carries = {}, {}
    for number, slot in wanted.items():
        results[number], carries[number] = _allocate(
            form, slot, like, tables.complete, -(-form.num_rows // chunk), len(sums.rows)
        )
    groups, pairs = _group(terms, list(given), list(wanted))
    arrays = {
        "paths": tables.paths,
        "groups": _array(_Group, groups),
        "pairs": _array(_Pair, pairs),
        "operands": _array(_Operand, [(x.data_ptr(), slot) for slot, x in given.values()]),
        "results": _array(
            _Result, [(results[r].data_ptr(), carries[r].data_ptr(), wanted[r]) for r in wanted]
        ),
    }
    call = _Call(
        **{name: ctypes.addressof(array) for name, array in arrays.items()},
        **{f"num_{name}": len(array) for name, array in arrays.items() if name != "pairs"},
        dims=(ctypes.c_int64 * len(SLOTS))(*form.dims),
        num_rows=form.num_rows,
        chunk_rows=chunk,
        num_senders=form.shape(X1)[0],
        graph=form.graph is not None,
        shared=form.shared,
        threads=torch.get_num_threads(),
        **{name: x.data_ptr() for name, x in (order._asdict() | sums._asdict()).items()},
    )
    _kernel(like.dtype)(ctypes.byref(call))
    if form.shared:
        results |= {r: results[r].sum(0) for r, slot in wanted.items() if slot == WEIGHT}
    return results


def _allocate(
    form: Form, slot: int, like: Tensor, complete: bool, num_chunks: int, num_sender_rows: int
) -> tuple[Tensor, Tensor]:
    """A result and the chunks' sums for it; zeros where the kernel adds or leaves columns out."""
    shape, none = form.shape(slot), like.new_zeros(0)
    if slot == WEIGHT and form.shared:
        return like.new_zeros(num_chunks, *shape), none
    if form.graph is not None and slot == OUT:
        return like.new_zeros(shape), like.new_zeros(num_chunks, shape[1])
    if form.graph is not None and slot == X1:
        return memory.empty(like, *shape), like.new_zeros(num_sender_rows, shape[1])
    if slot == OUT and not complete:
        return like.new_zeros(shape), none
    return memory.empty(like, *shape), none


def _group(
    terms: Sequence[Term], operands: list[int], results: list[int]
) -> tuple[list[Numbers], list[Numbers]]:
    """Terms with the same weights and out side by side: their pairs are summed before weighting."""
    grouped: dict[Numbers, list[Numbers]] = {}
    for term in terms:
        x1, x2, weight, out = (operands.index(o) if o in operands else -1 for o in term.operands)
        grad_x1, grad_x2, grad_weight, grad_out = (
            -1 if r is None else results.index(r) for r in term.results
        )
        key: Numbers = (weight, out, grad_weight, grad_out, int(is_weighted(term)))
        grouped.setdefault(key, []).append((x1, x2, grad_x1, grad_x2))
    groups: list[Numbers] = []
    pairs: list[Numbers] = []
    for key, members in grouped.items():
        groups.append((*key, len(pairs), len(pairs) + len(members)))
        pairs += members
    return groups, pairs


def _order(form: Form) -> EdgeOrder:
    """The order of the rows; rows without a graph are edges that share no node."""
    if form.graph is not None:
        return form.graph.by_receiver
    index = torch.arange(form.num_rows)
    return EdgeOrder(index, index, index)


def _sender_sums(form: Form, chunk: int | None) -> SenderSums:
    """How sums at senders are made; nothing where there are none (chunk None)."""
    if form.graph is not None and chunk is not None:
        return form.graph.sender_sums(chunk)
    none = torch.arange(0)
    return SenderSums(none, none, none)


def _array(structure: type[ctypes.Structure], rows: Sequence[tuple[int, ...]]) -> Any:
    return (structure * len(rows))(*(structure(*row) for row in rows))


@lru_cache
def _kernel(dtype: torch.dtype) -> Callable[..., None]:
    function = load_library(source(dtype)).run
    function.argtypes = [ctypes.c_void_p]
    function.restype = None
    return function
