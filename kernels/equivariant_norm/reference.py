"""The definition of the equivariant norm in plain torch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["degrees", "equivariant_norm"]


def equivariant_norm(
    x: Tensor, gain: Tensor, bias: Tensor, eps: float, activation: bool = False
) -> Tensor:
    """``out_lmc = gain_lc x_lmc / sqrt(mean_l mean_m mean_c x_lmc^2 + eps) + bias_c [l = 0]``.

    The mean over the channels is taken off the scalars (l = 0) first. x is
    [rows, (lmax + 1)^2, channels], gain [lmax + 1, channels]; with `activation` the scalars are
    followed by SiLU.
    """
    lmax, channels = len(gain) - 1, x.shape[2]
    scalars, others = x.split([1, x.shape[1] - 1], dim=1)
    x = torch.cat([scalars - scalars.mean(2, keepdim=True), others], dim=1)
    index, share = _constants(lmax, channels, x.dtype, x.device)
    mean_square = x.square().sum(2) @ share
    x = x * (mean_square + eps).rsqrt()[:, None, None]
    x = x * gain.index_select(0, index)
    scalars, others = x.split([1, x.shape[1] - 1], dim=1)
    scalars = scalars + bias
    return torch.cat([silu(scalars) if activation else scalars, others], dim=1)


def degrees(lmax: int) -> Tensor:
    """The degree l of each of the (lmax + 1)^2 components."""
    return torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])


@lru_cache
@torch.inference_mode(False)  # kept tensors must serve later calls that record gradients
def _constants(
    lmax: int, channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The components' degrees, and what the square of each counts."""
    index = degrees(lmax)
    share = 1 / ((lmax + 1) * (2 * index + 1) * channels).double()
    return index.to(device), share.to(device, dtype)
