"""Paths that share work, and how one chunk of rows goes through them.

An outer group holds the paths that multiply every channel u of one block with every channel v of
another. With the constants C (coefficient included) contracted into the second operand b first,

    M[v, (p, k), i] = sum_j C_p[j, k, i] b[v, j]           one GEMM per block of b
    pairs[v, (p, k), u] = sum_i M[v, (p, k), i] a[i, u]    one batched product for all paths

A tied group holds the paths of two blocks whose channels go together (u = v, or pairs u < v):

    products[q, (i, j)] = a[i, q] b[j, q];  pairs[q, (p, k)] = products @ C

Either way a path's `pairs` then meet its weights (`WeightStep`). All of it is linear, so the
derivatives run the same lines backwards, and share M, pairs and their gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eqtp.kernels.tensor_product._weights import WeightStep, make_weight_step
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["Group", "make_groups"]


class Group(Protocol):
    """Paths that share work."""

    @property
    def numel_per_row(self) -> int:
        """Size of the intermediates of one row."""
        ...

    def accumulate(self, given: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Adds this group's part of the derivative of S to every slot in `sums`."""


@dataclass(frozen=True)
class Block:
    """One irreps block of an operand: columns [start, start + dim * mul) as [dim, mul]."""

    slot: str
    start: int
    dim: int
    mul: int

    def view(self, x: Tensor) -> Tensor:
        """The block as [rows, dim, mul]."""
        return x.narrow(1, self.start, self.dim * self.mul).view(-1, self.dim, self.mul)


@dataclass(frozen=True)
class Factor:
    """A block of the second operand of an outer group and its constants."""

    block: Block
    constants: Tensor  # [dim_b, rows * dim_a]
    columns: slice  # its columns of the coupling matrices M

    def channels(self, b: Tensor) -> Tensor:
        """The block as [rows * mul, dim]."""
        return self.block.view(b).transpose(1, 2).reshape(-1, self.block.dim)


@dataclass(frozen=True)
class Member:
    """A path in its group: its rows (p, k) and how it meets weights and result."""

    rows: slice
    step: WeightStep


@dataclass(frozen=True)
class OuterGroup:
    """Every channel of block a with every channel of the factors' blocks."""

    a: Block
    factors: tuple[Factor, ...]  # several only when each has one channel
    members: tuple[Member, ...]
    num_rows: int
    swapped: bool  # a is x2

    @property
    def numel_per_row(self) -> int:
        """Coupling matrices and pairs; each also as a gradient."""
        return 2 * self.mul_b * self.num_rows * (self.a.dim + self.a.mul)

    @property
    def mul_b(self) -> int:
        """Channels of the second operand."""
        return self.factors[0].block.mul

    def accumulate(self, given: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Adds this group's part of the derivative of S to every slot in `sums`."""
        slot_a, slot_b = self.a.slot, self.factors[0].block.slot
        need_pairs = "out" in sums or "weight" in sums
        need_gradient = slot_a in sums or slot_b in sums
        coupling = self._couple(given[slot_b]) if need_pairs or slot_a in sums else None
        a = self.a.view(given[slot_a]) if need_pairs or slot_b in sums else None
        if need_pairs and coupling is not None and a is not None:
            pairs = self._split(_product(coupling, a))
            for member in self.members:
                member.step.use(self._member_view(pairs, member), given, sums)
        if not need_gradient:
            return
        out = given["out"]
        gradient = out.new_empty(out.shape[0], self.mul_b * self.num_rows, self.a.mul)
        for member in self.members:
            view = self._member_view(self._split(gradient), member)
            member.step.fill_gradient(view, given)
        if slot_a in sums and coupling is not None:
            self.a.view(sums[slot_a]).add_(torch.bmm(coupling.mT, gradient))
        if slot_b in sums and a is not None:
            self._add_gradient_b(torch.bmm(gradient, a.mT), sums[slot_b])

    def _couple(self, b: Tensor) -> Tensor:
        """The coupling matrices M, [rows, (v, p, k), i]."""
        size = self.num_rows * self.a.dim
        flat = b.new_empty(b.shape[0] * self.mul_b, size)
        for factor in self.factors:
            torch.mm(factor.channels(b), factor.constants, out=flat[:, factor.columns])
        return flat.view(b.shape[0], self.mul_b * self.num_rows, self.a.dim)

    def _add_gradient_b(self, coupling: Tensor, sum_b: Tensor) -> None:
        flat = coupling.view(-1, self.num_rows * self.a.dim)
        for factor in self.factors:
            channels = flat[:, factor.columns] @ factor.constants.T
            channels = channels.view(-1, self.mul_b, factor.block.dim)
            factor.block.view(sum_b).add_(channels.transpose(1, 2))

    def _split(self, pairs: Tensor) -> Tensor:
        return pairs.view(pairs.shape[0], self.mul_b, self.num_rows, self.a.mul)

    def _member_view(self, pairs: Tensor, member: Member) -> Tensor:
        """A path's pairs as [rows, k, u, v]."""
        order = (0, 2, 1, 3) if self.swapped else (0, 2, 3, 1)
        return pairs[:, :, member.rows].permute(order)


@dataclass(frozen=True)
class TiedGroup:
    """Channels of two blocks that go together: equal ones, or the pairs u < v."""

    a: Block
    b: Block
    constants: Tensor  # [dim_a * dim_b, rows]
    members: tuple[Member, ...]
    num_rows: int
    index_a: Tensor | None  # the channels u of the pairs u < v; None for equal channels
    index_b: Tensor | None

    @property
    def numel_per_row(self) -> int:
        """Products and pairs; each also as a gradient."""
        count = self.a.mul if self.index_a is None else self.index_a.numel()
        return 2 * count * (self.a.dim * self.b.dim + self.num_rows)

    def accumulate(self, given: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Adds this group's part of the derivative of S to every slot in `sums`."""
        need_pairs = "out" in sums or "weight" in sums
        a = self._channels("x1", given) if need_pairs or "x2" in sums else None
        b = self._channels("x2", given) if need_pairs or "x1" in sums else None
        if need_pairs and a is not None and b is not None:
            products = a.unsqueeze(3) * b.unsqueeze(2)
            pairs = products.flatten(2) @ self.constants
            for member in self.members:
                member.step.use(pairs[:, :, member.rows].transpose(1, 2), given, sums)
        if "x1" not in sums and "x2" not in sums:
            return
        out = given["out"]
        count = self.a.mul if self.index_a is None else self.index_a.numel()
        gradient = out.new_empty(out.shape[0], count, self.num_rows)
        for member in self.members:
            member.step.fill_gradient(gradient[:, :, member.rows].transpose(1, 2), given)
        products = (gradient @ self.constants.T).view(-1, count, self.a.dim, self.b.dim)
        if "x1" in sums and b is not None:
            self._add("x1", (products * b.unsqueeze(2)).sum(3), sums)
        if "x2" in sums and a is not None:
            self._add("x2", (products * a.unsqueeze(3)).sum(2), sums)

    def _side(self, slot: str) -> tuple[Block, Tensor | None]:
        return (self.a, self.index_a) if slot == "x1" else (self.b, self.index_b)

    def _channels(self, slot: str, given: Mapping[str, Tensor]) -> Tensor:
        """The channels that take part, [rows, q, dim]."""
        block, index = self._side(slot)
        channels = block.view(given[slot]).transpose(1, 2)
        return channels if index is None else channels.index_select(1, index)

    def _add(self, slot: str, channels: Tensor, sums: Mapping[str, Tensor]) -> None:
        block, index = self._side(slot)
        target = block.view(sums[slot]).transpose(1, 2)
        if index is None:
            target.add_(channels)
        else:
            target.index_add_(1, index, channels)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b; an inner dimension of one is an outer product, faster without BLAS."""
    return a * b if a.shape[2] == 1 else torch.bmm(a, b)


_TIED = ("uuw", "uuu", "uvu<v", "u<vw")


def make_groups(
    problem: TensorProductProblem, dtype: torch.dtype, device: torch.device
) -> tuple[Group, ...]:
    """Groups the paths of a problem, empty ones left out."""
    grouped: dict[tuple[object, ...], list[Path]] = {}
    for path in problem.paths:
        mul1, mul2, mul3 = problem.multiplicities(path)
        if 0 in (mul1, mul2, mul3, *path.weight_shape):
            continue
        if path.mode in _TIED:
            key: tuple[object, ...] = ("tied", "<" in path.mode, path.i_in1, path.i_in2)
        elif mul1 < mul2:  # the constants go into the operand with fewer channels
            key = ("swapped", path.i_in2, path.i_in1 if mul1 > 1 else None)
        else:
            key = ("outer", path.i_in1, path.i_in2 if mul2 > 1 else None)
        grouped.setdefault(key, []).append(path)
    groups: list[Group] = []
    for (kind, *_), paths in grouped.items():
        if kind == "tied":
            groups.append(_make_tied(problem, paths, dtype, device))
        else:
            groups.append(_make_outer(problem, paths, kind == "swapped", dtype, device))
    return tuple(groups)


def _make_outer(
    problem: TensorProductProblem,
    paths: list[Path],
    swapped: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> OuterGroup:
    slot_a, slot_b = ("x2", "x1") if swapped else ("x1", "x2")
    a = _block(problem, slot_a, paths[0].i_in2 if swapped else paths[0].i_in1)
    by_factor: dict[int, list[Path]] = {}
    for path in paths:
        by_factor.setdefault(path.i_in1 if swapped else path.i_in2, []).append(path)
    members: list[Member] = []
    factors = []
    row = 0
    for index, factor_paths in by_factor.items():
        first = row
        constants = []
        for path in factor_paths:
            w3j = path.coefficient * wigner_3j(*problem.degrees(path))  # [i, j, k]
            constants.append(w3j.permute((0, 2, 1) if swapped else (1, 2, 0)))  # [b, k, a]
            step = make_weight_step(problem, path)
            members.append(Member(slice(row, row + step.dim), step))
            row += step.dim
        matrix = torch.cat(constants, dim=1).flatten(1).to(device=device, dtype=dtype)
        columns = slice(first * a.dim, row * a.dim)
        factors.append(Factor(_block(problem, slot_b, index), matrix, columns))
    return OuterGroup(a, tuple(factors), tuple(members), row, swapped)


def _make_tied(
    problem: TensorProductProblem, paths: list[Path], dtype: torch.dtype, device: torch.device
) -> TiedGroup:
    a, b = _block(problem, "x1", paths[0].i_in1), _block(problem, "x2", paths[0].i_in2)
    members: list[Member] = []
    constants = []
    row = 0
    for path in paths:
        constants.append((path.coefficient * wigner_3j(*problem.degrees(path))).flatten(0, 1))
        step = make_weight_step(problem, path)
        members.append(Member(slice(row, row + step.dim), step))
        row += step.dim
    matrix = torch.cat(constants, dim=1).to(device=device, dtype=dtype)
    index_a = index_b = None
    if "<" in paths[0].mode:
        index_a, index_b = torch.triu_indices(a.mul, a.mul, 1, device=device)
    return TiedGroup(a, b, matrix, tuple(members), row, index_a, index_b)


def _block(problem: TensorProductProblem, slot: str, index: int) -> Block:
    irreps = problem.irreps_in1 if slot == "x1" else problem.irreps_in2
    mul, ir = irreps[index]
    return Block(slot, irreps.slices()[index].start, ir.dim, mul)
