"""TensorNet of torchmd-net 3.1 (and earlier 2.x) to eqtp, weight by weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eqtp.models.tensornet import TensorNet

__all__ = ["from_torchmd_net"]

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model": ("tensornet",),
    "rbf_type": ("expnorm",),
    "activation": ("silu",),
    "cutoff_lower": (0.0,),
    "output_model": ("Scalar",),
    "output_mlp_num_layers": (0,),
    "reduce_op": ("add", "sum"),
}
"""Arguments of torchmd-net that must have one of these values, where they are given."""

_NAMES = {
    "distance_expansion.means": "radial_basis.means",
    "distance_expansion.betas": "radial_basis.betas",
    "tensor_embedding.emb.weight": "embedding.elements.weight",
    "tensor_embedding.emb2": "embedding.pair",
    "tensor_embedding.init_norm": "embedding.norm",
    r"tensor_embedding.linears_scalar.(\d)": r"embedding.gates.\1",
    r"layers.(\d+).linears_scalar.(\d)": r"layers.\1.radial.linears.\2",
    "out_norm": "readout.norm",
    "linear": "readout.linear",
}
"""Patterns of names below `representation_model` and what they are called here."""


def from_torchmd_net(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> TensorNet:
    """See `TensorNet.from_torchmd_net`."""
    _check(config)
    state = {name.removeprefix("model."): value.detach() for name, value in state_dict.items()}
    state.pop("representation_model.distance.box", None)  # ours comes with the data
    elements = _take(state, "representation_model.tensor_embedding.emb.weight")
    numbers = list(range(1, min(len(elements), 119)))  # row 0 is no element
    energies = _atomic_energies(state, numbers)
    _refuse_molecular_shift(state)
    scale = state.pop("std", torch.tensor(1.0))
    model = TensorNet(
        atomic_numbers=numbers,
        atomic_energies=energies,
        r_max=float(config["cutoff_upper"]),
        channels=int(config["embedding_dimension"]),
        num_layers=int(config["num_layers"]),
        num_rbf=int(config["num_rbf"]),
        group=config.get("equivariance_invariance_group", "O(3)"),
        scale=float(scale),
    ).to(elements.dtype)
    found = {"embedding.elements.weight": elements[1 : len(numbers) + 1]}
    found |= _joined(state, model.hyperparameters["num_layers"])
    for name, value in state.items():
        found[_own_name(name)] = value
    try:
        model.load_state_dict(found, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights do not fit a TensorNet of this config: {error}; give the config that the "
            "model was made with"
        ) from error
    return model.eval()


def _check(config: Mapping[str, Any]) -> None:
    """Refuses what this class does not have, before anything is built."""
    for key in ("embedding_dimension", "num_layers", "num_rbf", "cutoff_upper"):
        if key not in config:
            raise ValueError(f"config must have {key!r}, got {sorted(config)}")
    for key, values in _SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            raise NotImplementedError(
                f"TensorNet.from_torchmd_net supports {key} {' or '.join(map(repr, values))}, "
                f"got {config[key]!r}"
            )
    prior = config.get("prior_model")
    names = [] if prior is None else [prior] if isinstance(prior, str) else list(prior)
    names = [name if isinstance(name, str) else next(iter(name)) for name in names]
    if [name for name in names if name != "Atomref"] or len(names) > 1:
        raise NotImplementedError(
            f"TensorNet.from_torchmd_net supports the prior 'Atomref' alone, got {names}"
        )


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"state_dict must have {name!r}, it has {sorted(state)[:5]} ...")
    return state.pop(name)


def _atomic_energies(state: dict[str, Tensor], numbers: list[int]) -> list[float]:
    """The energies of the prior `Atomref`, zero where there is none."""
    tables = [name for name in state if name.startswith("prior_model.")]
    values = {name: state.pop(name) for name in tables}
    table = next((v for name, v in values.items() if name.endswith("atomref.weight")), None)
    if table is None:
        return [0.0] * len(numbers)
    energies = table.double().flatten().tolist()
    return [energies[z] if z < len(energies) else 0.0 for z in numbers]


def _refuse_molecular_shift(state: dict[str, Tensor]) -> None:
    mean = state.pop("mean", torch.tensor(0.0))
    if bool(mean != 0):
        raise NotImplementedError(
            f"torchmd-net adds its mean ({float(mean)}) once per molecule, which no energy per "
            "atom does: subtract it from the labels and set it to 0"
        )


def _joined(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """What is one tensor here and several in torchmd-net."""
    root = "representation_model."
    projections = [f"{root}tensor_embedding.distance_proj{k}" for k in (1, 2, 3)]
    found = {
        f"embedding.radial.linears.0.{kind}": torch.cat(
            [_take(state, f"{name}.{kind}") for name in projections]
        )
        for kind in ("weight", "bias")
    }

    def matrices(name: str, first: int) -> Tensor:
        names = [f"{root}{name}.linears_tensor.{first + k}.weight" for k in range(3)]
        return torch.stack([_take(state, name).t() for name in names])

    found["embedding.mix.weight"] = matrices("tensor_embedding", 0)
    for layer in range(num_layers):
        found[f"layers.{layer}.mix_before.weight"] = matrices(f"layers.{layer}", 0)
        found[f"layers.{layer}.mix_after.weight"] = matrices(f"layers.{layer}", 3)
    return found


def _own_name(name: str) -> str:
    """Name here of a tensor there; unknown ones keep theirs and are reported as left over."""
    head = re.fullmatch(r"output_model\.output_network\.layers\.(\d)\.(weight|bias)", name)
    if head is not None:
        return f"readout.head.{int(head[1]) // 2}.{head[2]}"
    inner = name.removeprefix("representation_model.")
    for pattern, own in _NAMES.items():
        if match := re.fullmatch(rf"{pattern}(\.weight|\.bias)?", inner):
            return match.expand(own) + (match[match.lastindex or 0] if _has_kind(match) else "")
    return name


def _has_kind(match: re.Match[str]) -> bool:
    last = match[match.re.groups]
    return last in (".weight", ".bias")
