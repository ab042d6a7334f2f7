"""Training configuration: a strict schema read from YAML, with every field overridable.

A config file or preset is YAML of at most the fields below; what it leaves out keeps its default,
and a key that the schema does not know is an error that names the nearest ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from eqtp.models.blocks.tensor_heads import parse_targets
from eqtp.models.training.config_errors import explain
from eqtp.models.training.model_config import (
    AnyModelConfig,
    MACEConfig,
    PositiveFloat,
    PositiveInt,
    Section,
)
from eqtp.models.training.path_gating import PathGateConfig, refuse_pair_gate
from eqtp.models.training.targets import TargetConfig, TargetLabels

PRESETS = Path(__file__).resolve().parent.parent / "configs"

NonNegativeFloat = Annotated[float, Field(ge=0)]


def parse_duration(value: Any) -> float | None:
    """Minutes from a number of minutes or from a "days:hours:minutes:seconds" string.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> parse_duration("00:01:30:00"), parse_duration(7)
        (90.0, 7.0)
    """
    if value is None:
        return None
    if isinstance(value, str):
        fields = value.split(":")
        if len(fields) != 4 or not all(field.isdigit() for field in fields):
            raise ValueError(
                "a duration must be a number of minutes or 'days:hours:minutes:seconds', "
                f"got {value!r}"
            )
        days, hours, minutes, seconds = map(int, fields)
        return days * 1440 + hours * 60 + minutes + seconds / 60
    return float(value)


Minutes = Annotated[PositiveFloat, BeforeValidator(parse_duration)]


class DataConfig(Section):
    """Where the labelled frames come from.

    Attributes:
        name: A named data set, or None for files of your own.
        path: Folder of the files below, or of the named set (which is looked for in the usual
            places without it).
        train_file: Training frames (anything ASE reads).
        valid_file: Validation frames; without it a fraction of the training frames is held out.
        valid_fraction: That fraction.
        test_files: Test sets, name -> file.
        energy_key: Label key; None looks for the usual ones.
        forces_key: Label key; None looks for the usual ones.
        stress_key: Label key; None looks for the usual ones.
        e0s: Atomic reference energies: `"isolated"` (isolated-atom frames), `"average"` (least
            squares), or element -> eV. None: isolated atoms if the data has them, else average.
        targets: Tensor-valued labels to learn, name -> `TargetConfig`; each needs a weight in
            `target_weights` of a phase.
    """

    name: Literal["3bpa", "3bpa-xtb"] | None = None
    path: str | None = None
    train_file: str | None = None
    valid_file: str | None = None
    valid_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_files: dict[str, str] = Field(default_factory=dict)
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    e0s: dict[str, float] | Literal["isolated", "average"] | None = None
    targets: dict[str, TargetConfig] = Field(default_factory=dict)

    @property
    def named_targets(self) -> TargetLabels:
        """The targets as they stand in frames that were read: under their names."""
        return {name: (config.target, name) for name, config in self.targets.items()}

    @model_validator(mode="after")
    def _own_files_have_targets(self) -> DataConfig:
        parse_targets({name: asdict(config.target) for name, config in self.targets.items()})
        if self.targets and self.name is not None:
            raise ValueError(
                f"data.targets needs train_file, the named set {self.name!r} has no labels of "
                f"{', '.join(self.targets)}"
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.name is None and self.train_file is None:
            raise ValueError(
                "data needs name (a named data set such as '3bpa') or train_file, got neither"
            )
        if self.name is not None and self.train_file is not None:
            raise ValueError(
                f"data takes name or train_file, not both, got name={self.name!r} and "
                f"train_file={self.train_file!r}: set data.name=null to train on your file"
            )
        return self


class PhaseConfig(Section):
    """One stage of training; the stage-two recipe of MACE is a second phase.

    Attributes:
        start: First epoch: a fraction of `max_epochs` below 1, or an epoch number.
        energy_weight: Weight of the energy term of the loss.
        forces_weight: Weight of the force term; 0 trains without forces.
        stress_weight: Weight of the stress term; 0 trains without stress.
        target_weights: Weight of each tensor target, of its mean square error in its unit.
        lr: Learning rate from here on, its schedule starting anew; None goes on as before.
        scheduler: Schedule that starts here; None goes on as before.
    """

    start: NonNegativeFloat = 0.0
    energy_weight: NonNegativeFloat = 1.0
    forces_weight: NonNegativeFloat = 100.0
    stress_weight: NonNegativeFloat = 0.0
    target_weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    lr: PositiveFloat | None = None
    scheduler: SchedulerConfig | None = None

    @model_validator(mode="after")
    def _some_term(self) -> PhaseConfig:
        if not any((self.energy_weight, self.forces_weight, self.stress_weight)) and not any(
            self.target_weights.values()
        ):
            raise ValueError(
                "a phase needs a positive energy_weight, forces_weight, stress_weight or one in "
                "target_weights, got 0 for all"
            )
        return self


class SchedulerConfig(Section):
    """How the learning rate changes with the epochs; it never depends on the clock.

    Attributes:
        kind: `"constant"`; `"plateau"`: times `factor` after `patience` validations without a
            better validation loss; `"exponential"`: times `gamma` per epoch; `"cosine"`: from
            lr down to `final` times lr, step by step.
        factor: Of the plateau.
        patience: Of the plateau, in validations.
        gamma: Of the exponential.
        final: Of the cosine.
        warmup_steps: The rate rises linearly over the first steps of the run.
    """

    kind: Literal["constant", "plateau", "exponential", "cosine"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.8
    patience: PositiveInt = 50
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9993
    final: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class CheckpointConfig(Section):
    """How often `last.ckpt` is written besides the end of each validated epoch.

    Attributes:
        interval_minutes: A kill loses at most this much; None: only at the ends of epochs.
        interval_steps: The same in optimiser steps.
    """

    interval_minutes: PositiveFloat | None = 5.0
    interval_steps: PositiveInt | None = None


class TrainingConfig(Section):
    """The recipe.

    Attributes:
        batch_size: Frames per process and step.
        max_epochs: Epochs of the run.
        max_time: Training stops earlier after this long: minutes or "days:hours:minutes:seconds".
        optimizer: Adam, its AMSGrad variant, or AdamW.
        lr: Learning rate.
        weight_decay: On `model.weight_decay_parameters()` only: an L2 term of the loss, with AdamW
            the share of the weights that is taken off per step and learning rate.
        ema_decay: Of the exponential moving average of the weights; 0 switches it off.
        clip_grad_norm: Gradients with a larger norm are scaled down to it; None switches it off.
        scheduler: Learning-rate schedule.
        phases: Loss weights, stage by stage.
        loss: `"mace"`: mean of ((E - Ê)/n)² over frames; `"paper"`: mean of (E - Ê)² over frames;
            both add the mean square of force and stress components.
        dtype: Of model and data; energies are summed in float64 in any case.
        matmul_precision: `"high"` allows TF32 on a GPU.
        seed: Of weights, batches and the validation split.
        num_threads: CPU threads per process; None leaves torch's choice.
        eval_interval: Epochs between validations.
        eval_batch_size: Frames per step of an evaluation; None: `2 * batch_size`.
        log_interval: Steps between entries of the step loss in TensorBoard.
        accelerator: Lightning's: "auto", "cpu", "gpu".
        devices: Lightning's: a number of processes per node or "auto".
        num_nodes: Lightning's.
        strategy: Lightning's: "auto", "ddp".
        path_gate: Learned sparsity of MACE's convolutions; None keeps every path.
    """

    batch_size: PositiveInt = 5
    max_epochs: PositiveInt = 1000
    max_time: Minutes | None = None
    optimizer: Literal["adam", "amsgrad", "adamw"] = "amsgrad"
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 5e-7
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    clip_grad_norm: PositiveFloat | None = 10.0
    scheduler: SchedulerConfig = SchedulerConfig()
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    loss: Literal["mace", "paper"] = "mace"
    dtype: Literal["float32", "float64"] = "float64"
    matmul_precision: Literal["highest", "high"] = "highest"
    seed: Annotated[int, Field(ge=0)] = 0
    num_threads: PositiveInt | None = None
    eval_interval: PositiveInt = 1
    eval_batch_size: PositiveInt | None = None
    log_interval: PositiveInt = 10
    accelerator: str = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    num_nodes: PositiveInt = 1
    strategy: str = "auto"
    path_gate: PathGateConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_pair_gate(cls, given: Any) -> Any:
        return refuse_pair_gate(given)

    @model_validator(mode="after")
    def _phases_in_order(self) -> TrainingConfig:
        if not self.phases:
            raise ValueError("training.phases must hold at least one phase, got none")
        starts = self.phase_starts()
        if starts[0] != 0 or sorted(set(starts)) != starts:
            raise ValueError(
                "training.phases must start at epoch 0 and in increasing order, got the first "
                f"epochs {starts}"
            )
        if starts[-1] >= self.max_epochs:
            raise ValueError(
                f"every phase must start before max_epochs={self.max_epochs}, got one at epoch "
                f"{starts[-1]}"
            )
        return self

    @property
    def evaluation_batch_size(self) -> int:
        """Frames per step of an evaluation."""
        return self.eval_batch_size or 2 * self.batch_size

    def phase_starts(self) -> list[int]:
        """First epoch of each phase."""
        return [
            int(phase.start * self.max_epochs) if phase.start < 1 else int(phase.start)
            for phase in self.phases
        ]


class Config(Section):
    """Everything that defines a run.

    Attributes:
        run_dir: Folder for the run's files; None: `runs/<name of the config>`.
    """

    model: AnyModelConfig = MACEConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    run_dir: str | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        weighted = {name for p in self.training.phases for name in p.target_weights}
        targets = set(self.data.targets)
        if weighted != targets:
            raise ValueError(
                "every target of data.targets needs a weight in target_weights of a phase, and "
                f"every weight a target, got the targets {sorted(targets)} and weights for "
                f"{sorted(weighted)}"
            )
        for option, given in (("data.targets", targets), ("path_gate", self.training.path_gate)):
            if given and self.model.name != "MACE":
                raise ValueError(f"{option} needs model.name=MACE, got {self.model.name}")
        return self

    def to_yaml(self) -> str:
        """The resolved config as YAML that `load_config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


PhaseConfig.model_rebuild()


def presets() -> dict[str, Path]:
    """The configs shipped with eqtp, name -> file."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def load_config(path_or_preset: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file or preset, with `key=value` overrides applied.

    Args:
        path_or_preset: A file, or the name of a preset.
        overrides: For example `["training.lr=0.005", "model.hidden_irreps=16x0e"]`; values are
            parsed as YAML, list entries are addressed by number (`training.phases.1.lr=1e-3`).

    Raises:
        FileNotFoundError: if there is neither such a file nor such a preset.
        ValueError: for invalid YAML, an unknown key or a value out of range.

    Example:
        >>> load_config("3bpa-quick", ["training.lr=0.005"]).training.lr
        0.005
    """
    path = Path(path_or_preset)
    if path.suffix not in (".yaml", ".yml") and str(path_or_preset) in presets():
        path = presets()[str(path_or_preset)]
    if not path.is_file():
        raise FileNotFoundError(
            f"a config must be a YAML file or one of the presets {', '.join(presets())}, "
            f"got {str(path_or_preset)!r}"
        )
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping with model, data and training, got {raw!r}")
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str) -> Config:
    """The validated config of a nested dict; `source` is named in error messages.

    Raises:
        ValueError: for an unknown key or a value out of range.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ValueError(f"an override must read key=value, got {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"the value of {override!r} must be valid YAML") from error
        _set(raw, key, value)
    try:
        return Config.model_validate(_numbers(raw))
    except ValidationError as error:
        raise ValueError(explain(error, source, Config)) from error


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested dicts and lists, creating dicts on the way."""
    node: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(node, list):
            node = node[_index(node, parent, key)]
        else:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        if not isinstance(node, dict | list):
            raise ValueError(f"{key!r} cannot be set: {parent!r} is {node!r}, not a section")
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def _index(items: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise ValueError(
            f"{key!r} needs a list position from 0 to {len(items) - 1} where it says {text!r}"
        )
    return int(text)


def _numbers(raw: Any) -> Any:
    """Reads the floats that YAML 1.1 takes for text: 1e-3 has no dot."""
    if isinstance(raw, dict):
        return {key: _numbers(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_numbers(value) for value in raw]
    if isinstance(raw, str) and raw[:1] in "+-.0123456789" and "e" in raw.lower():
        try:
            return float(raw)
        except ValueError:
            return raw
    return raw
