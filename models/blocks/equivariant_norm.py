"""Normalisation that commutes with rotations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.kernels.equivariant_norm import equivariant_norm

__all__ = ["EquivariantRMSNorm"]


class EquivariantRMSNorm(nn.Module):
    """Features over their root mean square, in which every degree counts the same.

        x_0 <- x_0 - mean_c(x_0)
        rms^2 = mean_l mean_m mean_c x_lmc^2
        out_lmc = gain_lc x_lmc / sqrt(rms^2 + eps) + bias_c [l = 0]

    Source: eSCN-MD's `rms_norm_sh` (arXiv 2502.12147).

    Args:
        lmax: Largest degree.
        channels: Channels.
        eps: Added to the mean square.

    Example:
        >>> EquivariantRMSNorm(2, 4)(torch.randn(5, 9, 4)).shape
        torch.Size([5, 9, 4])
    """

    def __init__(self, lmax: int, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(lmax + 1, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "nodes components channels"]
    ) -> Float[Tensor, "nodes components channels"]:
        """Normalises each node's features."""
        return equivariant_norm(x, self.gain, self.bias, eps=self.eps)
