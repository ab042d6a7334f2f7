"""The exact bijection between path weights of a product with harmonics and (A_m, B_m).

In the frame where the direction is +y only the order 0 of a harmonic is not zero, sqrt(2 l2 + 1) in
component normalisation. A path (l1, l2, l3) of even sum then couples equal orders, equally for +m
and -m; one of odd sum couples m with -m, with opposite signs. So with W the path weights times the
paths' coefficients, for one pair of blocks (l1, l3) and m = 0, ..., min(l1, l3),

    A_m = sum over l2, l1 + l2 + l3 even, of sqrt(2 l2 + 1) w3j[l1 + m, l2, l3 + m] W_l2
    B_m = sum over l2, l1 + l2 + l3 odd,  of sqrt(2 l2 + 1) w3j[l1 + m, l2, l3 - m] W_l2

and back, since the sum of w3j[m, 0, n]^2 over m and n is 1 / (2 l2 + 1),

    W_l2 = sqrt(2 l2 + 1) sum_m c_m w3j[l1 + m, l2, l3 + m] A_m,    c_0 = 1, c_m = 2, even sums
    W_l2 = sqrt(2 l2 + 1) sum_m c_m w3j[l1 + m, l2, l3 - m] B_m,    odd sums.

All l2 from |l1 - l3| to l1 + l3 are as many weights as A_0, ..., A_min, B_1, ..., B_min: a
bijection. With A_m = B_m = 0 above some m_max, W are the weights of the truncated convolution.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.irreps import Irreps
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["Pair", "all_paths", "block_pairs", "from_path_weights", "to_path_weights"]


class Pair(NamedTuple):
    """The paths from one block of x1 to one block of the result.

    Attributes:
        i_in: Index of the block of x1.
        i_out: Index of the block of the result.
        mul_in: Channels of the block of x1.
        mul_out: Channels of the block of the result.
        m_max: Largest order that is kept of both.
        weights: Of each path, where its weights start and their shape, () where it has none.
        to_native: [paths, 2 m_max + 1]; times the path weights they are, by order m = -m_max, ...,
            m_max, A_|m| for m >= 0 and B_|m| for m < 0.
        from_native: Its inverse where all l2 are there, [2 m_max + 1, paths].
    """

    i_in: int
    i_out: int
    mul_in: int
    mul_out: int
    m_max: int
    weights: tuple[tuple[int, tuple[int, ...]], ...]
    to_native: Tensor
    from_native: Tensor


@constant_when_compiled
def block_pairs(problem: TensorProductProblem, m_max: int) -> tuple[Pair, ...]:
    """All pairs of blocks that are joined by a path, in the order of their first paths.

    Raises:
        ValueError: A block of irreps_in2 has not exactly one channel.
    """
    return _block_pairs(problem, m_max)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # cached tensors must serve later calls that record gradients
def _block_pairs(problem: TensorProductProblem, m_max: int) -> tuple[Pair, ...]:
    for mul, ir in problem.irreps_in2:
        if mul != 1:
            raise ValueError(
                "a product with an edge vector takes one channel per block of irreps_in2, whose "
                f"harmonics it makes, got '{mul}x{ir}' in irreps_in2='{problem.irreps_in2}'"
            )
    paths: dict[tuple[int, int], list[Path]] = {}
    for path in problem.paths:
        paths.setdefault((path.i_in1, path.i_out), []).append(path)
    return tuple(_pair(*ends, tuple(found), problem, m_max) for ends, found in paths.items())


def _pair(
    i_in: int, i_out: int, paths: tuple[Path, ...], problem: TensorProductProblem, m_max: int
) -> Pair:
    end_in, end_out = problem.irreps_in1[i_in], problem.irreps_out[i_out]
    top = min(end_in.ir.l, end_out.ir.l, m_max)
    forward = torch.zeros(len(paths), 2 * top + 1, dtype=torch.float64)
    back = torch.zeros_like(forward)
    for row, path in enumerate(paths):
        l1, l2, l3 = problem.degrees(path)
        w3j = wigner_3j(l1, l2, l3)
        sign = 1 if (l1 + l2 + l3) % 2 == 0 else -1
        for m in range(0 if sign > 0 else 1, top + 1):
            value = math.sqrt(2 * l2 + 1) * float(w3j[l1 + m, l2, l3 + sign * m])
            forward[row, top + sign * m] = value * path.coefficient
            back[row, top + sign * m] = value * (2 if m else 1) / (path.coefficient or math.inf)
    muls = int(end_in.mul), int(end_out.mul)
    weights = tuple((path.weight_start, path.weight_shape) for path in paths)
    return Pair(i_in, i_out, *muls, top, weights, forward, back.T.contiguous())


def all_paths(irreps_in: Irreps, irreps_out: Irreps) -> TensorProductProblem:
    """Every "uvw" path of a product with harmonics, without normalisation: what (A, B) can do.

    The harmonics' blocks have the parity that a path needs; natural ones come first.
    """
    needed = {
        (l2, p1 * p3)
        for _, (l1, p1) in irreps_in
        for _, (l3, p3) in irreps_out
        for l2 in range(abs(l1 - l3), l1 + l3 + 1)
    }
    blocks = sorted(needed, key=lambda lp: (lp[1] != (-1) ** lp[0], lp[0]))
    place = {block: index for index, block in enumerate(blocks)}
    instructions = [
        (i_in, place[l2, p1 * p3], i_out, "uvw", True)
        for i_in, (_, (l1, p1)) in enumerate(irreps_in)
        for i_out, (_, (l3, p3)) in enumerate(irreps_out)
        for l2 in range(abs(l1 - l3), l1 + l3 + 1)
    ]
    return TensorProductProblem.from_instructions(
        irreps_in,
        Irreps([(1, block) for block in blocks]),
        irreps_out,
        instructions,
        irrep_normalization="none",
        path_normalization="none",
    )


def from_path_weights(problem: TensorProductProblem, weight: Tensor, m_max: int) -> list[Tensor]:
    """Native weights of "uvw" path weights, shared or per row.

    Args:
        problem: A product with harmonics.
        weight: Flat path weights, [..., weight_numel].
        m_max: Largest order that is kept.

    Returns:
        For m = 0, ..., m_max a tensor [..., parts, width of x1, width of the result], A_m and for
        m > 0 B_m, with the widths of `FrameLayout`s; what `so2_linear` takes.
    """
    values: dict[tuple[int, int], Tensor] = {}
    batch = weight.shape[:-1]
    for pair in block_pairs(problem, m_max):
        numel = pair.mul_in * pair.mul_out
        parts = [weight[..., start : start + numel] for start, _ in pair.weights]
        flat = pair.to_native.to(weight).T @ torch.stack(parts, -2)
        values[pair.i_in, pair.i_out] = flat.unflatten(-1, (pair.mul_in, pair.mul_out))

    def block(i_in: int, mul_in: int, i_out: int, mul_out: int, m: int) -> Tensor:
        found = values.get((i_in, i_out))
        if found is None:
            return weight.new_zeros(*batch, mul_in, mul_out)
        return found[..., found.shape[-3] // 2 + m, :, :]

    native = []
    for m, (rows, columns) in enumerate(_blocks_by_order(problem, m_max)):
        parts = [
            torch.cat([torch.cat([block(*i, *o, s) for o in columns], -1) for i in rows], -2)
            for s in ((m, -m) if m else (0,))
        ]
        native.append(torch.stack(parts, -3))
    return native


Blocks = tuple[tuple[int, int], ...]
"""Index and channels of blocks."""


@constant_when_compiled
def _blocks_by_order(
    problem: TensorProductProblem, m_max: int
) -> tuple[tuple[Blocks, Blocks], ...]:
    """For m = 0, ..., m_max the blocks of x1 and of the result that have that order."""

    def blocks(irreps: Irreps, m: int) -> Blocks:
        return tuple((i, int(mul)) for i, (mul, ir) in enumerate(irreps) if ir.l >= m)

    ends = problem.irreps_in1, problem.irreps_out
    return tuple((blocks(ends[0], m), blocks(ends[1], m)) for m in range(m_max + 1))


def to_path_weights(problem: TensorProductProblem, native: list[Tensor], m_max: int) -> Tensor:
    """The inverse of `from_path_weights`; B_m may be missing where it is zero.

    Returns:
        Flat path weights, [..., weight_numel]. Where the problem lacks paths, the part that its
        paths can represent.
    """
    frames = FrameLayout(problem.irreps_in1, m_max), FrameLayout(problem.irreps_out, m_max)
    starts_in, starts_out = (_starts(frame) for frame in frames)
    pieces: dict[int, Tensor] = {}
    for pair in block_pairs(problem, m_max):
        blocks = []
        for m in range(-pair.m_max, pair.m_max + 1):
            weight = native[abs(m)]
            row, column = starts_in[abs(m)][pair.i_in], starts_out[abs(m)][pair.i_out]
            part = 0 if m >= 0 else 1
            if part >= weight.shape[-3]:
                blocks.append(weight.new_zeros(*weight.shape[:-3], pair.mul_in * pair.mul_out))
                continue
            matrix = weight[..., part, row : row + pair.mul_in, column : column + pair.mul_out]
            blocks.append(matrix.flatten(-2))
        flat = pair.from_native.to(native[0]).T @ torch.stack(blocks, -2)
        for (start, _), piece in zip(pair.weights, flat.unbind(-2), strict=True):
            pieces[start] = piece
    ordered = [pieces[start] for start in sorted(pieces)]
    return torch.cat(ordered, -1) if ordered else native[0].new_zeros(0)


def _starts(frame: FrameLayout) -> list[dict[int, int]]:
    """For each order, where each block of the irreps starts among the numbers of that order."""
    starts: list[dict[int, int]] = []
    for m in range(frame.m_max + 1):
        found, start = {}, 0
        for index, (mul, ir) in enumerate(frame.irreps):
            if ir.l >= m:
                found[index] = start
                start += mul
        starts.append(found)
    return starts
