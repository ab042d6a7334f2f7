"""Feed-forward networks of spherical features, node by node."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from eqtp.irreps import Irreps
from eqtp.kernels.equivariant_norm import degrees
from eqtp.models.blocks.spherical_features import irreps
from eqtp.nn import Linear
from eqtp.so3.sphere_grid import analysis_matrix, sphere_grid, synthesis_matrix

__all__ = ["GridFeedForward", "SpectralFeedForward"]


class SpectralFeedForward(nn.Module):
    """Linear map, gate, linear map.

        h = W_1 x;   h_0 <- silu(h_0),   h_l <- sigmoid(gate_l) h_l for l > 0;   out = W_2 h

    One gate per degree and channel, made by W_1 from the scalars.

    Args:
        lmax: Largest degree.
        channels: Channels of x and of the result.
        hidden_channels: Channels in between.

    Example:
        >>> SpectralFeedForward(2, 8, 16)(torch.randn(5, 9, 8)).shape
        torch.Size([5, 9, 8])
    """

    def __init__(self, lmax: int, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.lmax = lmax
        self.hidden_channels = hidden_channels
        features, hidden = irreps(lmax, channels), irreps(lmax, hidden_channels)
        scalars = Irreps([(hidden_channels * (lmax + 1), (0, 1))])
        self.linear_1 = Linear(features, scalars + hidden[1:], biases=True, layout="ir_mul")
        self.linear_2 = Linear(hidden, features, layout="ir_mul")
        self.register_buffer("gate", degrees(lmax)[1:] - 1, persistent=False)
        self.gate: Tensor

    def forward(
        self, x: Float[Tensor, "nodes components channels"]
    ) -> Float[Tensor, "nodes components channels"]:
        """The network."""
        out: Tensor = self.linear_2(self.hidden(x).flatten(1))
        return out.view_as(x)

    def hidden(
        self, x: Float[Tensor, "nodes components channels"]
    ) -> Float[Tensor, "nodes components hidden_channels"]:
        """The gated features."""
        size = self.hidden_channels
        h: Tensor = self.linear_1(x.flatten(1))
        scalars, gates, others = h.split(
            [size, size * self.lmax, h.shape[1] - size * (self.lmax + 1)], dim=1
        )
        others = others.unflatten(1, (-1, size)) if self.lmax else others.view(len(x), 0, size)
        gates = gates.sigmoid().view(len(x), self.lmax, size).index_select(1, self.gate)
        return torch.cat([silu(scalars)[:, None], others * gates], dim=1)


class GridFeedForward(SpectralFeedForward):
    """The gated features times another linear map of x, point by point on the sphere.

        out = W_2 P[ S[h] * S[W_3 x] ],   S: values on a grid,   P: back to degrees up to lmax

    eSEN's grid network (arXiv 2502.12147) acts on the values with a SiLU, which no finite grid
    resolves; a product is of degree 2 lmax, so that the smallest exact grid keeps the equivariance
    exact. It is a Gaunt tensor product of the features with themselves.

    Args:
        lmax: Largest degree.
        channels: Channels of x and of the result.
        hidden_channels: Channels in between.
    """

    def __init__(self, lmax: int, channels: int, hidden_channels: int) -> None:
        super().__init__(lmax, channels, hidden_channels)
        self.linear_3 = Linear(
            irreps(lmax, channels), irreps(lmax, hidden_channels), biases=True, layout="ir_mul"
        )
        grid, dtype = sphere_grid(3 * lmax), torch.get_default_dtype()
        # Values of features of unit variance have the mean square (lmax + 1)^2.
        values = synthesis_matrix(grid, lmax) / (lmax + 1)
        self.register_buffer("to_grid", values.to(dtype), persistent=False)
        back = analysis_matrix(grid, lmax) * (lmax + 1)
        self.register_buffer("from_grid", back.to(dtype), persistent=False)
        self.to_grid: Tensor
        self.from_grid: Tensor

    def hidden(
        self, x: Float[Tensor, "nodes components channels"]
    ) -> Float[Tensor, "nodes components hidden_channels"]:
        """The products."""
        factor = self.linear_3(x.flatten(1)).view(*x.shape[:2], self.hidden_channels)
        values = (self.to_grid @ super().hidden(x)) * (self.to_grid @ factor)
        products: Tensor = self.from_grid @ values
        return products
