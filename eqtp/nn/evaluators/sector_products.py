"""From features to the operands of products by sector, and back: what separable methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.graph import Graph
from eqtp.layout import Layout, to_layout
from eqtp.rows import gather_rows, sum_rows

from .separable import SeparableWeights
from .sphere_functions import Sector, distribute

__all__ = ["multiply_sectors"]

Weights = Tensor | None
"""Of a function: per degree and channel, [rows or 1, degrees, channels]; None for 1."""


def multiply_sectors(
    weights: SeparableWeights,
    sectors: Sequence[Sector],
    product: Callable[[Tensor, Tensor, Sector], Tensor],
    x1: Tensor,
    x2: Tensor,
    weight: Tensor | None,
    graph: Graph | None,
    layout: Layout,
    fused: Callable[[Tensor, Tensor, Sector, Weights, Weights, Weights], Tensor] | None = None,
) -> Tensor:
    """The product of every sector, gathered at senders and summed at receivers.

    Args:
        weights: The separable weights and the scales.
        sectors: The products.
        product: Computes one of operands [rows, dim, channels], one of which may have one channel.
        x1: [rows, dim1]; with a graph [num_src, dim1].
        x2: [rows, dim2]; with a graph one row per edge.
        weight: Flat, shared or one row per row of x2; None without weights.
        graph: Message passing.
        layout: Memory order of x1, x2 and the result.
        fused: The same as `product` with weights of the operands and of the result, if it can.
    """
    shared = weight is None or weight.ndim == 1
    a, b, c = (None, None, None) if weight is None else weights.split(weight)
    scales = _scales(weights, x1.dtype, x1.device)
    factors = scales[None] if c is None else c * scales
    x1 = to_layout(x1, weights.problem.irreps_in1, layout, "ir_mul")
    x2 = to_layout(x2, weights.problem.irreps_in2, layout, "ir_mul")
    if graph is not None:
        x1 = gather_rows(x1, graph.edge_src)
    results = []
    for sector in sectors:
        first, of_first = sector.first.assemble(x1, a)
        second, of_second = sector.second.assemble(x2, b)
        blocks = sector.problem.blocks
        outer = sector.mode == "uvuv"
        if fused is None or outer or (weights.passes > 1 and first.shape[2] != second.shape[2]):
            first, of_first = _applied(first, of_first, blocks[0]), None
            second, of_second = _applied(second, of_second, blocks[1]), None
            first, second = _joined(first, second, weights.passes, outer=outer)
        of_result = None
        if sector.result.one_per_degree is not None and sector.mode != "uuw":
            of_result = sector.result.by_degree(factors)
        if fused is None:
            parts = _applied(product(first, second, sector), of_result, blocks[2])
        else:
            parts = fused(first, second, sector, of_first, of_second, of_result)
        if graph is not None and shared:
            parts = sum_rows(parts, graph.edge_dst, graph.num_dst)
        results.append((sector, parts))
    out = distribute(results, factors)
    if graph is not None and not shared:
        out = sum_rows(out, graph.edge_dst, graph.num_dst)
    return to_layout(out, weights.problem.irreps_out, "ir_mul", layout)


@constant_when_compiled
def _scales(weights: SeparableWeights, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The constant of every channel of the result."""
    return _by_channel(weights.scales, weights.multiplicities[2], dtype, device)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # the kept tensor must serve later calls that record gradients
def _by_channel(
    scales: tuple[float, ...], muls: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The constant of every channel of every block."""
    values = torch.tensor(scales, dtype=torch.float64).repeat_interleave(torch.tensor(muls))
    return values.to(device, dtype)


def _applied(parts: Tensor, weights: Weights, blocks: Tensor) -> Tensor:
    """Parts of a function times its weights, which are per degree."""
    return parts if weights is None else parts * weights[:, blocks.to(parts.device)]


def _joined(first: Tensor, second: Tensor, passes: int, *, outer: bool) -> tuple[Tensor, Tensor]:
    """Channels pass by pass: all pairs, or one channel with each of the other's."""
    if not outer and (passes == 1 or first.shape[2] == second.shape[2]):
        return first, second
    channels = first.shape[2] // passes, second.shape[2] // passes
    a, b = (x.unflatten(2, (passes, n)) for x, n in zip((first, second), channels, strict=True))
    if outer:
        a = a[..., :, None].expand(-1, -1, -1, *channels)
        b = b[..., None, :].expand(-1, -1, -1, *channels)
    else:
        a, b = (x.expand(-1, -1, -1, max(channels)) for x in (a, b))
    return a.flatten(2), b.flatten(2)
