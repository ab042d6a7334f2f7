"""Paths that mix channels, as a product of all pairs of channels and a matrix.

    pairs[z, k, q] = sum_ij C[i, j, k] x1[z, u, i] x2[z, v, j]            "uvuv", "uuu" or "uvu<v"
    out[z, k, w]   = sum_q pairs[z, k, q] weight[z, q, w]

With one set of weights for all edges the pairs can be summed at the receivers first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.kernels.tensor_product._weights import WeightStep, make_weight_step
from eqtp.problem import Mode, Path, TensorProductProblem

__all__ = ["Mixing", "is_empty", "pairs_of"]

PAIRS: dict[Mode, Mode] = {"uvw": "uvuv", "uuw": "uuu", "u<vw": "uvu<v"}
"""For modes that mix channels, the one that makes the pairs."""


def is_empty(problem: TensorProductProblem, path: Path) -> bool:
    """Whether a path has no channel or no weight."""
    return 0 in (*problem.multiplicities(path), *path.weight_shape)


@dataclass(frozen=True)
class Mixing:
    """A path that mixes channels.

    Attributes:
        pairs: Columns of its pairs.
        step: How pairs meet weights and result.
    """

    pairs: slice
    step: WeightStep

    def view(self, pairs: Tensor) -> Tensor:
        """The path's pairs, [rows, k, *channels]."""
        return pairs[:, self.pairs].view(len(pairs), self.step.dim, *self.step.pair_shape)


@lru_cache(maxsize=256)
def pairs_of(
    problem: TensorProductProblem,
) -> tuple[TensorProductProblem, tuple[Mixing, ...]]:
    """The product that makes the pairs of the paths that mix channels, a block for each path."""
    paths: list[Path] = []
    blocks: list[tuple[int, Any]] = []
    steps: list[WeightStep] = []
    for path in problem.paths:
        if path.mode not in PAIRS or is_empty(problem, path):
            continue
        step = make_weight_step(problem, path)
        paths.append(path.without_weights(PAIRS[path.mode], len(paths)))
        blocks.append((math.prod(step.pair_shape), problem.irreps_out[path.i_out].ir))
        steps.append(step)
    irreps = Irreps(blocks)
    product = replace(problem, irreps_out=irreps, paths=tuple(paths))
    mixings = (Mixing(*pair) for pair in zip(irreps.slices(), steps, strict=True))
    return product, tuple(mixings)
