"""The definition of radial factors and gates in the frames of edges, in plain torch.

The numbers of an edge are `channels` for every degree l = 0 ... lmax and order m up to the smaller
of l and m_max, ordered by m as in `eqtp.kernels.so2.FrameLayout`. An order's own tensor is
[E, signs, width] with signs = 2 (+m and -m) for m > 0 and 1 for m = 0, and width =
(lmax + 1 - m) channels, degrees from m on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["FrameSizes", "gate_orders", "scale_orders"]


@dataclass(frozen=True)
class FrameSizes:
    """Sizes of frames in which every degree has the same number of channels.

    Attributes:
        lmax: Largest degree.
        m_max: Largest order.
        channels: Channels of each degree.

    Example:
        >>> sizes = FrameSizes(lmax=3, m_max=2, channels=4)
        >>> sizes.widths, sizes.dim, sizes.radial_dim
        ([16, 12, 8], 56, 36)
    """

    lmax: int
    m_max: int
    channels: int

    @property
    def widths(self) -> list[int]:
        """Columns of order m, for m = 0 ... m_max."""
        return [(self.lmax + 1 - m) * self.channels for m in range(self.m_max + 1)]

    @property
    def dim(self) -> int:
        """Numbers of an edge."""
        return 2 * self.radial_dim - self.widths[0]

    @property
    def radial_dim(self) -> int:
        """Numbers of an edge when +m and -m count once."""
        return sum(self.widths)

    @property
    def gates_dim(self) -> int:
        """Gates of an edge."""
        return self.lmax * self.channels


def scale_orders(y: Tensor, radial: Tensor, sizes: FrameSizes) -> list[Tensor]:
    """``z_+-m = y_+-m radial_m``: every order of y [E, dim] times its own part of the factors."""
    signs = [1] + [2] * sizes.m_max
    columns = [sign * width for sign, width in zip(signs, sizes.widths, strict=True)]
    return [
        part.unflatten(1, (sign, width)) * factor.unsqueeze(1)
        for part, factor, sign, width in zip(
            y.split(columns, 1), radial.split(sizes.widths, 1), signs, sizes.widths, strict=True
        )
    ]


def gate_orders(hidden: Sequence[Tensor], factor: Tensor, sizes: FrameSizes) -> list[Tensor]:
    """Activated scalars and gated degrees, times a factor [E] of the edge.

        z_00 = silu(h_00) factor,    z_lm = h_lm sigmoid(gate_l) factor   for l > 0

    The order 0 of `hidden` is [E, 1, width + gates_dim]: its last columns are the gates, one for
    each degree from 1 on and channel.
    """
    channels = sizes.channels
    zeros, *others = hidden
    scalars, rest, gates = zeros.squeeze(1).split(
        [channels, sizes.gates_dim, sizes.gates_dim], dim=1
    )
    gates = gates.sigmoid() * factor[:, None]
    out = [torch.cat([silu(scalars) * factor[:, None], rest * gates], 1).unsqueeze(1)]
    for m, h in enumerate(others, 1):
        out.append(h * gates[:, (m - 1) * channels :].unsqueeze(1))
    return out
