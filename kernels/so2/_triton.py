"""The rotations as Triton kernels, one launch per block of irreps. Layout "ir_mul".

Sums at nodes are made by one program per node and block of channels, in the order of the edges:
nothing is atomic. Torques of the blocks are written apart and added up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.so2._triton_source import (
    back_source,
    nodes_source,
    rotate_source,
    torque_source,
)
from eqtp.kernels.so2.config import MAX_TRITON_DEGREE, triton_rotation
from eqtp.kernels.so2.edges import Side
from eqtp.kernels.so2.frames import Block, FrameLayout

__all__ = ["rotate", "rotate_back", "torque", "why_unsupported"]


def why_unsupported(frame: FrameLayout, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot serve; None where they can."""
    if dtype not in (torch.float32, torch.float64):
        return f"its kernels compute in float32 or float64, got {dtype}"
    if frame.lmax > MAX_TRITON_DEGREE:
        return f"its kernels are unrolled up to degree {MAX_TRITON_DEGREE}, got {frame.lmax}"
    return None


def rotate(
    x: Tensor, vectors: Tensor, v: Tensor | None, side: Side | None, frame: FrameLayout
) -> Tensor:
    """D x, or D G(v) x, of every edge's node: [E, frame.dim]."""
    out = x.new_empty(len(vectors), frame.dim)
    for block in frame.blocks:
        source = rotate_source(block.l, block.m_max, turned=v is not None, gathers=side is not None)
        kernel = load_function(source, "so2_rotate")
        node = vectors if side is None else side.node
        turn = vectors if v is None else v
        _launch(kernel, frame, block, len(vectors), x, vectors, turn, node, out)
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
    out = y.new_empty(num_nodes, frame.irreps.dim)
    turn = vectors if v is None else v
    for block in frame.blocks:
        if side is None:
            source = back_source(block.l, block.m_max, turned=v is not None)
            kernel = load_function(source, "so2_back")
            _launch(kernel, frame, block, num_nodes, y, vectors, turn, out)
        else:
            source = nodes_source(block.l, block.m_max, turned=v is not None)
            kernel = load_function(source, "so2_nodes")
            order = side.edge, side.pointers
            _launch(kernel, frame, block, num_nodes, y, vectors, turn, *order, out, nodes=True)
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
    blocks = [block for block in frame.blocks if block.l > 0]
    parts = y.new_empty(len(blocks), len(vectors), 3)
    for part, block in zip(parts, blocks, strict=True):
        source = torque_source(block.l, block.m_max, turned=v is not None, gathers=side is not None)
        kernel = load_function(source, "so2_torque")
        node = vectors if side is None else side.node
        turn = vectors if v is None else v
        _launch(kernel, frame, block, len(vectors), x, y, vectors, turn, node, part, whole=True)
    return parts.sum(0)


def _launch(
    kernel: Any,
    frame: FrameLayout,
    block: Block,
    num_items: int,
    *tensors: Tensor,
    nodes: bool = False,
    whole: bool = False,
) -> None:
    """Runs a kernel for a block.

    Args:
        kernel: The function.
        frame: The frame that it is in.
        block: The block.
        num_items: Edges, or nodes.
        *tensors: The function's.
        nodes: Whether a program does one node.
        whole: Whether a program does all channels.
    """
    if num_items == 0:
        return
    choice = triton_rotation(block.mul, nodes=nodes)
    programs = -(-num_items // choice.edges)
    grid = (programs,) if whole else (programs, -(-block.mul // choice.channels))
    kernel[grid](
        *tensors,
        num_items,
        x_length=frame.irreps.dim,
        y_length=frame.dim,
        start=block.start,
        mul=block.mul,
        **{f"column_{i}": column for i, column in enumerate(block.columns)},
        EDGES=choice.edges,
        CHANNELS=choice.channels,
        num_warps=choice.num_warps,
        num_stages=1,
    )
