"""Messages made in the frames of edges: SO(2) convolution, gate, SO(2) convolution."""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.frame_gate import FrameSizes, gate_orders, scale_orders
from eqtp.kernels.so2 import rotate_from_edge, rotate_to_edge
from eqtp.layout import Layout
from eqtp.models.blocks.spherical_features import irreps
from eqtp.nn import Linear

__all__ = ["EdgeConvolution"]


class _Rotation(TypedDict):
    m_max: int
    layout: Layout
    backend: Backend


class EdgeConvolution(nn.Module):
    """Messages from the features of both ends of an edge, summed at the receiver.

        y = radial * D (U x_sender + V x_receiver)  in the frame of the edge, orders up to m_max
        h = gate(SO2_1 y)                           silu of scalars, sigmoid gates on degrees > 0
        message = D^T SO2_2(h) envelope,            out = W sum(messages) / sqrt(avg_num_neighbors)

    An SO(2) convolution mixes, order by order, all degrees and channels,

        out_0 = A_0 y_0,   out_+m = A_m y_+m - B_m y_-m,   out_-m = B_m y_+m + A_m y_-m

    and the radial numbers multiply its inputs, one for each |m|, degree and channel. With `parity`
    every B_m is zero: features of degree l then have the parity (-1)^l. Frames stay ordered by m
    from one rotation to the other.

    U, V and W mix channels of nodes, of which there are far fewer than edges: they make the
    `hidden_channels` that edges work with from the features' `channels`, and both ends add up
    before the first map, which in eSCN-MD takes twice as many numbers.

    A result of degree l has orders up to l only, which nothing but the same orders of h and the
    gates, of order 0, reaches: orders above `lmax_out` are left out of the frames.

    Source: Passaro and Zitnick, ICML 2023, and eSCN-MD (arXiv 2502.12147).

    Args:
        lmax: Largest degree of the features.
        lmax_out: Largest degree of the result.
        m_max: Largest order in the frames.
        channels: Channels of the features.
        hidden_channels: Channels of the edges.
        avg_num_neighbors: Mean number of messages per node.
        parity: Whether the map commutes with inversion as well.
        backend: Which kernels rotate.
    """

    def __init__(
        self,
        lmax: int,
        lmax_out: int,
        m_max: int,
        channels: int,
        hidden_channels: int,
        *,
        avg_num_neighbors: float,
        parity: bool,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.m_max = m_max = min(m_max, lmax_out)
        self.hidden_channels = hidden_channels
        self.backend: Backend = backend
        self.scale = avg_num_neighbors**-0.5
        self.irreps_in = str(irreps(lmax, hidden_channels))  # printed once, not with every call
        self.irreps_out = str(irreps(lmax_out, hidden_channels))
        self.sizes = FrameSizes(lmax, m_max, hidden_channels)
        both = irreps(lmax, 2 * hidden_channels)
        self.linear_up = Linear(irreps(lmax, channels), both, layout="ir_mul")
        down = irreps(lmax_out, channels)
        self.linear_down = Linear(self.irreps_out, down, layout="ir_mul")
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        for m, width in enumerate(self.sizes.widths):
            parts = 1 if parity or m == 0 else 2
            gates = 0 if m else self.sizes.gates_dim
            self.first.append(torch.randn(parts, width, width + gates))
            self.second.append(torch.randn(parts, width, (lmax_out + 1 - m) * hidden_channels))

    @property
    def radial_size(self) -> int:
        """How many radial numbers an edge needs."""
        return self.sizes.radial_dim

    def forward(
        self,
        x: Float[Tensor, "nodes components channels"],
        vectors: Float[Tensor, "edges 3"],
        radial: Float[Tensor, "edges radial_size"],
        envelope: Float[Tensor, " edges"],
        graph: Graph,
        reverse: Graph,
    ) -> Float[Tensor, "nodes components_out channels"]:
        """The summed messages.

        Args:
            x: Features in layout "ir_mul".
            vectors: Edge vectors from sender to receiver.
            radial: Factors of the inputs: for each m and degree, its channels.
            envelope: Factor of the messages, smooth where edges vanish.
            graph: The edges.
            reverse: The same edges with the ends exchanged.
        """
        rotation = _Rotation(m_max=self.m_max, layout="ir_mul", backend=self.backend)
        both: Tensor = self.linear_up(x.flatten(1))
        ends = both.view(len(x), -1, 2, self.hidden_channels).unbind(2)
        sender, receiver = (
            rotate_to_edge(end.flatten(1), vectors, self.irreps_in, graph=side, **rotation)
            for end, side in zip(ends, (graph, reverse), strict=True)
        )
        orders = scale_orders(sender + receiver, radial, self.sizes)
        hidden = [_mix(y, weight) for y, weight in zip(orders, self.first, strict=True)]
        gated = gate_orders(hidden, envelope * self.scale, self.sizes)
        message = [_mix(h, weight) for h, weight in zip(gated, self.second, strict=True)]
        joined = torch.cat([part.flatten(1) for part in message], 1)
        summed = rotate_from_edge(joined, vectors, self.irreps_out, graph=graph, **rotation)
        out: Tensor = self.linear_down(summed)
        return out.view(len(x), -1, x.shape[2])


def _mix(y: Tensor, weight: Tensor) -> Tensor:
    """The SO(2) convolution of one order: y [E, orders, width], weight [parts, width, width_out].

    Normalised so that unit weights and inputs give unit results.
    """
    parts, width, out = weight.shape
    weight = weight * (parts * width) ** -0.5
    if parts == 1:
        return (y.flatten(0, 1) @ weight[0]).view(*y.shape[:2], out)
    a, b = weight
    matrix = torch.cat([torch.cat([a, b], 1), torch.cat([-b, a], 1)], 0)
    return (y.flatten(1) @ matrix).view(len(y), 2, out)
