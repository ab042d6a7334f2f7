"""How the pairs of channels of one path meet its weights and its block of the result.

    mixing modes (uvw, uuw, u<vw)   out[k, w] = sum_q pairs[k, q] weight[q, w]
    scaling modes (the others)      out[k, W] = sum   pairs[k, q] weight[q]

The sum of the scaling modes is over v (uvu), u (uvv) or nothing. q counts (u, v), u = v or u < v;
`pairs` is [rows, k, u, v] or [rows, k, q]. Weights are one set for all rows or one per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eqtp.problem import Path, TensorProductProblem

__all__ = ["WeightStep", "make_weight_step"]

_MIXING = ("uvw", "uuw", "u<vw")


@dataclass(frozen=True)
class WeightStep:
    """The last step of one path, forwards and backwards."""

    mixing: bool
    pair_shape: tuple[int, ...]  # (u, v) or (q,)
    out_shape: tuple[int, ...]  # of the result's channels, summed ones kept as 1; (w,) if mixing
    dim: int  # 2 l3 + 1
    out: slice
    weight: slice | None

    def use(self, pairs: Tensor, given: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Adds what the pairs give to the result and to the gradient of the weights."""
        if "out" in sums:
            self._add_result(pairs, self._weight(given), self._block(sums["out"]))
        if "weight" in sums and self.weight is not None:
            self._add_weight_gradient(pairs, self._block(given["out"]), sums["weight"])

    def fill_gradient(self, gradient: Tensor, given: Mapping[str, Tensor]) -> None:
        """Writes the gradient of the pairs."""
        out = self._block(given["out"])
        weight = self._weight(given)
        if weight is None:
            gradient.copy_(out)
        elif self.mixing:
            gradient.copy_(_mix(out, weight.mT).view(gradient.shape))
        else:
            torch.mul(out, weight, out=gradient)

    def _add_result(self, pairs: Tensor, weight: Tensor | None, out: Tensor) -> None:
        if self.mixing:
            q = pairs.flatten(2)
            out.add_(q.sum(2, keepdim=True) if weight is None else _mix(q, weight))
            return
        summed = self._summed()
        if weight is None:
            out.add_(pairs.sum(summed, keepdim=True) if summed else pairs)
        elif summed:
            out.add_((pairs * weight).sum(summed, keepdim=True))
        else:
            out.addcmul_(pairs, weight)

    def _add_weight_gradient(self, pairs: Tensor, out: Tensor, sum_weight: Tensor) -> None:
        """Adds to shared weights' gradient; writes that of weights per row, once per row."""
        target = sum_weight[..., self.weight]
        if self.mixing:
            q = pairs.flatten(2)
            target = target.view(*target.shape[:-1], q.shape[2], out.shape[2])
            if sum_weight.ndim == 1:
                target.addmm_(q.flatten(0, 1).T, out.flatten(0, 1))
            else:
                target.copy_(torch.bmm(q.mT, out))
        elif sum_weight.ndim == 1:
            target.add_((pairs * out).sum((0, 1)).flatten())
        else:
            torch.sum(pairs * out, 1, out=target.view(-1, *self.pair_shape))

    def _weight(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """[q, w] or [rows, q, w] when mixing; [rows or 1, 1, *pair_shape] when scaling."""
        if self.weight is None:
            return None
        weight = given["weight"][..., self.weight]
        if self.mixing:
            return weight.view(*weight.shape[:-1], math.prod(self.pair_shape), *self.out_shape)
        return weight.view(-1, 1, *self.pair_shape)

    def _block(self, out: Tensor) -> Tensor:
        """The block of the result as [rows, k, *out_shape]."""
        return out[:, self.out].view(-1, self.dim, *self.out_shape)

    def _summed(self) -> list[int]:
        sizes = zip(self.pair_shape, self.out_shape, strict=True)
        return [2 + i for i, (size, kept) in enumerate(sizes) if kept != size]


def _mix(x: Tensor, weight: Tensor) -> Tensor:
    """Product x [rows, k, q] @ weight [q, w] or [rows, q, w], as one call of BLAS.

    Products are written to fresh memory: into a strided result torch multiplies row by row, which
    took 47 instead of 6 ms for DiffDock's 7128 weights in 1000 rows (1 thread, float32).
    """
    if weight.ndim == 3:
        return torch.bmm(x, weight)
    return (x.reshape(-1, x.shape[2]) @ weight).view(*x.shape[:2], weight.shape[1])


def make_weight_step(problem: TensorProductProblem, path: Path) -> WeightStep:
    """The last step of a path."""
    mul1, mul2, mul3 = problem.multiplicities(path)
    pair_shape: tuple[int, ...] = (mul1, mul2)
    if "<" in path.mode:
        pair_shape = (mul1 * (mul1 - 1) // 2,)
    elif path.mode in ("uuw", "uuu"):
        pair_shape = (mul1,)
    mixing = path.mode in _MIXING
    kept = {"uvu": (mul1, 1), "uvv": (1, mul2)}.get(path.mode, pair_shape)
    return WeightStep(
        mixing=mixing,
        pair_shape=pair_shape,
        out_shape=(mul3,) if mixing else kept,
        dim=problem.irreps_out[path.i_out].ir.dim,
        out=problem.irreps_out.slices()[path.i_out],
        weight=path.weight_slice if path.has_weight else None,
    )
