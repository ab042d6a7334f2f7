"""eSCN in plain PyTorch, as its public implementations do it: for `benchmarks.so2_convolution`.

A Wigner matrix of all degrees per edge from Euler angles (D = Z(a) J Z(b) J, e3nn 0.4), stored and
differentiated by autograd; rotation by a batched product; numbers reordered by m; one linear map
per order with real and imaginary weights; rotation back by the transpose; `index_add` at receivers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eqtp.kernels.so2.frames import exchange

__all__ = ["PlainESCN"]


class PlainESCN:
    """The convolution of features [nodes, (lmax + 1)^2, channels] of one multiplicity.

    Args:
        lmax: Largest degree, all orders are kept.
        weights: A_0 [1, ...] and (A_m, B_m) [2, ...], as `eqtp.kernels.so2.so2_linear` has them.
        dtype: Arithmetic type.
    """

    def __init__(self, lmax: int, dtype: torch.dtype) -> None:
        self.lmax = lmax
        self.j = [exchange(l).to(dtype) for l in range(lmax + 1)]
        by_m = [[l * l + l for l in range(lmax + 1)]]
        for m in range(1, lmax + 1):
            by_m.append([l * l + l + m for l in range(m, lmax + 1)])
            by_m.append([l * l + l - m for l in range(m, lmax + 1)])
        self.to_m = torch.tensor([index for order in by_m for index in order])
        self.from_m = torch.argsort(self.to_m)

    def __call__(
        self, x: Tensor, vectors: Tensor, weights: Sequence[Tensor], src: Tensor, dst: Tensor
    ) -> Tensor:
        """The messages, summed at the receivers."""
        wigner = self.wigner(vectors)
        y = torch.bmm(wigner, x.index_select(0, src)).index_select(1, self.to_m)
        channels, start, outs = x.shape[2], 0, []
        for m, weight in enumerate(weights):
            count = self.lmax + 1 - m
            if m == 0:
                out = y[:, :count].flatten(1) @ weight[0]
                outs.append(out.unflatten(1, (count, channels)))
                start += count
                continue
            pair = y[:, start : start + 2 * count].unflatten(1, (2, count)).flatten(2)
            both = pair @ torch.cat([weight[0], weight[1]], 1)  # [E, 2, real and imaginary]
            real, imaginary = both.split(count * channels, 2)
            plus = real[:, 0] - imaginary[:, 1]
            minus = real[:, 1] + imaginary[:, 0]
            outs += [part.unflatten(1, (count, channels)) for part in (plus, minus)]
            start += 2 * count
        message = torch.cat(outs, 1).index_select(1, self.from_m)
        message = torch.bmm(wigner.transpose(1, 2), message)
        return torch.zeros_like(x).index_add(0, dst, message)

    def wigner(self, vectors: Tensor) -> Tensor:
        """Block-diagonal matrices [E, (lmax + 1)^2, (lmax + 1)^2] that take the vectors to +y."""
        x, y, z = torch.nn.functional.normalize(vectors, dim=1).unbind(1)
        b, a = torch.acos(y.clamp(-1, 1)), torch.atan2(x, z)
        size = (self.lmax + 1) ** 2
        matrix = vectors.new_zeros(len(vectors), size, size)
        for l, j in enumerate(self.j):
            block = slice(l * l, (l + 1) ** 2)
            matrix[:, block, block] = j @ _z(-b, l) @ j @ _z(-a, l)
        return matrix


def _z(angle: Tensor, l: int) -> Tensor:
    """The turn about y, [E, 2l+1, 2l+1]."""
    matrix = angle.new_zeros(len(angle), 2 * l + 1, 2 * l + 1)
    rows = torch.arange(2 * l + 1)
    orders = torch.arange(-l, l + 1, dtype=angle.dtype)
    matrix[:, rows, 2 * l - rows] = torch.sin(-orders * angle[:, None])
    matrix[:, rows, rows] = torch.cos(orders * angle[:, None])
    return matrix
