"""Features [nodes, (lmax + 1)^2, channels]: as many channels of every degree, layout "ir_mul"."""

from __future__ import annotations

from eqtp.irreps import Irreps

__all__ = ["irreps"]


def irreps(lmax: int, channels: int) -> Irreps:
    """Channels of every degree; the linear maps mix no degrees, parities play no part."""
    return Irreps([(channels, (l, 1)) for l in range(lmax + 1)])
