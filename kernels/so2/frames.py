"""Frames in which an edge is the polar axis +y: the order of their numbers, and their rotations.

A rotation that takes the edge (x, y, z) to +y is a turn about y and one about x,

    R = R_x(-b) R_y(-a),   cos b = y / r,        sin b = hypot(x, z) / r,
                           cos a = z / hypot(x, z),   sin a = x / hypot(x, z),

with a = 0 where x = z = 0. No angle is ever made: cosines and sines are divisions, those of the
multiples follow by adding angles. On numbers of degree l a turn about y by t is two-sparse,

    (Z(t) x)_m = cos(m t) x_m - sin(m t) x_-m,

and a turn about x is J Z(t) J with the constant J of the half turn that exchanges x and y. So
D(R) = J Z(-b) J Z(-a): as exact at the poles as elsewhere, where acos and atan2 lose half of the
digits and their gradients are not finite. The jump of the roll about the edge from one pole's
neighbour to the next means nothing to whatever commutes with rolls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.irreps import Irreps
from eqtp.so3 import wigner_3j, wigner_D

__all__ = ["Block", "FrameLayout", "Turns", "aligning_turns", "exchange", "generators"]


class Block(NamedTuple):
    """One block of irreps and its place in the frame.

    Attributes:
        l: Degree.
        mul: Channels.
        start: First column in the features.
        m_max: Largest order that the frame keeps of it.
        columns: First column in the frame of the orders -m_max, ..., m_max.
    """

    l: int
    mul: int
    start: int
    m_max: int
    columns: tuple[int, ...]


@dataclass(frozen=True)
class FrameLayout:
    """Where the numbers of rotated features stand: orders m slowest, then degrees, then channels.

    First the numbers of order 0, for every block of the irreps its channels; then for
    m = 1, ..., m_max the numbers of order +m of every block with l >= m, and those of order -m.
    Orders above m_max are left out.

    Attributes:
        irreps: The features' irreps; parities play no part.
        m_max: Largest order that is kept.

    Raises:
        ValueError: m_max is negative or above the largest degree.

    Example:
        >>> frame = FrameLayout.of("2x0e+1x1o+1x2e", m_max=1)
        >>> frame.dim, frame.columns(0), frame.columns(1), frame.columns(-1)
        (8, slice(0, 4, None), slice(4, 6, None), slice(6, 8, None))
    """

    irreps: Irreps
    m_max: int

    @classmethod
    def of(cls, irreps: Irreps | str, m_max: int | None = None) -> FrameLayout:
        """The frame of some irreps; every order when m_max is None."""
        irreps = Irreps(irreps)
        return cls(irreps, _lmax(irreps) if m_max is None else m_max)

    def __post_init__(self) -> None:
        if not 0 <= self.m_max <= self.lmax:
            raise ValueError(
                f"m_max must be from 0 to the largest degree {self.lmax} of irreps="
                f"'{self.irreps}', got {self.m_max}"
            )

    @property
    @constant_when_compiled
    def lmax(self) -> int:
        """The largest degree."""
        return _lmax(self.irreps)

    @property
    @constant_when_compiled
    def dim(self) -> int:
        """Number of columns."""
        return sum(self.widths)

    @constant_when_compiled
    def width(self, m: int) -> int:
        """Number of columns of order m, which order -m has too."""
        return sum(int(mul) for mul, ir in self.irreps if ir.l >= abs(m))

    @property
    @constant_when_compiled
    def widths(self) -> list[int]:
        """Number of columns of the orders 0, +-1, ..., +-m_max together; they follow each other."""
        return [self.width(0), *(2 * self.width(m) for m in range(1, self.m_max + 1))]

    @property
    @constant_when_compiled
    def scale_numel(self) -> int:
        """Number of columns of the orders m >= 0."""
        return sum(self.width(m) for m in range(self.m_max + 1))

    def columns(self, m: int) -> slice:
        """The columns of order m."""
        if abs(m) > self.m_max:
            raise ValueError(f"the frame keeps orders up to {self.m_max}, got m = {m}")
        start = sum(self.widths[: abs(m)]) + (self.width(m) if m < 0 else 0)
        return slice(start, start + self.width(m))

    def slices(self, m: int) -> tuple[slice, ...]:
        """The columns of the orders +m and -m; of order 0 alone for m = 0."""
        return (self.columns(m), self.columns(-m)) if m else (self.columns(0),)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block that has channels."""
        starts = {m: self.columns(m).start for m in range(-self.m_max, self.m_max + 1)}
        blocks = []
        for (mul, ir), columns in zip(self.irreps, self.irreps.slices(), strict=True):
            top = min(ir.l, self.m_max)
            if mul:
                places = tuple(starts[m] for m in range(-top, top + 1))
                blocks.append(Block(ir.l, mul, columns.start, top, places))
            for m in range(-top, top + 1):
                starts[m] += mul
        return tuple(blocks)

    @cached_property
    def text(self) -> str:
        """The layout as a text; `of_text` is its inverse."""
        return f"{self.irreps}|{self.m_max}"

    @classmethod
    def of_text(cls, text: str) -> FrameLayout:
        """The layout of a text."""
        return _of_text(text)


@lru_cache(maxsize=1024)
def _of_text(text: str) -> FrameLayout:
    irreps, m_max = text.split("|")
    return FrameLayout(Irreps(irreps), int(m_max))


def _lmax(irreps: Irreps) -> int:
    return max((ir.l for _, ir in irreps), default=0)


class Turns(NamedTuple):
    """Cosines and sines of the multiples 0, ..., lmax of a and b, each [E, lmax + 1].

    Where the vector is zero those of b are all zero, order 0 too: only degree 0 passes.
    """

    cos_a: Tensor
    sin_a: Tensor
    cos_b: Tensor
    sin_b: Tensor


def aligning_turns(vectors: Tensor, lmax: int) -> Turns:
    """Turns that take vectors [E, 3] to +y; not to be differentiated."""
    x, y, z = vectors.unbind(-1)
    sin_a, cos_a, across = _unit(x, z)
    sin_b, cos_b, length = _unit(across, y)
    cos_a, sin_a = _multiples(cos_a, sin_a, lmax)
    cos_b, sin_b = _multiples(cos_b, sin_b, lmax)
    has_direction = (length > 0)[:, None].to(vectors)
    return Turns(cos_a, sin_a, cos_b * has_direction, sin_b * has_direction)


def _unit(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of h = hypot(u, v): u / h, v / h, h; 0, 1, 0 where h is zero. No square underflows."""
    scale = torch.maximum(u.abs(), v.abs())
    divisor = torch.where(scale > 0, scale, 1)
    u, v = u / divisor, torch.where(scale > 0, v / divisor, 1)
    length = (u * u + v * v).sqrt()
    return u / length, v / length, scale * length


def _multiples(cos: Tensor, sin: Tensor, lmax: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 0, 1, ..., lmax times an angle, by adding angles."""
    cosines, sines = [torch.ones_like(cos)], [torch.zeros_like(sin)]
    for _ in range(lmax):
        c, s = cosines[-1], sines[-1]
        cosines.append(c * cos - s * sin)
        sines.append(s * cos + c * sin)
    return torch.stack(cosines, -1), torch.stack(sines, -1)


@cache
@torch.inference_mode(False)  # cached tensors must serve later calls that record gradients
def exchange(l: int) -> Tensor:
    """J, the half turn about (1, 1, 0) of degree l: symmetric, its own inverse, float64."""
    half_turn = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.float64)
    matrix = wigner_D(l, half_turn)
    return torch.where(matrix.abs() < 1e-13, 0, matrix)


@cache
@torch.inference_mode(False)
def generators(l: int) -> Tensor:
    """G [3, 2l+1, 2l+1], float64: D(turn by |w| about w) = exp(sum_k w_k G_k).

    They are sqrt(l (l + 1) (2l + 1)) w3j(1, l, l) up to a sign, which the turn about y decides:
    there (G x)_m = -m x_-m.
    """
    if l == 0:
        return torch.zeros(3, 1, 1, dtype=torch.float64)
    matrices = wigner_3j(1, l, l) * (l * (l + 1) * (2 * l + 1)) ** 0.5
    signed: Tensor = matrices * -matrices[1, l + 1, l - 1].sign()
    return signed
