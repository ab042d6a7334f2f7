"""Convolutions in edge frames: rotate, map order by order, rotate back, sum at the receivers."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.so2 import _fused
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.kernels.so2.op import (
    check_features,
    check_scale,
    check_weights,
    choose,
    rotate_from_edge,
    rotate_to_edge,
    scaled,
    so2_linear,
)
from eqtp.layout import Layout, to_layout
from eqtp.operands import check_alike

__all__ = ["so2_convolution"]


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
    """Messages D(R_e)^T S D(R_e) x[src(e)], summed at the receivers.

    Exact derivatives of any order in every operand; see `rotate_to_edge`. On CPUs it runs in chunks
    of edges whose frames stay in the cache (`_fused`); elsewhere it is the product of the ops.

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

    Raises:
        ValueError: Shapes disagree with the frames or the graph.
        TypeError: The dtypes or devices differ.
    """
    matrices = {f"weights[{m}]": weight for m, weight in enumerate(weights)}
    check_alike(x=x, vectors=vectors, scale=scale, **matrices)
    device, dtype = vectors.device.type, vectors.dtype
    kernel = choose(frame_in, backend, dtype, device), choose(frame_out, backend, dtype, device)
    if kernel == ("cpu", "cpu") and _fused.serves(
        [x, vectors, *weights, *([] if scale is None else [scale])]
    ):
        rows = len(vectors) if graph is None else graph.num_src
        check_features("x", x, frame_in.irreps.dim, rows, vectors, graph)
        check_weights(len(vectors), weights, frame_in, frame_out)
        if scale is not None:
            check_scale(len(vectors), scale, frame_in)
        if all(weight.ndim == 3 for weight in weights):
            x = to_layout(x, frame_in.irreps, layout, "ir_mul")
            out = _fused.convolution(x, vectors, scale, weights, frame_in, frame_out, graph)
            return to_layout(out, frame_out.irreps, "ir_mul", layout)
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
    y = so2_linear(y, weights, frame_in, frame_out, backend=backend)
    return rotate_from_edge(
        y,
        vectors,
        frame_out.irreps,
        m_max=frame_out.m_max,
        graph=graph,
        layout=layout,
        backend=backend,
    )
