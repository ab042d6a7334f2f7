"""The rotations in plain PyTorch, in chunks of edges that fit the cache. Layout "ir_mul"."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.kernels.so2.config import chunk_rows
from eqtp.kernels.so2.edges import Side
from eqtp.kernels.so2.frames import Block, FrameLayout, Turns, aligning_turns, exchange, generators
from eqtp.rows import add_rows

__all__ = ["rotate", "rotate_back", "torque", "turned"]


def rotate(
    x: Tensor, vectors: Tensor, v: Tensor | None, side: Side | None, frame: FrameLayout
) -> Tensor:
    """D x, or D G(v) x, of every edge's node: [E, frame.dim]."""
    out = x.new_empty(len(vectors), frame.dim)
    for rows in _chunks(len(vectors), frame):
        turns = aligning_turns(vectors[rows], frame.lmax)
        nodes = x[rows] if side is None else x.index_select(0, side.node[rows])
        if v is not None:
            nodes = turned(nodes, v[rows], frame)
        for block in frame.blocks:
            y = _to_edge(_components(nodes, block), turns, block)
            for row, column in enumerate(block.columns):
                out[rows, column : column + block.mul] = y[:, row]
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
    out = y.new_zeros(num_nodes, frame.irreps.dim)
    for rows in _chunks(len(vectors), frame):
        x = _rows_back(y[rows], vectors[rows], frame)
        if v is not None:
            x = -turned(x, v[rows], frame)
        if side is None:
            out[rows] = x
        else:
            add_rows(out, side.node[rows], x)
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
    out = y.new_zeros(len(vectors), 3)
    for rows in _chunks(len(vectors), frame):
        nodes = x[rows] if side is None else x.index_select(0, side.node[rows])
        if v is not None:
            nodes = turned(nodes, v[rows], frame)
        back = _rows_back(y[rows], vectors[rows], frame)
        for block in frame.blocks:
            pairs = _components(back, block) @ _components(nodes, block).mT
            out[rows] += pairs.flatten(1) @ _constants(block.l, y.dtype, y.device)[1].flatten(1).T
    return out


def turned(x: Tensor, v: Tensor, frame: FrameLayout) -> Tensor:
    """G(v) x = sum_k v_k G_k x, row by row; differentiable to any order."""
    parts, end = [], 0
    for block in frame.blocks:
        matrices = v @ _constants(block.l, x.dtype, x.device)[1].flatten(1)
        matrices = matrices.unflatten(1, (2 * block.l + 1, 2 * block.l + 1))
        parts.append((matrices @ _components(x, block)).flatten(1))
        end = block.start + parts[-1].shape[1]
    return torch.cat(parts, 1) if end else x * 0


def _chunks(num_rows: int, frame: FrameLayout) -> Iterator[slice]:
    size = chunk_rows(frame)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _components(x: Tensor, block: Block) -> Tensor:
    """A block's columns as [E, 2l+1, mul]."""
    dim = 2 * block.l + 1
    columns = x[:, block.start : block.start + dim * block.mul]
    return columns.view(len(x), dim, block.mul)


def _rows_back(y: Tensor, vectors: Tensor, frame: FrameLayout) -> Tensor:
    """D^T y of every edge, [E, dim]."""
    turns = aligning_turns(vectors, frame.lmax)
    out = y.new_empty(len(y), frame.irreps.dim)
    for block in frame.blocks:
        kept = torch.stack([y[:, c : c + block.mul] for c in block.columns], 1)
        _components(out, block).copy_(_from_edge(kept, turns, block))
    return out


def _to_edge(x: Tensor, turns: Turns, block: Block) -> Tensor:
    """J Z(-b) J Z(-a) x, the orders that are kept: [E, 2 m_max + 1, mul]."""
    if block.l == 0:
        return x
    j = _constants(block.l, x.dtype, x.device)[0]
    x = j @ _turn(x, turns.cos_a, turns.sin_a, block.l)
    kept = slice(block.l - block.m_max, block.l + block.m_max + 1)
    return j[kept] @ _turn(x, turns.cos_b, turns.sin_b, block.l)


def _from_edge(y: Tensor, turns: Turns, block: Block) -> Tensor:
    """The transpose of `_to_edge`."""
    if block.l == 0:
        return y
    j = _constants(block.l, y.dtype, y.device)[0]
    kept = slice(block.l - block.m_max, block.l + block.m_max + 1)
    y = j @ _turn(j[:, kept] @ y, turns.cos_b, -turns.sin_b, block.l)
    return _turn(y, turns.cos_a, -turns.sin_a, block.l)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, l: int) -> Tensor:
    """Z(-t) x for the cosines and sines of t's multiples."""
    cos = torch.cat([cos[:, 1 : l + 1].flip(1), cos[:, : l + 1]], 1)
    sin = torch.cat([-sin[:, 1 : l + 1].flip(1), sin[:, : l + 1]], 1)
    return cos[..., None] * x + sin[..., None] * x.flip(1)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _constants(l: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return exchange(l).to(device, dtype), generators(l).to(device, dtype)
