"""The rotations in C++; `_cpu_source` makes it. Layout "ir_mul"."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_generated
from eqtp.kernels.so2._cpu_source import degree_source, walk_source
from eqtp.kernels.so2.edges import Side
from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["rotate", "rotate_back", "rotate_back_chunk", "rotate_chunk", "torque"]


def rotate(
    x: Tensor, vectors: Tensor, v: Tensor | None, side: Side | None, frame: FrameLayout
) -> Tensor:
    """D x, or D G(v) x, of every edge's node: [E, frame.dim]."""
    out = memory.empty(x, len(vectors), frame.dim)
    _rotate(x, vectors, v, None if side is None else side.node, None, out, frame)
    return out


def rotate_back(
    y: Tensor,
    vectors: Tensor,
    v: Tensor | None,
    side: Side | None,
    num_nodes: int,
    frame: FrameLayout,
) -> Tensor:
    """The transpose of `rotate`, summed at every edge's node: [num_nodes, dim]."""
    dim = frame.irreps.dim
    if side is None:
        out = memory.empty(y, num_nodes, dim)
        _rotate_back(y, vectors, v, None, None, None, out, None, frame)
    else:
        out = y.new_zeros(num_nodes, dim)
        _rotate_back(y, vectors, v, side.node, side.edge, None, out, None, frame, sums=True)
    return out


def torque(
    x: Tensor,
    y: Tensor,
    vectors: Tensor,
    v: Tensor | None,
    side: Side | None,
    frame: FrameLayout,
) -> Tensor:
    """t_k = <D^T y, G_k x>, or <D^T y, G_k G(v) x>, of every edge: [E, 3]."""
    out = y.new_empty(len(vectors), 3)
    node = None if side is None else side.node
    _rotate_back(y, vectors, v, node, None, x, None, out, frame)
    return out


def rotate_chunk(
    x: Tensor, vectors: Tensor, node: Tensor, edge: Tensor, out: Tensor, frame: FrameLayout
) -> None:
    """D x of the edges numbered `edge`, in their order, into rows of `out`."""
    _rotate(x, vectors, None, node, edge, out, frame)


def rotate_back_chunk(
    y: Tensor,
    vectors: Tensor,
    node: Tensor,
    edge: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    torques: Tensor | None,
    frame: FrameLayout,
) -> None:
    """For the edges numbered `edge`, sorted by node, whose frames are the rows of y.

    Adds D^T y at the nodes, rows of `out`, and writes the torques with x at the edges' numbers,
    where these are not None.
    """
    _rotate_back(y, vectors, None, node, edge, x, out, torques, frame, sums=True, compact=True)


class _Block(ctypes.Structure):
    """`Block` of the C++ source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("to_edge", "back")),
        *((name, ctypes.c_int64) for name in ("mul", "start")),
        ("columns", ctypes.c_void_p),
    )


class _Edges(ctypes.Structure):
    """`Edges` of the C++ source."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_blocks", "lmax", "count")),
        *((name, ctypes.c_void_p) for name in ("r", "v", "node", "edge")),
        ("compact", ctypes.c_int64),
    )


def _rotate(
    x: Tensor,
    vectors: Tensor,
    v: Tensor | None,
    node: Tensor | None,
    edge: Tensor | None,
    out: Tensor,
    frame: FrameLayout,
) -> None:
    edges = _edges(vectors, v, node, edge, frame, compact=edge is not None)
    row = x.data_ptr(), x.stride(0), out.data_ptr(), out.stride(0)
    _walk(x.dtype).rotate(ctypes.byref(edges), *row, torch.get_num_threads())


def _rotate_back(
    y: Tensor,
    vectors: Tensor,
    v: Tensor | None,
    node: Tensor | None,
    edge: Tensor | None,
    x: Tensor | None,
    out: Tensor | None,
    torques: Tensor | None,
    frame: FrameLayout,
    *,
    sums: bool = False,
    compact: bool = False,
) -> None:
    edges = _edges(vectors, v, node, edge, frame, compact=compact)
    _walk(y.dtype).rotate_back(
        ctypes.byref(edges),
        *_rows(y),
        *_rows(x),
        *_rows(out),
        sums,
        None if torques is None else torques.data_ptr(),
        torch.get_num_threads(),
    )


def _rows(x: Tensor | None) -> tuple[int | None, int]:
    """Address and row length."""
    return (None, 0) if x is None else (x.data_ptr(), x.stride(0))


def _edges(
    vectors: Tensor,
    v: Tensor | None,
    node: Tensor | None,
    edge: Tensor | None,
    frame: FrameLayout,
    *,
    compact: bool,
) -> _Edges:
    table, _ = _table(frame, vectors.dtype)
    addresses = [None if t is None else t.data_ptr() for t in (vectors, v, node, edge)]
    count = len(vectors) if edge is None else len(edge)
    return _Edges(ctypes.addressof(table), len(table), frame.lmax, count, *addresses, compact)


@lru_cache(maxsize=256)
def _table(frame: FrameLayout, dtype: torch.dtype) -> tuple[ctypes.Array[_Block], list[Tensor]]:
    """The blocks, and the tensors they point into."""
    columns = [torch.tensor(block.columns) for block in frame.blocks]
    blocks = [
        _Block(*_degree(block.l, block.m_max, dtype), block.mul, block.start, place.data_ptr())
        for block, place in zip(frame.blocks, columns, strict=True)
    ]
    return (_Block * len(blocks))(*blocks), columns


@lru_cache(maxsize=256)
def _degree(l: int, m_max: int, dtype: torch.dtype) -> tuple[int | None, int | None]:
    """Addresses of the two functions of a degree, whose library stays loaded."""
    library = load_generated(f"so2 {l} {m_max} {dtype}", lambda: degree_source(l, m_max, dtype))
    _LOADED.append(library)
    functions = library.to_edge, library.back
    to_edge, back = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    return to_edge, back


_LOADED: list[ctypes.CDLL] = []


@lru_cache(maxsize=2)
def _walk(dtype: torch.dtype) -> ctypes.CDLL:
    library = load_generated(f"so2 {dtype}", lambda: walk_source(dtype))
    pointer, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    row: list[Any] = [pointer, integer]
    library.rotate.argtypes = [pointer, *row, *row, number]
    library.rotate_back.argtypes = [pointer, *row, *row, *row, number, pointer, number]
    library.rotate.restype = library.rotate_back.restype = None
    return library
