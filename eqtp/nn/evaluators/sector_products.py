"""From features to the operands of products by sector, and back: what separable methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.layout import Layout

from .separable import SeparableWeights
from .sphere_functions import Sector, distribute

__all__ = ["multiply_sectors"]


def multiply_sectors(
    weights: SeparableWeights,
    sectors: Sequence[Sector],
    product: Callable[[Tensor, Tensor, Sector], Tensor],
    x1: Tensor,
    x2: Tensor,
    weight: Tensor | None,
    graph: Graph | None,
    layout: Layout,
) -> Tensor:
    """The product of every sector; gathered and summed at nodes as early and late as can be.

    Args:
        weights: The separable weights and the scales.
        sectors: The products.
        product: Computes one of operands [rows, dim, channels], one of which may have one channel.
        x1: [rows, dim1]; with a graph [num_src, dim1].
        x2: [rows, dim2]; with a graph one row per edge.
        weight: Flat, shared or one row per row of x2; None without weights.
        graph: Message passing.
        layout: Memory order of x1, x2 and the result.
    """
    shared = weight is None or weight.ndim == 1
    a, b, c = (None, None, None) if weight is None else weights.split(weight)
    muls = tuple(mul for mul, _ in weights.problem.irreps_out)
    scales = _by_channel(weights.scales, muls, x1.dtype, x1.device)
    factors = scales[None] if c is None else c * scales
    if graph is not None and not shared:
        x1 = x1.index_select(0, graph.edge_src)
    results = []
    for sector in sectors:
        first = sector.first.assemble(x1, a, layout)
        second = sector.second.assemble(x2, b, layout)
        if graph is not None and shared:
            first = first.index_select(0, graph.edge_src)
        if sector.mode == "uvuv":
            first, second = _outer(first, second, weights.passes)
        elif weights.passes > 1 and first.shape[2] != second.shape[2]:
            first, second = _same_channels(first, second, weights.passes)
        parts = product(first, second, sector)
        if graph is not None and shared:
            parts = _sum_at_receivers(parts, graph)
        results.append((sector, parts))
    out = distribute(results, factors, weights.problem.irreps_out, layout)
    return out if graph is None or shared else _sum_at_receivers(out, graph)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # the kept tensor must serve later calls that record gradients
def _by_channel(
    scales: tuple[float, ...], muls: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The constant of every channel of every block."""
    values = torch.tensor(scales, dtype=torch.float64).repeat_interleave(torch.tensor(muls))
    return values.to(device, dtype)


def _outer(first: Tensor, second: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Every channel of the first with every one of the second, pass by pass."""
    channels = first.shape[2] // passes, second.shape[2] // passes
    a = first.unflatten(2, (passes, channels[0], 1))
    b = second.unflatten(2, (passes, 1, channels[1]))
    a = a.expand(-1, -1, -1, *channels)
    b = b.expand(-1, -1, -1, *channels)
    return a.flatten(2), b.flatten(2)


def _same_channels(first: Tensor, second: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Functions of one channel per pass, repeated for the other's channels."""
    channels = max(first.shape[2], second.shape[2]) // passes
    a, b = (
        x.unflatten(2, (passes, x.shape[2] // passes)).expand(-1, -1, -1, channels)
        for x in (first, second)
    )
    return a.flatten(2), b.flatten(2)


def _sum_at_receivers(rows: Tensor, graph: Graph) -> Tensor:
    return rows.new_zeros(graph.num_dst, *rows.shape[1:]).index_add(0, graph.edge_dst, rows)
