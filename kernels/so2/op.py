"""Rotations to and from the frames of edges, and the linear maps inside. Definition: reference.py.

An equivariant map of features x and a direction r is a map that commutes with turns about +y, in a
frame where r points along +y: rotate, map, rotate back. Everything that commutes with those turns
will do; the linear maps are `so2_linear`. Passaro and Zitnick, "Reducing SO(3) convolutions to
SO(2) for efficient equivariant GNNs", ICML 2023, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.so2 import _linear, _ops, reference
from eqtp.kernels.so2.config import MAX_DEGREE
from eqtp.kernels.so2.edges import sides_of
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.layout import Layout, to_layout
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest

__all__ = [
    "IMPLEMENTED",
    "check_features",
    "check_scale",
    "check_weights",
    "choose",
    "rotate_from_edge",
    "rotate_to_edge",
    "scaled",
    "so2_linear",
    "why_not",
]

IMPLEMENTED = ("triton", "cpu", "torch", "reference")


def rotate_to_edge(
    x: Float[Tensor, "num_src dim"],
    vectors: Float[Tensor, "num_edges 3"],
    irreps: Irreps | str,
    *,
    m_max: int | None = None,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_edges dim_frame"]:
    """Features of the senders in the frames where their edges point along +y.

        y[e] = D(R_e) x[src(e)],    R_e r_e = |r_e| (0, 1, 0)

    The roll of the frame about the edge is arbitrary (it jumps where a direction passes a pole),
    and derivatives in `vectors` are those at a fixed roll. So the result by itself is neither
    equivariant nor has it exact derivatives in `vectors`; what is made of it by maps that commute
    with rolls and `rotate_from_edge` is equivariant and has exact derivatives of any order,
    directions along the poles included. Such maps: `so2_linear`, scaling (+m, -m) by the same
    invariant, any function of the m = 0 numbers.

    A zero vector has no direction: every number of degree > 0 becomes zero, degree 0 passes, and
    the gradient in the vector is zero.

    Args:
        x: Features, or the rows themselves when there is no graph.
        vectors: Edge vectors of any length, in the order x, y, z.
        irreps: Irreps of x; parities play no part.
        m_max: Largest order that is kept, at most the largest degree, which is the default.
        graph: Edges; x is taken at their senders.
        layout: Layout of x. The frame's own order is `FrameLayout`'s.
        backend: See `eqtp.backend`.

    Returns:
        Columns as `FrameLayout.of(irreps, m_max)`.

    Raises:
        ValueError: Shapes disagree with the irreps or the graph.
        TypeError: The dtypes or devices differ.

    Example:
        >>> x, vectors = torch.randn(5, 8), torch.randn(5, 3)
        >>> y = rotate_to_edge(x, vectors, "2x0e+2x1o", m_max=1)
        >>> torch.allclose(rotate_from_edge(y, vectors, "2x0e+2x1o", m_max=1), x, atol=1e-5)
        True
    """
    rotation = _rotation(irreps, m_max, backend, vectors.dtype, vectors.device.type)
    if is_autocast(vectors):
        x, vectors = widest((x, vectors))
    rows = len(vectors) if graph is None else graph.num_src
    check_features("x", x, rotation.dim, rows, vectors, graph)
    if rotation.kernel == "reference":
        frame = FrameLayout.of_text(rotation.frame)
        return reference.rotate_to_edge(x, vectors, frame, graph=graph, layout=layout)
    x = to_layout(x, irreps, layout, "ir_mul")
    where = (sides_of(graph), False, rotation.frame, rotation.kernel)
    return _ops.rotate(x, vectors, None, where)


def rotate_from_edge(
    y: Float[Tensor, "num_edges dim_frame"],
    vectors: Float[Tensor, "num_edges 3"],
    irreps: Irreps | str,
    *,
    m_max: int | None = None,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_dst dim"]:
    """The transpose of `rotate_to_edge`: numbers in frames of edges, summed at the receivers.

        x[n] = sum over edges e with dst(e) = n of D(R_e)^T y[e]

    Orders above m_max count as zero. Sums are made in a fixed order. The same remarks on rolls,
    derivatives and zero vectors hold.

    Args:
        y: Columns as `FrameLayout.of(irreps, m_max)`.
        vectors: Edge vectors of any length, in the order x, y, z.
        irreps: Irreps of the result.
        m_max: Largest order in y; the largest degree by default.
        graph: Edges; without them a row of the result per row of y.
        layout: Layout of the result.
        backend: See `eqtp.backend`.

    Raises:
        ValueError: Shapes disagree with the irreps or the graph.
        TypeError: The dtypes or devices differ.

    Example:
        >>> along_y = torch.tensor([[0.0, 1.0, 0.0]])
        >>> rotate_from_edge(torch.tensor([[1.0, 2.0, 3.0]]), along_y, "1x1o").tolist()
        [[3.0, 1.0, 2.0]]
    """
    rotation = _rotation(irreps, m_max, backend, vectors.dtype, vectors.device.type)
    if is_autocast(vectors):
        y, vectors = widest((y, vectors))
    check_features("y", y, rotation.frame_dim, len(vectors), vectors, graph)
    if rotation.kernel == "reference":
        frame = FrameLayout.of_text(rotation.frame)
        return reference.rotate_from_edge(y, vectors, frame, graph=graph, layout=layout)
    rows = len(vectors) if graph is None else graph.num_dst
    where = (sides_of(graph), True, rotation.frame, rotation.kernel)
    out = _ops.rotate_back(y, vectors, None, where, rows)
    return to_layout(out, irreps, "ir_mul", layout)


def so2_linear(
    y: Float[Tensor, "num_edges dim_in"],
    weights: Sequence[Tensor],
    frame_in: FrameLayout,
    frame_out: FrameLayout,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "num_edges dim_out"]:
    """Linear maps that commute with turns about +y, order by order.

        out_0 = y_0 A_0,    out_+m = y_+m A_m - y_-m B_m,    out_-m = y_+m B_m + y_-m A_m

    Args:
        y: Columns as `frame_in`.
        weights: For m = 0, ..., m_max a tensor [parts, frame_in.width(m), frame_out.width(m)]: A_m
            and B_m, or A_m alone where B_m is zero, as for m = 0 always. With a leading dimension
            [num_edges, ...], every edge's own.
        frame_in: Order of y.
        frame_out: Order of the result; its m_max must be that of frame_in.
        backend: See `eqtp.backend`. Triton multiplies float32 on tensor cores, by three products of
            TF32 numbers, or by one where `torch.set_float32_matmul_precision` allows it; weights
            per edge and other dtypes are torch's products everywhere.

    Raises:
        ValueError: Frames or shapes disagree.
        TypeError: The dtypes or devices differ.

    Example:
        >>> frame = FrameLayout.of("2x0e+2x1o")
        >>> weights = [torch.randn(1, 4, 4), torch.randn(2, 2, 2)]
        >>> so2_linear(torch.randn(7, 8), weights, frame, frame).shape
        torch.Size([7, 8])
    """
    check_weights(len(y), weights, frame_in, frame_out)
    check_alike(y=y, **{f"weights[{m}]": weight for m, weight in enumerate(weights)})
    if y.shape[1:] != (frame_in.dim,):
        raise ValueError(f"y must have {frame_in.dim} columns, got shape {tuple(y.shape)}")
    kernel = choose(frame_in, backend, y.dtype, y.device.type)
    if _has_kernel(kernel, y, weights):
        parts = tuple(len(weight) for weight in weights)
        return _linear.linear(y, weights, _linear.Where(frame_in, frame_out, parts, kernel))
    outs = []
    columns = y.split(frame_in.widths, dim=1)
    for m, (part, weight) in enumerate(zip(columns, weights, strict=True)):
        matrix = _matrix(weight, m)
        outs.append(part @ matrix if matrix.ndim == 2 else (part[:, None] @ matrix)[:, 0])
    return torch.cat(outs, 1)


def scaled(
    y: Float[Tensor, "num_edges dim_frame"],
    scale: Float[Tensor, "num_edges scale_numel"],
    frame: FrameLayout,
) -> Float[Tensor, "num_edges dim_frame"]:
    """Numbers of a frame times factors that +m and -m share.

    Raises:
        ValueError: The shape of scale does not fit.
    """
    check_scale(len(y), scale, frame)
    first, *others = scale.split([frame.width(m) for m in range(frame.m_max + 1)], 1)
    return y * torch.cat([first, *(part for other in others for part in (other, other))], 1)


def _has_kernel(backend: str, y: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether a backend has kernels for these, outside of what only torch's ops know."""
    dtypes = {"triton": {torch.float32}, "cpu": {torch.float32, torch.float64}}
    return (
        y.dtype in dtypes.get(backend, set())
        and all(weight.ndim == 3 and weight.dtype == y.dtype for weight in weights)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not is_autocast(y)
    )


def _matrix(weight: Tensor, m: int) -> Tensor:
    """What the numbers of the orders m and -m side by side are multiplied by."""
    a = weight[..., 0, :, :]
    if m == 0:
        return a
    b = weight[..., 1, :, :] if weight.shape[-3] > 1 else torch.zeros_like(a)
    return torch.cat([torch.cat([a, b], -1), torch.cat([-b, a], -1)], -2)


def check_weights(
    num_edges: int, weights: Sequence[Tensor], frame_in: FrameLayout, frame_out: FrameLayout
) -> None:
    """Refuses what `so2_linear` does not take.

    Raises:
        ValueError: Frames or shapes disagree.
    """
    if frame_in.m_max != frame_out.m_max or len(weights) != frame_in.m_max + 1:
        raise ValueError(
            "frame_in and frame_out must keep the same orders and weights must be one tensor per "
            f"order, got m_max {frame_in.m_max} and {frame_out.m_max} and {len(weights)} tensors"
        )
    for m, weight in enumerate(weights):
        shape = frame_in.width(m), frame_out.width(m)
        leading = weight.shape[:-3]
        fits = weight.ndim >= 3 and weight.shape[-2:] == shape and leading in ((), (num_edges,))
        if not fits or not 1 <= weight.shape[-3] <= 1 + (m > 0):
            raise ValueError(
                f"weights[{m}] must have shape ({'1' if m == 0 else '1 or 2'}, {shape[0]}, "
                f"{shape[1]}), per edge with {num_edges} in front, got {tuple(weight.shape)}"
            )


def check_scale(num_edges: int, scale: Tensor, frame: FrameLayout) -> None:
    """Refuses a scale whose shape does not fit.

    Raises:
        ValueError: The shape does not fit.
    """
    if scale.shape != (num_edges, frame.scale_numel):
        raise ValueError(
            f"scale must have shape ({num_edges}, {frame.scale_numel}): a factor per edge, order "
            f"m >= 0, block with l >= m and channel, got {tuple(scale.shape)}"
        )


class _Rotation(NamedTuple):
    """What a rotation needs to know.

    Attributes:
        frame: The frame as a text.
        dim: Columns of the features.
        frame_dim: Columns of the frame.
        kernel: The backend that computes it.
    """

    frame: str
    dim: int
    frame_dim: int
    kernel: str


@constant_when_compiled
def _rotation(
    irreps: Irreps | str, m_max: int | None, backend: Backend, dtype: torch.dtype, device: str
) -> _Rotation:
    frame = _frame(irreps, m_max)
    return _Rotation(frame.text, frame.irreps.dim, frame.dim, choose(frame, backend, dtype, device))


@lru_cache(maxsize=1024)
def _frame(irreps: Irreps | str, m_max: int | None) -> FrameLayout:
    return FrameLayout.of(irreps, m_max)


@constant_when_compiled
def choose(frame: FrameLayout, backend: Backend, dtype: torch.dtype, device: str) -> str:
    """The backend that computes a frame's rotations.

    Raises:
        NotImplementedError: The backend was asked for by name and cannot serve here.
    """
    return resolve(
        backend,
        family="so2",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: why_not(name, frame, dtype),
    ).backend


def why_not(backend: str, frame: FrameLayout, dtype: torch.dtype) -> str | None:
    """Why a backend cannot rotate; None where it can."""
    if backend == "cpu" and dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, got {dtype}"
    if backend == "cpu" and frame.lmax > MAX_DEGREE:
        return f"it computes up to degree {MAX_DEGREE}, got {frame.lmax}"
    obstacle = why_unavailable(backend)
    if backend == "triton" and obstacle is None:
        from eqtp.kernels.so2 import _triton  # only where it is going to be used

        obstacle = _triton.why_unsupported(frame, dtype)
    return obstacle


def check_features(
    name: str, x: Tensor, dim: int, rows: int, vectors: Tensor, graph: Graph | None
) -> None:
    """Refuses features and vectors that do not fit each other or the graph.

    Raises:
        ValueError: Shapes disagree.
        TypeError: The dtypes or devices differ.
    """
    if vectors.ndim != 2 or vectors.shape[1] != 3:
        raise ValueError(f"vectors must have shape (edges, 3), got {tuple(vectors.shape)}")
    if graph is not None and len(vectors) != graph.num_edges:
        raise ValueError(
            f"vectors must have one row per edge of the graph ({graph.num_edges}), "
            f"got {len(vectors)}"
        )
    if x.shape != (rows, dim):
        raise ValueError(f"{name} must have shape ({rows}, {dim}), got {tuple(x.shape)}")
    check_alike(**{name: x, "vectors": vectors})
    if graph is not None and graph.device != x.device:
        raise TypeError(f"{name} and graph must be on one device, got {x.device}, {graph.device}")
