"""Learned sparsity in MACE: the paths of its convolutions compete, and the best share stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from eqtp.nn import Linear, PathGate, TensorProduct
from eqtp.nn.explanation import flops_per_row

__all__ = ["ConvolutionGate", "explain_gates", "gate_paths", "path_gates", "prune_paths"]

AnyModel = TypeVar("AnyModel", bound=nn.Module)


class ConvolutionGate(PathGate):
    """A `PathGate` of a convolution whose result is mixed by a linear map, block by block.

    Once frozen, what no path reaches is left out: the columns of the radial network's last matrix,
    the blocks of the messages, and the rows of the linear map.
    """

    _small: tuple[TensorProduct, Linear] | None = None

    def parts(
        self, last: Tensor, linear: Linear
    ) -> tuple[TensorProduct, Tensor, Callable[[Tensor], Tensor]]:
        """What computes the messages at the present step.

        Args:
            last: Last matrix of the radial network, of the dense product's width.
            linear: The map of the dense product's result.

        Returns:
            The product; the last matrix of the network for it, coefficients multiplied in; and
            the linear map of its result.
        """
        if self.phase != "frozen":
            return self.tp, self.scale(last), linear
        kept = self.selected()
        if self._small is None:
            small = Linear(linear.irreps_in, linear.irreps_out, layout=linear.layout)
            small = small.prune(kept)
            small.weight = None
            self._small = (self.tp.prune(kept, compact=True), small)
        product, mix = self._small
        weight = linear.prune_weight(linear.get_parameter("weight"), kept)
        return product, self.prune_weight(last), lambda message: mix(message, weight)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores step and set; what was made for another set is dropped."""
        before = self.selected() if self.phase == "frozen" else None
        super().set_extra_state(state)
        if self.phase != "frozen" or self.selected() != before:
            self._small = None


def gate_paths(
    model: nn.Module,
    keep: float = 0.5,
    *,
    random_steps: int = 3400,
    top_steps: int = 1700,
    seed: int = 0,
) -> list[ConvolutionGate]:
    """Puts a gate on the convolution of every layer of a MACE model, in place.

    In each training step call `set_step` of the gates; in the end `prune_paths` gives a smaller
    model. A layer of which the share keeps everything, as the first one with a path for each
    degree, gets no gate.

    Args:
        model: A MACE model.
        keep: Share of the paths of a layer that stay.
        random_steps: Length of the random phase, see `eqtp.PathGate`.
        top_steps: Length of the phase after it.
        seed: Of the random sets; layers have sets of their own.

    Returns:
        The gates, in the order of the layers.

    Raises:
        TypeError: The model is not a MACE.
        ValueError: It has gates or pruned paths already, or the share is out of range.

    Example:
        >>> from eqtp.models import MACE
        >>> model = MACE(atomic_numbers=[1], atomic_energies=[0.0], avg_num_neighbors=2.0,
        ...              hidden_irreps="4x0e+4x1o", max_ell=2)
        >>> [len(gate.scores) for gate in gate_paths(model)]
        [7]
    """
    from eqtp.models.mace import MACE

    if not isinstance(model, MACE):
        raise TypeError(f"path gates are for MACE's convolutions, got a {type(model).__name__}")
    if path_gates(model) or model.hyperparameters["paths"] is not None:
        raise ValueError("the paths of a model can be gated once, this one is gated or pruned")
    gates = []
    for layer, interaction in enumerate(model.interactions):
        gate = ConvolutionGate(
            interaction.conv_tp,  # type: ignore[arg-type]
            keep,
            random_steps=random_steps,
            top_steps=top_steps,
            seed=1000 * seed + layer,
        )
        if len(gate.selected()) < len(gate.scores):
            gate.to(next(model.parameters()))
            interaction.gate = gate
            gates.append(gate)
    return gates


def path_gates(model: nn.Module) -> list[ConvolutionGate]:
    """The gates of a model, in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, ConvolutionGate)]


def prune_paths(model: AnyModel) -> AnyModel:
    """A copy of a gated model with the selected paths only, and without the gates.

    Gates that are not frozen yet keep the paths of the highest scores. Radial networks end in the
    kept columns, with the coefficients multiplied in, and linear maps have the rows of the kept
    paths: parameters, flops and memory drop, energies stay the same. The copy is an ordinary
    model that `eqtp.models.save` writes; its hyperparameter `paths` says what was kept.

    Args:
        model: A model with gates; one without is copied as it is.

    Example:
        >>> from eqtp.models import MACE
        >>> model = MACE(atomic_numbers=[1], atomic_energies=[0.0], avg_num_neighbors=2.0,
        ...              hidden_irreps="4x0e+4x1o", max_ell=2)
        >>> _ = gate_paths(model, keep=0.5)
        >>> prune_paths(model).hyperparameters["paths"]
        [None, [0, 1, 2, 5]]
    """
    if not path_gates(model):
        return copy.deepcopy(model)
    pruned: Any = copy.deepcopy(model)
    paths: list[list[int] | None] = []
    for interaction in pruned.interactions:
        gate = interaction.gate
        if gate is None:
            paths.append(None)
            continue
        gate.freeze()
        network = interaction.conv_tp_weights
        last = network.get_submodule(f"layer{network.num_layers - 1}")
        last.weight = nn.Parameter(gate.prune_weight(last.weight).detach().clone())
        interaction.conv_tp = gate.prune(compact=True)
        interaction.linear = interaction.linear.prune(gate.selected())
        interaction.gate = None
        paths.append(list(gate.selected()))
    pruned.hyperparameters = {**pruned.hyperparameters, "paths": paths}
    result: AnyModel = pruned
    return result


def explain_gates(model: nn.Module) -> str:
    """One line per gated layer: paths kept, and the flops of its product."""
    lines = []
    for layer, interaction in enumerate(getattr(model, "interactions", ())):
        gate = interaction.gate
        if gate is not None:
            kept, dense = gate.selected(), flops_per_row(gate.tp.problem)
            sparse = flops_per_row(gate.tp.problem.prune(kept))
            lines.append(
                f"paths of layer {layer + 1}: {len(kept)} of {len(gate.scores)} kept "
                f"({gate.phase}), {100 * sparse / dense:.0f} % of the product's flops"
            )
    return "\n".join(lines)
