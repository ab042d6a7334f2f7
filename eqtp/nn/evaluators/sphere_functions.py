"""Blocks of irreps as functions on the sphere, and back: what the Gaunt methods multiply.

Blocks of one operand make one function per channel, the sum of their harmonics. A product of
functions on the sphere knows degrees, not parities, and must not mix them: blocks whose parity is
(-1)^l ("natural") and the others are kept apart, or even ones and odd ones; natural irreps make one
function by the first rule, those of e3nn's "0e + 1e + 2e" by the second. Blocks of different
multiplicity are kept apart, too, unless the mode sums over it. A product of irreps is a sum of
products of such functions (`Sector`), one for each pair that has paths, even sums and odd sums
apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from eqtp.compiling import constant_property
from eqtp.irreps import Irreps
from eqtp.kernels.gaunt_grid import SphereProductProblem
from eqtp.methods import Method
from eqtp.problem import Mode, TensorProductProblem

__all__ = ["Function", "Sector", "distribute", "fits", "function_of", "missing_paths", "sectors_of"]

Key = tuple[bool, int]
"""Of a function: whether it is natural (or even), and its multiplicity; 0 where the mode sums over
it."""

_SUMMED: dict[Mode, tuple[bool, bool, bool]] = {
    "uvw": (True, True, True),
    "uvu": (False, True, False),
    "uvv": (True, False, False),
    "uuw": (False, False, True),
    "uuu": (False, False, False),
    "uvuv": (False, False, False),
}
"""Whether a mode sums over the multiplicities of x1, of x2, and has one channel before those of
the result."""


class Place(NamedTuple):
    """Where a block of an operand is.

    Attributes:
        start: Its first column.
        stop: The column after its last.
        dim: Components of a channel.
        mul: Channels.
        channel: Its first channel among those of all blocks.
    """

    start: int
    stop: int
    dim: int
    mul: int
    channel: int

    def columns(self, x: Tensor) -> Tensor:
        """Its columns of features."""
        return x[:, self.start : self.stop]

    def weights(self, factors: Tensor) -> Tensor:
        """Its weights of those of all channels, which are last."""
        return factors[..., self.channel : self.channel + self.mul]


@dataclass(frozen=True)
class Function:
    """Blocks of one operand as one function per channel, or of a result.

    Attributes:
        irreps: Irreps of the operand.
        blocks: Numbers of the blocks, by degree, ascending.
        summed: Whether all channels are summed into one.
    """

    irreps: Irreps
    blocks: tuple[tuple[int, ...], ...]
    summed: bool

    @constant_property
    def degrees(self) -> tuple[int, ...]:
        """The degrees of the function."""
        return tuple(self.irreps[blocks[0]].ir.l for blocks in self.blocks)

    @constant_property
    def places(self) -> tuple[Place, ...]:
        """Of all blocks of the operand."""
        places = []
        start = channel = 0
        for mul, ir in self.irreps:
            places.append(Place(start, start + mul * ir.dim, ir.dim, mul, channel))
            start += mul * ir.dim
            channel += mul
        return tuple(places)

    @constant_property
    def one_per_degree(self) -> tuple[int, ...] | None:
        """The blocks where every degree has one, so that weights are per degree; else None."""
        single = all(len(blocks) == 1 for blocks in self.blocks)
        numbers = tuple(block for blocks in self.blocks for block in blocks)
        summed = self.summed and any(self.irreps[block].mul != 1 for block in numbers)
        return numbers if single and not summed else None

    @constant_property
    def is_whole(self) -> bool:
        """Whether the blocks are all of the operand, in its order."""
        return self.one_per_degree == tuple(range(len(self.irreps)))

    def assemble(self, x: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Parts of the function, [rows, dim, passes * channels], and weights yet to be applied.

        Args:
            x: Features [rows, irreps.dim], "ir_mul".
            factors: Weights [rows or nothing, passes, multiplicities]; None for 1.
        """
        blocks = self.one_per_degree
        if blocks is None:
            return self._summed(x, factors), None
        mul = self.places[blocks[0]].mul
        if not self.is_whole:
            x = torch.cat([self.places[block].columns(x) for block in blocks], dim=1)
        parts = x.unflatten(1, (-1, mul)) if mul > 0 else x.new_zeros(len(x), self._dim, 0)
        passes = 1 if factors is None else factors.shape[-2]
        if passes > 1:
            parts = parts[:, :, None].expand(-1, -1, passes, -1).flatten(2)
        return parts, None if factors is None else self.by_degree(factors)

    @property
    def _dim(self) -> int:
        return sum(2 * degree + 1 for degree in self.degrees)

    def by_degree(self, factors: Tensor) -> Tensor:
        """Weights as the kernels take them, [rows or 1, degrees, passes * channels]."""
        pieces = [self.places[block].weights(factors) for (block,) in self.blocks]
        stacked = torch.stack(pieces, dim=-3).flatten(-2)
        return stacked if stacked.ndim == 3 else stacked[None]

    def _summed(self, x: Tensor, factors: Tensor | None) -> Tensor:
        """The function where blocks of one degree, or channels, are added up, weights applied."""
        parts = []
        for blocks in self.blocks:
            terms = []
            for block in blocks:
                place = self.places[block]
                piece = place.columns(x).unflatten(1, (place.dim, place.mul))[:, :, None]
                if factors is not None:
                    piece = piece * place.weights(factors).unsqueeze(-3)
                terms.append(piece.sum(-1, keepdim=True) if self.summed else piece)
            parts.append(torch.stack(terms).sum(0) if len(terms) > 1 else terms[0])
        return torch.cat(parts, dim=1).flatten(2)


@dataclass(frozen=True)
class Sector:
    """One product of two functions, and the blocks of the result that it adds to.

    Attributes:
        mode: How multiplicities are joined.
        first: Of x1.
        second: Of x2.
        result: Of the result.
        odd: Whether it couples degrees of odd sum, on the sphere by the surface curl, or of even;
            None for both, which a product of matrices does.
        problem: The product that the kernels compute; its `odd` is that of functions.
    """

    mode: Mode
    first: Function
    second: Function
    result: Function
    odd: bool | None
    problem: SphereProductProblem = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        degrees = self.first.degrees, self.second.degrees, self.result.degrees
        object.__setattr__(self, "problem", SphereProductProblem(*degrees, odd=bool(self.odd)))


def sectors_of(problem: TensorProductProblem, *, natural: bool) -> tuple[Sector, ...]:
    """The products of functions that make up a product of one mode.

    Args:
        problem: The product.
        natural: Whether blocks are kept apart by "naturalness"; otherwise by parity.
    """
    modes: set[Mode] = {path.mode for path in problem.paths}
    (mode,) = modes
    sides = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
    blocks: dict[tuple[int, Key], set[int]] = {}
    results: dict[tuple[Key, Key, Key, bool], set[int]] = {}
    for path in problem.paths:
        numbers = path.i_in1, path.i_in2, path.i_out
        first, second, third = (
            _key(side, number, summed, natural)
            for side, number, summed in zip(sides, numbers, _SUMMED[mode], strict=True)
        )
        for slot, key in enumerate((first, second)):
            blocks.setdefault((slot, key), set()).add(numbers[slot])
        odd = sum(problem.degrees(path)) % 2 == 1
        results.setdefault((first, second, third, odd), set()).add(path.i_out)
    return tuple(
        Sector(
            mode,
            function_of(sides[0], blocks[0, first], _SUMMED[mode][0]),
            function_of(sides[1], blocks[1, second], _SUMMED[mode][1]),
            function_of(sides[2], numbers, _SUMMED[mode][2]),
            odd,
        )
        for (first, second, _, odd), numbers in results.items()
    )


def _key(irreps: Irreps, block: int, summed: bool, natural: bool) -> Key:
    mul, ir = irreps[block]
    return ir.p == ((-1) ** ir.l if natural else 1), 0 if summed else mul


def function_of(irreps: Irreps, numbers: Set[int], summed: bool) -> Function:
    """Blocks of these numbers as a function."""
    ordered = sorted(numbers, key=lambda block: (irreps[block].ir.l, block))
    groups = itertools.groupby(ordered, key=lambda block: irreps[block].ir.l)
    return Function(irreps, tuple(tuple(group) for _, group in groups), summed)


def missing_paths(problem: TensorProductProblem, method: Method) -> list[tuple[int, int, int]]:
    """Triples of blocks that a product of functions couples and the instructions do not.

    Paths that are listed twice are missing their place, too: they are returned once more.
    """
    given = [(path.i_in1, path.i_in2, path.i_out) for path in problem.paths]
    sides = [sorted(set(numbers)) for numbers in zip(*given, strict=True)]
    modes: set[Mode] = {path.mode for path in problem.paths}
    missing = [triple for triple in set(given) if given.count(triple) > 1]
    for triple in itertools.product(*sides):
        if triple in given:
            continue
        (mul1, ir1), (mul2, ir2), (mul3, ir3) = (
            irreps[block]
            for irreps, block in zip(
                (problem.irreps_in1, problem.irreps_in2, problem.irreps_out), triple, strict=True
            )
        )
        found = any(fits(mode, mul1, mul2, mul3) for mode in modes)
        if found and ir1.p * ir2.p == ir3.p and method.has_path(ir1.l, ir2.l, ir3.l):
            missing.append(triple)
    return missing


def fits(mode: Mode, mul1: int, mul2: int, mul3: int) -> bool:
    """Whether multiplicities fit a mode."""
    rules = {
        "uvw": True,
        "uvu": mul1 == mul3,
        "uvv": mul2 == mul3,
        "uuw": mul1 == mul2,
        "uuu": mul1 == mul2 == mul3,
        "uvuv": mul1 * mul2 == mul3,
    }
    return rules[mode]


def distribute(results: Sequence[tuple[Sector, Tensor]], factors: Tensor) -> Tensor:
    """Results of products of functions as features, "ir_mul".

    Args:
        results: Sectors, and parts [rows, dim, passes * channels] of what they add; the factors
            have been applied where the result has one block per degree.
        factors: What each channel is multiplied by, [rows or nothing, passes, multiplicities].
    """
    passes = factors.shape[-2]
    (sector, like), *others = results
    if not others and passes == 1 and sector.result.is_whole:
        return like.flatten(1)
    places = sector.result.places
    sums: dict[int, Tensor] = {}
    for sector, parts in results:
        weighted = sector.result.one_per_degree is not None
        parts = parts.unflatten(2, (passes, parts.shape[2] // passes))
        if sector.mode == "uuw" and not weighted:
            parts = parts.sum(-1, keepdim=True)
        lengths = [2 * degree + 1 for degree in sector.result.degrees]
        for blocks, piece in zip(sector.result.blocks, parts.split(lengths, dim=1), strict=True):
            for block in blocks:
                term = piece
                if not weighted:
                    term = piece * places[block].weights(factors).unsqueeze(-3)
                term = term.sum(2) if passes > 1 else term.squeeze(2)
                sums[block] = sums[block] + term if block in sums else term
    features = [
        sums[block].flatten(1)
        if block in sums
        else like.new_zeros(len(like), place.stop - place.start)
        for block, place in enumerate(places)
    ]
    return torch.cat(features, dim=1)
