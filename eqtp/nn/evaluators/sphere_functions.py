"""Blocks of irreps as functions on the sphere, and back: what the Gaunt methods multiply.

Blocks of one operand make one function per channel, the sum of their harmonics. Blocks whose parity
is (-1)^l ("natural") and the others are kept apart: a product of functions on the sphere knows
degrees, not parities, and must not mix them. So are blocks of different multiplicity, unless the
mode sums over it. A product of irreps is a sum of products of such functions (`Sector`), one for
each pair that has paths, even sums and odd sums apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.kernels.gaunt_grid import SphereProductProblem
from eqtp.layout import Layout
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

    @property
    def degrees(self) -> tuple[int, ...]:
        """The degrees of the function."""
        return tuple(self.irreps[blocks[0]].ir.l for blocks in self.blocks)

    def assemble(self, x: Tensor, factors: Tensor | None, layout: Layout) -> Tensor:
        """Parts of the function, [rows, dim, passes * channels].

        Args:
            x: Features [rows, irreps.dim].
            factors: Weights [rows or nothing, passes, multiplicities]; None for 1.
            layout: Layout of x.
        """
        columns = self.irreps.slices()
        ends = list(itertools.accumulate((mul for mul, _ in self.irreps), initial=0))
        parts = []
        for blocks in self.blocks:
            terms = []
            for block in blocks:
                mul, ir = self.irreps[block]
                piece = x[:, columns[block]]
                if layout == "mul_ir":
                    piece = piece.unflatten(1, (mul, ir.dim)).transpose(1, 2)
                else:
                    piece = piece.unflatten(1, (ir.dim, mul))
                piece = piece[:, :, None]
                if factors is not None:
                    piece = piece * factors[..., None, :, ends[block] : ends[block + 1]]
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
        odd: Whether it is the surface curl.
    """

    mode: Mode
    first: Function
    second: Function
    result: Function
    odd: bool

    @property
    def problem(self) -> SphereProductProblem:
        """The product that the kernels compute."""
        return SphereProductProblem(
            self.first.degrees, self.second.degrees, self.result.degrees, self.odd
        )


def sectors_of(problem: TensorProductProblem, *, natural: bool = True) -> tuple[Sector, ...]:
    """The products of functions that make up a product of one mode.

    Args:
        problem: The product.
        natural: Whether blocks are kept apart by "naturalness"; otherwise by parity, which is
            enough where one product computes even and odd sums alike.
    """
    (mode,) = {path.mode for path in problem.paths}
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
    modes = {path.mode for path in problem.paths}
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


def distribute(
    results: Sequence[tuple[Sector, Tensor]], factors: Tensor, out: Irreps, layout: Layout
) -> Tensor:
    """Results of products of functions as features.

    Args:
        results: Sectors, and parts [rows, dim, passes * channels] of what they add.
        factors: What each channel is multiplied by, [rows or nothing, passes, multiplicities].
        out: Irreps of the result.
        layout: Layout of the result.
    """
    ends = list(itertools.accumulate((mul for mul, _ in out), initial=0))
    passes = factors.shape[-2]
    _, like = results[0]
    sums: dict[int, Tensor] = {}
    for sector, parts in results:
        if sector.mode == "uuw":
            parts = parts.unflatten(2, (passes, parts.shape[2] // passes)).sum(-1)
        lengths = [2 * degree + 1 for degree in sector.result.degrees]
        pieces = parts.split(lengths, dim=1)
        for blocks, piece in zip(sector.result.blocks, pieces, strict=True):
            for block in blocks:
                sums[block] = sums[block] + piece if block in sums else piece
    features = []
    for block, (mul, ir) in enumerate(out):
        if block not in sums:
            features.append(like.new_zeros(like.shape[0], mul * ir.dim))
            continue
        piece = sums[block]
        piece = piece.unflatten(2, (passes, piece.shape[2] // passes))
        piece = piece * factors[..., None, :, ends[block] : ends[block + 1]]
        piece = piece.sum(2) if passes > 1 else piece.squeeze(2)
        features.append((piece.transpose(1, 2) if layout == "mul_ir" else piece).flatten(1))
    return torch.cat(features, dim=1)
