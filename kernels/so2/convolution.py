"""Convolutions in edge frames: rotate, map order by order, rotate back, sum at the receivers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.kernels.so2.op import rotate_from_edge, rotate_to_edge, so2_linear
from eqtp.layout import Layout

__all__ = ["scaled", "so2_convolution"]


def so2_convolution(
    x: Float[Tensor, "num_src dim_in"],
    vectors: Float[Tensor, "num_edges 3"],
    weights: Sequence[Tensor],
    frame_in: FrameLayout,
    frame_out: FrameLayout,
    *,
    graph: Graph | None = None,
    scale: Float[Tensor, "num_edges scale_numel"] | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_dst dim_out"]:
    """Messages S_e = D(R_e)^T S D(R_e) x[src(e)], summed at the receivers.

    Exact derivatives of any order in every operand; see `rotate_to_edge`.

    Args:
        x: Features, or the rows themselves when there is no graph.
        vectors: Edge vectors of any length.
        weights: The matrices of S, as `so2_linear` takes them, or with a leading dimension one set
            per edge.
        frame_in: Order of the rotated features.
        frame_out: Order of the messages before they are rotated back.
        graph: Edges.
        scale: Factors of the rotated features, one per edge, order m >= 0, block and channel: for
            m = 0, ..., m_max the width(m) numbers of that order; the same for +m and -m.
        layout: Layout of x and of the result.
        backend: See `eqtp.backend`.
    """
    y = rotate_to_edge(
        x,
        vectors,
        frame_in.irreps,
        m_max=frame_in.m_max,
        graph=graph,
        layout=layout,
        backend=backend,
    )
    if scale is not None:
        y = scaled(y, scale, frame_in)
    y = so2_linear(y, weights, frame_in, frame_out)
    return rotate_from_edge(
        y,
        vectors,
        frame_out.irreps,
        m_max=frame_out.m_max,
        graph=graph,
        layout=layout,
        backend=backend,
    )


def scaled(
    y: Float[Tensor, "num_edges dim_frame"],
    scale: Float[Tensor, "num_edges scale_numel"],
    frame: FrameLayout,
) -> Float[Tensor, "num_edges dim_frame"]:
    """Numbers of a frame times factors that +m and -m share.

    Raises:
        ValueError: The shape of scale does not fit.
    """
    if scale.shape != (len(y), frame.scale_numel):
        raise ValueError(
            f"scale must have shape ({len(y)}, {frame.scale_numel}): a factor per edge, order "
            f"m >= 0, block with l >= m and channel, got {tuple(scale.shape)}"
        )
    first, *others = scale.split([frame.width(m) for m in range(frame.m_max + 1)], 1)
    return y * torch.cat([first, *(part for other in others for part in (other, other))], 1)
