"""Features [nodes, (lmax + 1)^2, channels]: as many channels of every degree, layout "ir_mul"."""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.irreps import Irreps

__all__ = ["degrees", "irreps"]


def degrees(lmax: int) -> Tensor:
    """The degree l of each of the (lmax + 1)^2 components."""
    return torch.tensor([l for l in range(lmax + 1) for _ in range(2 * l + 1)])


def irreps(lmax: int, channels: int) -> Irreps:
    """Channels of every degree; the linear maps mix no degrees, parities play no part."""
    return Irreps([(channels, (l, 1)) for l in range(lmax + 1)])
