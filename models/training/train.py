"""The command `eqtp train`: data, training, error table and plots."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

import eqtp.models
from eqtp.files import write_atomically
from eqtp.models.blocks.path_gates import explain_gates, prune_paths
from eqtp.models.training.checkpoint import (
    CorruptCheckpointError,
    RunDirectory,
    read_checkpoint,
)
from eqtp.models.training.config import Config, load_config, presets
from eqtp.models.training.data import StructureDataset
from eqtp.models.training.evaluation import Evaluation, evaluate
from eqtp.models.training.loop import describe, fit
from eqtp.models.training.metrics_log import read_metrics
from eqtp.models.training.plots import plot_curves, plot_parity
from eqtp.models.training.prepare import Prepared, prepare
from eqtp.models.training.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `eqtp train`."""
    parser.description = "Train a potential. Ends with an error table and plots in the run folder."
    parser.add_argument(
        "config",
        nargs="?",
        help=f"YAML file or preset ({', '.join(presets())}); not with --resume",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.lr=0.005")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print config and sizes, and stop before training"
    )


def run(args: argparse.Namespace) -> int:
    """Trains as the arguments say; returns the exit status."""
    config, folder, state = _start(args)
    if args.dry_run:
        _say(config.to_yaml())
    prepared = prepare(config)
    _say(prepared.summary())
    for note in prepared.splits.notes:
        _say(f"note: {note}")
    _say(_plan(config, len(prepared.train)))
    if args.dry_run:
        return 0
    if state is not None:
        _check_same_model(state, prepared.model, folder)
    folder = _open_folder(folder, config, new=args.resume is None) or folder
    trainer = fit(prepared.model, prepared.train, prepared.valid, config, folder, state)
    if trainer.is_global_zero:
        finish(prepared, config, folder, trainer.strategy.root_device)
    return 0


def _plan(config: Config, num_frames: int) -> str:
    """How long training will be."""
    training = config.training
    processes = training.num_nodes * (training.devices if training.devices != "auto" else 1)
    frames = training.batch_size * processes
    steps = -(-num_frames // frames)
    limit = f", at most {training.max_time:g} minutes" if training.max_time else ""
    return f"{training.max_epochs} epochs of {steps} steps of up to {frames} frames{limit}"


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


@rank_zero_only
def _open_folder(folder: RunDirectory, config: Config, *, new: bool) -> RunDirectory:
    """Makes the folder of a new run, and writes down the config; the first process does."""
    if new:
        folder = RunDirectory.create(folder.path)
    write_atomically(folder.config, config.to_yaml().encode())
    _say(f"run folder: {folder.path}")
    return folder


def _start(args: argparse.Namespace) -> tuple[Config, RunDirectory, dict[str, Any] | None]:
    """Config, folder, and for a resumed run the checkpoint."""
    if args.resume is None:
        if args.config is None:
            raise ValueError("eqtp train needs a config or preset, or --resume RUN, got neither")
        config = load_config(args.config, args.overrides)
        return config, RunDirectory(config.run_dir or f"runs/{Path(args.config).stem}"), None
    folder = RunDirectory.open(args.resume)
    overrides = [*([args.config] if args.config else []), *args.overrides]
    config = load_config(folder.config, overrides)
    state, refused = folder.read_latest()
    for reason in refused:
        _say(f"refused: {reason}")
    if state is not None:
        at = state["position"]
        _say(f"resuming at epoch {at['epoch'] + 1}, batch {at['batch'] + 1}, step {at['step']}")
    return config, folder, state


def _check_same_model(state: dict[str, Any], model: nn.Module, folder: RunDirectory) -> None:
    """Resuming with other data or another architecture would not go on with the same run."""
    known, new = state["hyperparameters"], describe(model)["hyperparameters"]
    changed = [key for key in {**known, **new} if not _same(known.get(key), new.get(key))]
    if changed or state["class"] != type(model).__name__:
        raise ValueError(
            f"a resumed run must have the model and data of its checkpoint in {folder.path}, "
            f"got other values of {', '.join(changed) or 'model.name'}: start a new run instead"
        )


def _same(a: Any, b: Any) -> bool:
    """Equality that does not tell lists from tuples."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def finish(prepared: Prepared, config: Config, folder: RunDirectory, device: torch.device) -> None:
    """Saves the averaged weights, evaluates the best of them, and writes table and plots."""
    model: Any = prepared.model.eval()
    last, _ = folder.read_latest()
    assert last is not None
    model.load_state_dict(last["ema"])
    eqtp.models.save(prune_paths(model), folder.model.with_stem("model_last"))
    try:
        best = read_checkpoint(folder.best)
    except (CorruptCheckpointError, FileNotFoundError) as error:
        _say(f"{error}; the last weights are evaluated instead of the best")
        best = last
    model.load_state_dict(best["ema"])
    kept = explain_gates(model)
    model = prune_paths(model)
    eqtp.models.save(model, folder.model)
    evaluations = _evaluate_all(model, prepared, config, device)
    report = Report(
        title=f"{folder.path.name}: best averaged weights, step {best['position']['step']}",
        evaluations=evaluations,
        notes=[*prepared.splits.notes, *kept.splitlines()],
        published=prepared.splits.published,
        facts={
            "steps": last["position"]["step"],
            "seconds": last["recorder"]["seconds"],
            "parameters": sum(p.numel() for p in model.parameters()),
            **({"paths": model.hyperparameters["paths"]} if kept else {}),
        },
    )
    files = report.write(folder.report)
    files.append(plot_curves(read_metrics(folder), folder.report / "curves.png"))
    for quantity in ("energy", "forces", *config.data.targets):
        plot = plot_parity(evaluations, quantity, folder.report / f"parity_{quantity}.png")
        files += [plot] if plot else []
    _say(f"\n{report.text()}\n")
    _say(f"model: {folder.model}")
    for file in files:
        _say(f"report: {file}")


def _evaluate_all(
    model: nn.Module, prepared: Prepared, config: Config, device: torch.device
) -> list[Evaluation]:
    """Validation and test sets, on the device that trained."""
    dtype = next(model.parameters()).dtype
    sets = {"validation": prepared.valid}
    for name, frames in prepared.splits.tests.items():
        sets[name] = list(
            StructureDataset(
                frames, config.model.r_max, dtype=dtype, targets=config.data.named_targets
            )
        )
    size = config.training.evaluation_batch_size
    return [
        evaluate(model, dataset, name=name, batch_size=size, device=device)
        for name, dataset in sets.items()
    ]
