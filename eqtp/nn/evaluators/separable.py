"""Separable weights: a path's weights are a[x1's block] b[x2's block] c[result's block].

    W_p[u, v, w] = scale[i_out] factor(l1, l2, l3) sum_r a_r[i_in1, u] b_r[i_in2, v] c_r[i_out, w]

with the multiplicities joined as the mode says, in units of w3j. The flat weight of one pass r is a
(blocks of irreps_in1 in order), then b, then c; the passes follow one another. The scales make a
result's variance what that of the "cg" product is, with weights and operands of unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from eqtp.compiling import constant_property
from eqtp.graph import Graph
from eqtp.kernels.tensor_product.op import validate
from eqtp.methods import Method
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest
from eqtp.problem import Mode, Path, TensorProductProblem

__all__ = ["SEPARABLE_MODES", "SeparableWeights"]

SEPARABLE_MODES: dict[Mode, tuple[str, str, str, str]] = {
    "uvw": ("u", "v", "w", "uvw"),
    "uvu": ("u", "v", "u", "uv"),
    "uvv": ("u", "v", "v", "uv"),
    "uuw": ("u", "u", "w", "uw"),
    "uuu": ("u", "u", "u", "u"),
    "uvuv": ("u", "v", "uv", "uv"),
}
"""Letters of a, b, c and of a path's weights."""


@dataclass(frozen=True)
class SeparableWeights:
    """The weights of a product, and what they are in those of the "cg" product.

    Attributes:
        problem: The product, as "cg" would compute it.
        method: A method with separable weights.
        passes: Number of independently weighted products that are summed.
        scales: Constant of every block of the result.
    """

    problem: TensorProductProblem
    method: Method
    passes: int
    scales: tuple[float, ...]
    _without_paths: TensorProductProblem = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The shapes of x1 and x2, without weights. Made here and not when first called: that may be
        # inside of `torch.compile`, which cannot follow it.
        object.__setattr__(self, "_without_paths", replace(self.problem, paths=()))

    @classmethod
    def of(cls, problem: TensorProductProblem, method: Method, passes: int = 1) -> SeparableWeights:
        """The weights, with the scales of the whole product.

        Raises:
            ValueError: A path is not among the method's, its mode has no separable weights or its
                path_weight is 0; some paths have weights and some not; passes is not positive, or
                more than one without weights.
        """
        _check(problem, method, passes)
        scales = []
        for block in range(len(problem.irreps_out)):
            paths = [path for path in problem.paths if path.i_out == block]
            full = sum(path.coefficient**2 * problem.num_elements(path) for path in paths)
            ours = sum(
                method.factor(*problem.degrees(path)) ** 2 * problem.num_elements(path)
                for path in paths
            )
            scales.append(math.sqrt(full / ours / passes) if ours > 0 else 0.0)
        return cls(problem, method, passes, tuple(scales))

    @constant_property
    def weighted(self) -> bool:
        """Whether there are weights; without, a, b and c are 1."""
        return any(path.has_weight for path in self.problem.paths)

    @constant_property
    def multiplicities(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of the blocks of x1, of x2 and of the result."""
        problem = self.problem
        first, second, third = (
            tuple(int(mul) for mul, _ in irreps)
            for irreps in (problem.irreps_in1, problem.irreps_in2, problem.irreps_out)
        )
        return first, second, third

    @constant_property
    def sizes(self) -> tuple[int, int, int]:
        """Lengths of a, b and c of one pass."""
        a, b, c = map(sum, self.multiplicities)
        return a, b, c

    @constant_property
    def numel(self) -> int:
        """Length of the flat weight."""
        return self.passes * sum(self.sizes) if self.weighted else 0

    def constant(self, path: Path) -> float:
        """What stands before w3j and the weights of a path."""
        return self.scales[path.i_out] * self.method.factor(*self.problem.degrees(path))

    @cached_property
    def cg_problem(self) -> TensorProductProblem:
        """The "cg" product that `path_weights` belong to."""
        paths = tuple(replace(path, coefficient=self.constant(path)) for path in self.problem.paths)
        return replace(self.problem, paths=paths)

    def prune(self, keep: Sequence[int]) -> SeparableWeights:
        """The same weights with only some paths, scales unchanged."""
        return replace(self, problem=self.problem.prune(keep))

    def split(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c, each [..., passes, length]."""
        a, b, c = weight.unflatten(-1, (self.passes, -1)).split(self.sizes, dim=-1)
        return a, b, c

    def operands(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x1, x2 and the weight of a call, checked and of one dtype; None where there is none.

        Raises:
            ValueError: A shape is wrong, or there is no weight.
            TypeError: A dtype or device is wrong.
        """
        if radial is not None:
            weight = radial[0] @ radial[1]
        if is_autocast(x1):
            x1, x2, weight = widest((x1, x2, weight))
        validate(x1, x2, None, self._without_paths, graph)
        self.check(weight, x2.shape[0], x1)
        return x1, x2, None if self.numel == 0 else weight

    def check(self, weight: Tensor | None, rows: int, like: Tensor) -> None:
        """Refuses a weight that does not fit.

        Raises:
            ValueError: The shape is wrong, or there is none.
            TypeError: Dtype or device is not that of `like`.
        """
        numel = self.numel
        if weight is None:
            if numel > 0:
                raise ValueError(
                    f"weight must be given: the product has {numel} weights; pass [{numel}] or "
                    f"[{rows}, {numel}]"
                )
            return
        if tuple(weight.shape) not in ((numel,), (rows, numel)):
            raise ValueError(
                f"weight must have shape [{numel}] (shared) or [{rows}, {numel}] (one per row), "
                f"got {tuple(weight.shape)}"
            )
        check_alike(x1=like, weight=weight)

    def path_weights(self, weight: Tensor) -> Tensor:
        """The flat weights of `cg_problem`: sum_r a_r b_r c_r of every path."""
        blocks = [
            factor.split(muls, dim=-1)
            for factor, muls in zip(self.split(weight), self.multiplicities, strict=True)
        ]
        parts = []
        for path in self.problem.paths:
            *letters, target = SEPARABLE_MODES[path.mode]
            a, b, c = (side[i] for side, i in zip(blocks, _block_numbers(path), strict=True))
            if path.mode == "uvuv":
                c = c.unflatten(-1, path.weight_shape)
            a, b, c = (
                _place(factor, of, target) for factor, of in zip((a, b, c), letters, strict=True)
            )
            product = (a * b * c).sum(-1 - len(target))
            parts.append(product.flatten(-len(target)))
        return torch.cat(parts, dim=-1) if parts else weight[..., :0]

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        """The flat weights of `problem` itself."""
        ratios = [
            weight.new_full((path.weight_numel,), self.constant(path) / path.coefficient)
            for path in self.problem.paths
        ]
        return self.path_weights(weight) * torch.cat(ratios) if ratios else weight[..., :0]


def _block_numbers(path: Path) -> tuple[int, int, int]:
    return path.i_in1, path.i_in2, path.i_out


def _place(factor: Tensor, letters: str, target: str) -> Tensor:
    """The factor with a dimension for every letter of the target."""
    return factor[(..., *(slice(None) if letter in letters else None for letter in target))]


def _check(problem: TensorProductProblem, method: Method, passes: int) -> None:
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    for number, path in enumerate(problem.paths):
        degrees = problem.degrees(path)
        if not method.has_path(*degrees):
            raise ValueError(
                f"method {method.name!r} has no path {degrees}, which instruction {number} asks "
                f"for; leave it out or use method='cg'"
            )
        if path.mode not in SEPARABLE_MODES:
            raise ValueError(
                f"method {method.name!r} takes the modes {tuple(SEPARABLE_MODES)}, got "
                f"{path.mode!r} in instruction {number}; use method='cg'"
            )
        if path.coefficient == 0:
            raise ValueError(
                f"instruction {number} has path_weight 0, which separable weights cannot express; "
                "leave the path out"
            )
    kinds = {path.has_weight for path in problem.paths}
    if len(kinds) == 2:
        raise ValueError(
            f"method {method.name!r} has weights per block: all instructions must have weights or "
            "none, got some of each"
        )
    if passes > 1 and kinds == {False}:
        raise ValueError(f"passes={passes} needs weights: passes without weights are all the same")
