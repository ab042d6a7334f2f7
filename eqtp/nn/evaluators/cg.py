"""Clebsch-Gordan products: every path with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import Layout
from eqtp.methods import Method, get_method
from eqtp.nn.evaluators.receiver_mixing import ReceiverMixing
from eqtp.nn.explanation import Explanation
from eqtp.nn.family import FamilyChoice
from eqtp.problem import TensorProductProblem

__all__ = ["ClebschGordan", "path_weights"]


@dataclass(frozen=True)
class ClebschGordan:
    """`method="cg"`; see `Evaluator` for the attributes and methods."""

    problem: TensorProductProblem
    backend: Backend
    layout: Layout
    _choose_family: FamilyChoice = field(init=False, repr=False, compare=False)
    _receiver_mixing: ReceiverMixing | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not when first called: that may be inside of `torch.compile`, which cannot follow it.
        object.__setattr__(self, "_choose_family", FamilyChoice.of(self.problem, self.backend))
        mixing = ReceiverMixing.of(self.problem, self.backend)
        object.__setattr__(self, "_receiver_mixing", mixing)

    @property
    def method(self) -> Method:
        return get_method("cg")

    @property
    def dim2(self) -> int:
        return self.problem.dims[1]

    @property
    def weight_numel(self) -> int:
        return self.problem.weight_numel

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        *,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        on_graph = graph is not None
        family, _ = self._choose_family(on_graph=on_graph, device=x2.device.type)
        if family == "channelwise" and on_graph and radial is not None:
            return channelwise_tensor_product(
                x1,
                x2,
                None,
                self.problem,
                radial=radial,
                graph=graph,
                layout=self.layout,
                backend=self.backend,
            )
        if radial is not None:
            weight = radial[0] @ radial[1]
        mixing = self._receiver_mixing
        if (
            mixing is not None
            and graph is not None
            and weight is not None
            and mixing.serves(x1, weight, graph)
        ):
            return mixing(x1, x2, weight, graph, self.layout)
        product = channelwise_tensor_product if family == "channelwise" else tensor_product
        return product(
            x1, x2, weight, self.problem, graph=graph, layout=self.layout, backend=self.backend
        )

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        return weight

    def prune(self, keep: Sequence[int]) -> ClebschGordan:
        return ClebschGordan(self.problem.prune(keep), self.backend, self.layout)

    def prune_weight(self, weight: Tensor, keep: Sequence[int]) -> Tensor:
        return path_weights(self.problem, weight, keep)

    def family(self, device: str) -> str:
        return self._choose_family(on_graph=True, device=device)[0]

    def explain(self, title: str, like: Tensor | None) -> str:
        explanation = Explanation.of(self, title, like)
        return explanation.text(*self.explain_kernels(explanation))

    def explain_kernels(self, explanation: Explanation) -> tuple[str, ...]:
        """The lines of an explanation between the method and the bytes."""
        lines = explanation.path_by_path(self.problem, self._choose_family)
        if self._receiver_mixing is None or not explanation.is_compiled_for_cpus:
            return lines
        return (*lines, "  shared    weights on graphs: channels are mixed once per receiver")


def path_weights(problem: TensorProductProblem, weight: Tensor, keep: Sequence[int]) -> Tensor:
    """The weights of the paths `keep`, in the order of the paths."""
    parts = [weight[..., problem.paths[index].weight_slice] for index in sorted(keep)]
    return torch.cat(parts, dim=-1) if parts else weight[..., :0]
