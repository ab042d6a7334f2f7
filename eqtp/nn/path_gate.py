"""Learned sparsity: which paths of a tensor product are worth their cost."""

from __future__ import annotations

import math
import random
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.graph import Graph

from .explanation import flops_per_row
from .tensor_product import TensorProduct

__all__ = ["PathGate", "Phase"]

Phase = Literal["random", "top", "frozen"]


class PathGate(nn.Module):
    """A tensor product whose paths compete: in the end the best share stays, and costs its share.

    Every path p has a score pi_p = exp(scores[p]) > 0, learned with the model. The paths of the
    set P are computed with the coefficient

        c_p = alpha_p pi_p / sum_{q in P} alpha_q pi_q  *  sum_q alpha_q

    in place of the product's own coefficient alpha_p, the others not at all. With all paths and
    equal scores that is the product itself. P depends on the step, which the caller sets:

        random   a new random set in every step, so that every path is tried
        top      the paths of the highest scores, chosen anew in every step
        frozen   the set of the highest scores at the end of the phase before, for good

    In the phases "random" and "top" the dense product runs with zero weights; once frozen, the
    pruned product (`TensorProduct.prune`) runs, with the normalisation of the dense one. Both give
    the same numbers, bit by bit where no matrix product of torch is involved, which rounds as its
    size has it (backend "torch", `radial=` with the reference); `prune` returns the pruned product
    without a gate. Every irrep of the result keeps at least one path, so more than the share stays
    where there are few paths. In evaluation mode the random phase uses the highest scores:
    predictions are never random.

    The random sets are a function of seed and step alone, so all processes of a training agree.
    Step and frozen set are part of the state dict; forward calls are not counted.

    Source: the sparse tensor product gate of SPHNet (arXiv 2502.01171), c_p and phases. There pi
    itself is the parameter; here its logarithm is, which keeps the sum in c_p from vanishing, and
    the constant factor sum_q alpha_q is added. SPHNet's other gate, which drops pairs of atoms by
    a quantile over the batch, is not for force fields, see `eqtp.PairGate`.

    Args:
        tp: The product; every path must have weights of its own.
        keep: Share of the paths that stay, above 0 and at most 1.
        random_steps: Length of the random phase.
        top_steps: Length of the phase after it.
        seed: Of the random sets.

    Raises:
        ValueError: A path has no weights of its own, or an argument is out of range.

    Example:
        >>> import eqtp, torch
        >>> tp = eqtp.ChannelwiseTensorProduct("8x0e+8x1o", "0e+1o+2e", "0e+1o+2e")
        >>> gate = PathGate(tp, keep=0.5, random_steps=100, top_steps=50)
        >>> gate.set_step(150)  # in every training step
        >>> gate.phase, len(gate.selected()), len(tp.problem.paths)
        ('frozen', 4, 7)
        >>> x1, x2, weight = torch.randn(2, 32), torch.randn(2, 9), torch.randn(2, tp.weight_numel)
        >>> out = gate.prune()(x1, x2, gate.prune_weight(weight))
        >>> torch.equal(out, gate(x1, x2, weight))
        True
    """

    def __init__(
        self,
        tp: TensorProduct,
        keep: float = 0.5,
        *,
        random_steps: int = 3400,
        top_steps: int = 1700,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(tp, keep, random_steps, top_steps)
        paths = tp.problem.paths
        self.tp = tp
        self.keep = float(keep)
        self.random_steps, self.top_steps, self.seed = random_steps, top_steps, seed
        self.scores = nn.Parameter(torch.zeros(len(paths)))
        self.step = 0
        self._kept: tuple[int, ...] | None = None
        self._pruned: tuple[TensorProduct, ...] = ()  # in a tuple: not a module of this one
        alpha = torch.tensor([path.coefficient for path in paths], dtype=torch.float64)
        sizes = torch.tensor([path.weight_numel for path in paths])
        self.register_buffer("_alpha", alpha, persistent=False)
        self.register_buffer("_path", torch.arange(len(paths)).repeat_interleave(sizes), False)
        self._alpha: Tensor
        self._path: Tensor

    @property
    def phase(self) -> Phase:
        """The phase of the present step."""
        if self._kept is not None:
            return "frozen"
        return "random" if self.step < self.random_steps else "top"

    def set_step(self, step: int) -> None:
        """Says where training stands; freezes the set when both phases are over.

        Args:
            step: Optimiser steps done so far. A frozen gate stays frozen, whatever the step.

        Raises:
            ValueError: step is negative.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        self.step = int(step)
        if self._kept is None and step >= self.random_steps + self.top_steps:
            self.freeze()

    def freeze(self) -> None:
        """Keeps the paths of the highest scores from here on; does nothing when frozen."""
        if self._kept is None:
            self._freeze_to(self._highest(self.scores.tolist()))

    def _freeze_to(self, kept: tuple[int, ...]) -> None:
        """Keeps these paths; makes the pruned product, for weights of the caller."""
        pruned = self.tp.prune(kept)
        pruned.weight = None
        self._kept, self._pruned = kept, (pruned,)

    def selected(self) -> tuple[int, ...]:
        """Indices of the paths that the next forward computes, ascending."""
        if self._kept is not None:
            return self._kept
        if self.phase == "random" and self.training:
            generator = random.Random(f"{self.seed}/{self.step}")
            return self._highest([generator.random() for _ in self.tp.problem.paths])
        return self._highest(self.scores.tolist())

    def _highest(self, priorities: list[float]) -> tuple[int, ...]:
        """The share of the paths with the highest priorities, and one for every irrep at least."""
        problem = self.tp.problem
        order = sorted(range(len(priorities)), key=lambda path: -priorities[path])
        best: dict[object, int] = {}
        for path in order:
            best.setdefault(problem.irreps_out[problem.paths[path].i_out].ir, path)
        chosen = set(best.values())
        count = math.ceil(self.keep * len(order) - 1e-9)  # as a quantile of the scores does
        others = [path for path in order if path not in chosen]
        return tuple(sorted(chosen | set(others[: max(0, count - len(chosen))])))

    def coefficients(self) -> Float[Tensor, " num_paths"]:
        """c_p / alpha_p of every path, zero for those that are not selected."""
        paths = list(self.selected())
        selected = torch.zeros(len(self.scores), dtype=torch.bool, device=self.scores.device)
        selected[paths] = True
        alpha = self._alpha.to(self.scores.dtype)
        # The largest score is taken out of all exponentials, so none overflows.
        shifted = self.scores - self.scores.detach()[paths].max()
        pi = torch.where(selected, shifted, -torch.inf).exp()
        factors: Tensor = pi * (alpha.sum() / (alpha * pi).sum())
        return factors

    def scale(self, weight: Float[Tensor, "*rows weight_numel"]) -> Tensor:
        """Weights of the dense product: each path's times c_p / alpha_p, zero where it is not P's.

        Args:
            weight: Flat weights, one set or one per row, or the matrix of `radial=`.
        """
        factors = self.coefficients().to(weight.dtype)
        return weight * factors.index_select(0, self._path)

    def prune_weight(self, weight: Float[Tensor, "*rows weight_numel"]) -> Tensor:
        """Weights of `prune()`: those of `scale` without the columns that are zero for good.

        Raises:
            RuntimeError: The gate is not frozen yet.
        """
        return self.tp.evaluator.prune_weight(self.scale(weight), self._frozen_set())

    def prune(self, *, compact: bool = False) -> TensorProduct:
        """The product that is left, without the gate; its own weights have c_p multiplied in.

        Args:
            compact: Leaves out the blocks of the result that no path reaches any more.

        Raises:
            RuntimeError: The gate is not frozen yet.
        """
        pruned = self.tp.prune(self._frozen_set(), compact=compact)
        if self.tp.weight is not None and pruned.weight is not None:
            pruned.weight = nn.Parameter(self.prune_weight(self.tp.weight).detach().clone())
        return pruned

    def _frozen_set(self) -> tuple[int, ...]:
        if self._kept is None:
            raise RuntimeError(
                f"the gate must be frozen, got phase {self.phase!r} at step {self.step}: call "
                f"set_step({self.random_steps + self.top_steps}) or freeze() first"
            )
        return self._kept

    def forward(
        self,
        x1: Float[Tensor, "*rows_in1 dim1"],
        x2: Float[Tensor, "*rows dim2"],
        weight: Float[Tensor, "*rows weight_numel"] | None = None,
        *,
        graph: Graph | None = None,
        radial: tuple[Tensor, Tensor] | None = None,
    ) -> Float[Tensor, "*rows_out dim_out"]:
        """The product of the selected paths; arguments as `TensorProduct.forward`.

        Weights are those of the dense product in every phase.
        """
        out: Tensor
        gated = self.scale if self._kept is None else self.prune_weight
        tp = self.tp if self._kept is None else self._pruned[0]
        if radial is not None:
            out = tp(x1, x2, weight, graph=graph, radial=(radial[0], gated(radial[1])))
            return out
        weight = self.tp.weight if weight is None else weight
        out = tp(x1, x2, None if weight is None else gated(weight), graph=graph)
        return out

    def get_extra_state(self) -> Tensor:
        """Step, and for each path whether it is kept (-1 as long as that is open)."""
        kept = [-1] * len(self.scores)
        if self._kept is not None:
            kept = [int(path in self._kept) for path in range(len(self.scores))]
        return torch.tensor([self.step, *kept])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores `get_extra_state`."""
        self.step, *kept = state.tolist()
        if -1 in kept:
            self._kept, self._pruned = None, ()
        else:
            self._freeze_to(tuple(path for path, value in enumerate(kept) if value == 1))

    def explain(self) -> str:
        """The phase, what is kept and what it costs, path by path."""
        problem, selected = self.tp.problem, self.selected()
        dense, sparse = flops_per_row(problem), flops_per_row(problem.prune(selected))
        lines = [
            f"PathGate, step {self.step}, phase {self.phase!r}: {len(selected)} of "
            f"{len(problem.paths)} paths, {sparse:,} of {dense:,} flops per row "
            f"({100 * sparse / dense:.0f} %)"
        ]
        for index, path in enumerate(problem.paths):
            blocks = (
                problem.irreps_in1[path.i_in1].ir,
                problem.irreps_in2[path.i_in2].ir,
                problem.irreps_out[path.i_out].ir,
            )
            mark = "kept" if index in selected else ""
            score = float(self.scores[index].detach().exp())
            lines.append("  {} x {} -> {}".format(*blocks) + f"   pi {score:.3f}   {mark}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"PathGate({self.tp!r}, keep={self.keep:g}, phase {self.phase!r})"


def _check(tp: TensorProduct, keep: float, random_steps: int, top_steps: int) -> None:
    """Refuses products that have no path weights, and arguments out of range."""
    if tp.weight_rank != "full" or tp.weight_numel != tp.problem.weight_numel:
        raise ValueError(
            "a gate needs a product with weights of its own for every path, got "
            f"method={tp.evaluator.method.name!r} with separable weights; use method='cg'"
        )
    bare = [index for index, path in enumerate(tp.problem.paths) if not path.has_weight]
    if bare or not tp.problem.paths:
        raise ValueError(
            f"a gate needs weights on every path, got {len(tp.problem.paths)} paths, of which "
            f"{bare} have none; set has_weight=True in those instructions"
        )
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1 (a share of the paths), got {keep}")
    if min(random_steps, top_steps) < 0:
        raise ValueError(
            "random_steps and top_steps must be at least 0, got "
            f"random_steps={random_steps}, top_steps={top_steps}"
        )
