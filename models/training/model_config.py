"""What a config says about each model: its hyperparameters but for what the data determine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """What every model has; a model's own class adds its `name` and its hyperparameters.

    Fields are the keyword arguments of the model's class, `name` apart.

    Attributes:
        r_max: Cutoff radius in Å.
        backend: Which kernels to use, see `eqtp.backend`.
        scale: Factor of the learned energy in eV, or `"rms_forces"`: the training set's RMS force.
        shift: Energy per atom in eV added to E0s, or `"mean"`: the training set's mean per-atom
            interaction energy.
    """

    name: str
    r_max: PositiveFloat = 5.0
    backend: Literal["auto", "triton", "cpu", "torch", "reference"] = "auto"
    scale: float | Literal["rms_forces"] = "rms_forces"
    shift: float | Literal["mean"] = "mean"


class MACEConfig(ModelConfig):
    """Hyperparameters of `eqtp.models.MACE`."""

    name: Literal["MACE"] = "MACE"
    num_bessel: PositiveInt = 8
    num_polynomial_cutoff: PositiveInt = 5
    max_ell: Annotated[int, Field(ge=0)] = 3
    correlation: Annotated[int, Field(ge=1, le=4)] = 3
    num_interactions: PositiveInt = 2
    hidden_irreps: str = "32x0e+32x1o"
    mlp_irreps: str = "16x0e"
    radial_mlp: tuple[PositiveInt, ...] = (64, 64, 64)
    basis: Literal["independent", "mace"] = "independent"
    product: Literal["cg", "gaunt", "gaunt_iterated"] = "cg"


class ESCNConfig(ModelConfig):
    """Hyperparameters of `eqtp.models.ESCN`."""

    name: Literal["ESCN"] = "ESCN"
    lmax: Annotated[int, Field(ge=0)] = 3
    m_max: Annotated[int, Field(ge=0)] | None = 2
    channels: PositiveInt = 64
    hidden_channels: PositiveInt | None = None
    num_layers: PositiveInt = 3
    edge_channels: PositiveInt = 64
    radial_basis: Literal["gaussian", "bessel"] = "gaussian"
    num_rbf: PositiveInt = 32
    num_polynomial_cutoff: Annotated[int, Field(ge=2)] = 5
    feed_forward: Literal["spectral", "grid"] = "spectral"
    group: Literal["O(3)", "SO(3)"] = "O(3)"


class TensorNetConfig(ModelConfig):
    """Hyperparameters of `eqtp.models.TensorNet`."""

    name: Literal["TensorNet"] = "TensorNet"
    channels: Annotated[int, Field(ge=2)] = 64
    num_layers: Annotated[int, Field(ge=0)] = 2
    num_rbf: Annotated[int, Field(ge=2)] = 32
    group: Literal["O(3)", "SO(3)"] = "O(3)"


def _name(value: Any) -> Any:
    """The name that picks the class; MACE where there is none."""
    if isinstance(value, dict):
        return value.get("name", "MACE")
    return getattr(value, "name", None)


AnyModelConfig = Annotated[
    Annotated[MACEConfig, Tag("MACE")]
    | Annotated[ESCNConfig, Tag("ESCN")]
    | Annotated[TensorNetConfig, Tag("TensorNet")],
    Discriminator(_name),
]
"""The config of one model or another, told apart by `name`: a model adds its class here."""
