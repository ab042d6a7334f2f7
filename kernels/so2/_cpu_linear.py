"""The linear maps of every order by torch's matrix products on columns where they are.

Orders +m and -m are three products instead of four, as complex numbers are multiplied:

    k = (y+ + y-) A,    out+ = k - y- (A + B),    out- = k + y+ (B - A)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.so2._linear import Where
from eqtp.kernels.so2.frames import FrameLayout

__all__ = ["Products", "WeightSums", "apply", "apply_back", "map_back", "map_frames", "orders"]


def map_frames(y: Tensor, weights: Sequence[Tensor], where: Where) -> Tensor:
    """The linear maps."""
    out = memory.empty(y, len(y), where.frame_out.dim)
    apply(y, out, [Products.of(weight) for weight in weights], where)
    return out


def map_back(g: Tensor, weights: Sequence[Tensor], where: Where) -> Tensor:
    """The gradient in y."""
    out = memory.empty(g, len(g), where.frame_in.dim)
    apply_back(g, out, [Products.of(weight) for weight in weights], where)
    return out


def weight_gradients(y: Tensor, g: Tensor, where: Where) -> list[Tensor]:
    """The gradients of the weights, order by order."""
    sums = WeightSums.zeros(y, where)
    for total, ys, gs in zip(
        sums, orders(y, where.frame_in), orders(g, where.frame_out), strict=True
    ):
        total.add(ys, gs)
    return [total.gradient() for total in sums]


@dataclass(frozen=True)
class Products:
    """The matrices of one order: A, and with B also A + B and B - A."""

    a: Tensor
    sum: Tensor | None
    difference: Tensor | None

    @classmethod
    def of(cls, weight: Tensor) -> Products:
        """Of a weight [parts, width in, width out]."""
        if len(weight) == 1:
            return cls(weight[0], None, None)
        a, b = weight.unbind()
        return cls(a, a + b, b - a)


def orders(y: Tensor, frame: FrameLayout) -> Iterator[list[Tensor]]:
    """The columns of the orders (0), (1, -1), (2, -2), ..."""
    for m in range(frame.m_max + 1):
        yield [y[:, columns] for columns in frame.slices(m)]


def apply(y: Tensor, out: Tensor, products: Sequence[Products], where: Where) -> None:
    """The linear maps of every order."""
    pairs = zip(orders(y, where.frame_in), orders(out, where.frame_out), products, strict=True)
    for ys, outs, p in pairs:
        if p.sum is None or p.difference is None:
            for source, target in zip(ys, outs, strict=True):
                torch.mm(source, p.a, out=target)
            continue
        torch.mm(ys[0] + ys[1], p.a, out=outs[0])
        outs[1].copy_(outs[0])
        outs[0].addmm_(ys[1], p.sum, alpha=-1)
        outs[1].addmm_(ys[0], p.difference)


def apply_back(g: Tensor, out: Tensor, products: Sequence[Products], where: Where) -> None:
    """The transposes: A^T in the place of A and -B^T in that of B."""
    pairs = zip(orders(g, where.frame_out), orders(out, where.frame_in), products, strict=True)
    for gs, outs, p in pairs:
        if p.sum is None or p.difference is None:
            for source, target in zip(gs, outs, strict=True):
                torch.mm(source, p.a.T, out=target)
            continue
        torch.mm(gs[0] + gs[1], p.a.T, out=outs[0])
        outs[1].copy_(outs[0])
        outs[0].addmm_(gs[1], p.difference.T)
        outs[1].addmm_(gs[0], p.sum.T, alpha=-1)


@dataclass
class WeightSums:
    """Sums over edges that make the gradient of one order's weight."""

    a: Tensor
    minus_plus: Tensor | None
    plus_minus: Tensor | None

    @classmethod
    def zeros(cls, like: Tensor, where: Where) -> list[WeightSums]:
        """Zeros for every order."""
        sums = []
        for m, parts in enumerate(where.parts):
            shape = where.frame_in.width(m), where.frame_out.width(m)
            zeros = [like.new_zeros(shape) for _ in range(3 if parts == 2 else 1)]
            sums.append(cls(*zeros, *[None] * (3 - len(zeros))))
        return sums

    def add(self, ys: Sequence[Tensor], gs: Sequence[Tensor]) -> None:
        """Adds the edges of a chunk."""
        if self.minus_plus is None or self.plus_minus is None:
            for y, g in zip(ys, gs, strict=True):
                self.a.addmm_(y.T, g)
            return
        self.a.addmm_((ys[0] + ys[1]).T, gs[0] + gs[1])
        self.minus_plus.addmm_(ys[1].T, gs[0])
        self.plus_minus.addmm_(ys[0].T, gs[1])

    def gradient(self) -> Tensor:
        """Like the weight."""
        if self.minus_plus is None or self.plus_minus is None:
            return self.a[None]
        a = self.a - self.minus_plus - self.plus_minus
        return torch.stack([a, self.plus_minus - self.minus_plus])
