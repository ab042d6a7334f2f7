"""The config: strict keys, typed overrides, phases, presets."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_args

import pytest

from eqtp.models.registry import MODEL_MODULES, model_class
from eqtp.models.training.config import load_config, parse_config, presets
from eqtp.models.training.model_config import AnyModelConfig, ESCNConfig, MACEConfig

MINIMAL = {"data": {"train_file": "train.xyz"}}


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_valid_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


def test_the_presets_are_there() -> None:
    assert {"3bpa-quick", "3bpa-small", "3bpa-paper", "3bpa-escn"} <= set(presets())


def test_overrides_are_typed_and_reach_every_depth() -> None:
    config = parse_config(
        dict(MINIMAL),
        [
            "training.lr=5e-3",
            "model.hidden_irreps=8x0e",
            "training.scheduler={kind: exponential, gamma: 0.9}",
            "data.e0s={H: -13.6}",
            "training.phases=[{start: 0}, {start: 0.75, energy_weight: 1000, lr: 1e-3}]",
            "training.phases.1.forces_weight=7",
            "training.max_time='00:01:30:00'",
            "training.clip_grad_norm=null",
        ],
        source="test",
    )
    assert config.training.lr == 0.005
    assert isinstance(config.model, MACEConfig)
    assert config.model.hidden_irreps == "8x0e"
    assert config.training.scheduler.gamma == 0.9
    assert config.data.e0s == {"H": -13.6}
    assert config.training.phases[1].forces_weight == 7
    assert config.training.phases[1].lr == 1e-3
    assert config.training.phase_starts() == [0, 750]
    assert config.training.max_time == 90
    assert config.training.clip_grad_norm is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.learning_rate=1", "unknown key 'training.learning_rate'.*known here:.* lr,"),
        ("model.hiden_irreps=8x0e", "did you mean model.hidden_irreps"),
        (
            "model={name: ESCN, channel: 8}",
            "'model.channel': did you mean model.chan",
        ),
        ("model={name: ESCN, correlation: 2}", "unknown key 'model.correlation'.*lmax, m_max"),
        ("model={name: ESCN, channels: 0}", "model.channels: .*greater than 0.*got 0"),
        ("model.name=Mace", "model.name must be one of MACE, ESCN.*got 'Mace'"),
        ("trainin.lr=1", "unknown key 'trainin': did you mean training"),
        ("lr=1", "did you mean training.lr"),
        ("training.phases=[{strat: 0}]", "did you mean training.phases.0.start"),
        ("training.lr=-1", "training.lr: .*greater than 0.*got -1"),
        ("training.lr=fast", "training.lr: .*got 'fast'"),
        ("training.batch_size=2.5", "training.batch_size: .*got 2.5"),
        ("training.dtype=float16", "training.dtype: .*'float32' or 'float64'.*got 'float16'"),
        ("training.max_time=soon", "days:hours:minutes:seconds.*'soon'"),
        ("training.phases=[]", "at least one phase"),
        ("training.phases=[{start: 0.5}]", "must start at epoch 0"),
        ("training.phases=[{start: 0}, {start: 5000}]", "before max_epochs=1000, got.*5000"),
        ("training.phases=[{energy_weight: 0, forces_weight: 0}]", "got 0 for all"),
        ("training.phases.3.lr=1", "training.phases"),
        ("data.train_file=null", "name .* or train_file, got neither"),
        ("data.name=3bpa", "name or train_file, not both"),
        ("data.valid_fraction=1.5", "data.valid_fraction: .*less than 1.*got 1.5"),
        ("training.lr.x=1", "'lr' is .*not a section"),
        ("training.lr", "key=value, got 'training.lr'"),
        ("training.lr=[1", "valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_with_rule_and_remedy(override: str, expected: str) -> None:
    raw = {"data": dict(MINIMAL["data"]), "training": {"lr": 0.01}}
    with pytest.raises(ValueError, match=f"(?s){expected}"):
        parse_config(raw, [override], source="test")


def test_a_model_is_chosen_by_its_name() -> None:
    raw = {**MINIMAL, "model": {"name": "ESCN"}}
    config = parse_config(raw, ["model.lmax=4", "model.r_max=6"], source="test")
    assert isinstance(config.model, ESCNConfig)
    assert (config.model.lmax, config.model.r_max) == (4, 6.0)
    assert config.model.scale == "rms_forces"
    assert parse_config(dict(MINIMAL), source="test").model.name == "MACE"


def test_every_model_has_a_config_and_every_config_a_model() -> None:
    """The fields, `name` apart, are arguments of the class, with the same defaults."""
    configs = get_args(get_args(AnyModelConfig)[0])
    sections = {get_args(one)[0].model_fields["name"].default: get_args(one)[0] for one in configs}
    assert set(sections) == set(MODEL_MODULES)
    for name, section in sections.items():
        arguments = inspect.signature(model_class(name)).parameters
        data = {"atomic_numbers", "atomic_energies", "avg_num_neighbors"}
        data |= {"tensor_targets", "paths"}  # of data.targets, and of a training's path gates
        assert set(arguments) - data == set(section.model_fields) - {"name"}
        for key, field in section.model_fields.items():
            if key not in ("name", "scale", "shift"):
                assert field.default == arguments[key].default, key


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("data: {train_file: a.xyz}\ntraining: {epochs: 3}\n")
    with pytest.raises(ValueError, match=r"my.yaml: unknown key 'training.epochs'.*max_epochs"):
        load_config(path)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text", "data: [unclosed", "\x00"])
def test_a_file_that_is_no_config_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"my\.yaml"):
        load_config(path)


def test_a_missing_config_names_the_presets() -> None:
    with pytest.raises(FileNotFoundError, match="3bpa-quick"):
        load_config("no-such-preset")
