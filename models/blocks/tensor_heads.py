"""Tensor-valued targets of a model, such as dipoles and polarizabilities, beside its energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.nn import TensorReadout
from eqtp.so3 import tensor_irreps

__all__ = ["RESERVED", "TensorHeads", "TensorTarget", "parse_targets", "with_irreps_of"]

RESERVED = frozenset(
    (
        *("energy", "forces", "stress", "virials", "node_energy", "per_atom"),
        *("energies", "free_energy", "loss", "frames"),
        *("atomic_numbers", "positions", "numbers", "cell", "pbc", "batch", "ptr", "num_nodes"),
        *("edge_src", "edge_dst", "edge_shift", "epoch", "step", "seconds", "phase", "lr"),
    )
)
"""Names that mean something else in a structure, in a model's output or in a training's log."""


@dataclass(frozen=True)
class TensorTarget:
    """A Cartesian tensor that a model predicts.

    Attributes:
        formula: Index symmetry, see `eqtp.so3.tensor_symmetry`: "i" for a dipole, "ij=ji" for a
            polarizability, "" for a scalar.
        traceless: Whether every contraction of two indices vanishes.
        parity: What inversion does to it; (-1)^rank when None.
        per: "graph" where a structure has one tensor, the sum over its atoms; "atom" where every
            atom has its own.
        unit: Of the labels, for reports.
        scale: What the model's output is multiplied with, in this unit.
    """

    formula: str = "ij=ji"
    traceless: bool = False
    parity: Literal[-1, 1] | None = None
    per: Literal["graph", "atom"] = "graph"
    unit: str = ""
    scale: float = 1.0

    @property
    def irreps(self) -> Irreps:
        """Irreps of the tensor."""
        return tensor_irreps(self.formula, self.traceless, parity=self.parity)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one tensor, (3, ..., 3)."""
        return (3,) * len(self.formula.partition("=")[0].strip().lstrip("+-"))


def parse_targets(targets: Mapping[str, Mapping[str, Any]] | None) -> dict[str, TensorTarget]:
    """Targets by name, from the JSON of a model's hyperparameters.

    Raises:
        ValueError: A name cannot be one, or a field is unknown or out of range.

    Example:
        >>> parse_targets({"dipole": {"formula": "i", "unit": "e Å"}})["dipole"].irreps
        1x1o
    """
    parsed = {}
    for name, fields in (targets or {}).items():
        if not name.isidentifier() or name.startswith("_") or name in RESERVED:
            raise ValueError(
                "a target's name must be a word of letters, digits and underscores that means "
                f"nothing else, got {name!r}"
            )
        known = TensorTarget.__dataclass_fields__
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"target {name!r} has the fields {', '.join(known)}, got {', '.join(unknown)}"
            )
        target = TensorTarget(**fields)
        if target.per not in ("graph", "atom"):
            raise ValueError(f"target {name!r}: per must be 'graph' or 'atom', got {target.per!r}")
        if not target.scale > 0:
            raise ValueError(f"target {name!r}: scale must be positive, got {target.scale}")
        assert target.irreps  # a formula that cannot be read raises here
        parsed[name] = target
    return parsed


def with_irreps_of(scalars: Irreps, hidden: Irreps, targets: Mapping[str, TensorTarget]) -> Irreps:
    """The features of a last layer: the scalars, and those hidden irreps that a target needs."""
    needed = {ir for target in targets.values() for _, ir in target.irreps}
    more = [(mul, ir) for mul, ir in hidden if ir in needed and scalars.count(ir) == 0]
    return Irreps([*scalars, *more])


class TensorHeads(nn.Module):
    """Reads the targets from the features of every layer that has their irreps.

        T[target] = scale * sum over layers of TensorReadout(features of the layer)

    Args:
        targets: The targets by name.
        layers: Irreps of the features of each layer; the last must have those of every target.

    Raises:
        ValueError: The features of the last layer lack an irrep of a target.
    """

    def __init__(self, targets: Mapping[str, TensorTarget], layers: Sequence[Irreps]) -> None:
        super().__init__()
        self.targets = dict(targets)
        self.readouts = nn.ModuleDict()
        for name, target in targets.items():
            _check_layers(name, target, layers[-1])
            readouts = nn.ModuleDict()
            for layer, irreps in enumerate(layers):
                if all(irreps.count(ir) > 0 for _, ir in target.irreps):
                    readouts[str(layer)] = TensorReadout(
                        irreps,
                        target.formula,
                        target.traceless,
                        parity=target.parity,
                        layout="ir_mul",
                    )
            self.readouts[name] = readouts

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The tensors of every node, [nodes, 3, ..., 3].

        Args:
            features: Those of each layer, layout "ir_mul".
        """
        tensors = {}
        for name, readouts in self.readouts.items():
            assert isinstance(readouts, nn.ModuleDict)
            parts = [readout(features[int(layer)]) for layer, readout in readouts.items()]
            tensors[name] = self.targets[name].scale * torch.stack(parts).sum(0)
        return tensors

    def per_target(
        self, tensors: Mapping[str, Tensor], batch: Int[Tensor, " nodes"], num_graphs: int
    ) -> dict[str, Tensor]:
        """The targets as they are labelled: of the nodes, or summed over those of a graph."""
        return {
            name: tensor
            if self.targets[name].per == "atom"
            else tensor.new_zeros(num_graphs, *tensor.shape[1:]).index_add(0, batch, tensor)
            for name, tensor in tensors.items()
        }

    @property
    def hyperparameters(self) -> dict[str, dict[str, Any]]:
        """The targets as JSON; `parse_targets` reads it."""
        return {name: asdict(target) for name, target in self.targets.items()}


def _check_layers(name: str, target: TensorTarget, features: Irreps) -> None:
    missing = [str(ir) for _, ir in target.irreps if features.count(ir) == 0]
    if missing:
        raise ValueError(
            f"target {name!r} (formula {target.formula!r}) needs the irreps '{target.irreps}', the "
            f"model's features '{features}' lack {', '.join(missing)}: add them to hidden_irreps "
            "(max_ell must reach their degree)"
        )
