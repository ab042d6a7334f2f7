"""The command `eqtp evaluate`: errors of a model on labelled frames."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import eqtp.models
from eqtp.files import write_atomically
from eqtp.models.training.data import StructureDataset
from eqtp.models.training.datasets import NAMES, load_named
from eqtp.models.training.evaluation import evaluate
from eqtp.models.training.labels import LabelKeys
from eqtp.models.training.plots import plot_parity
from eqtp.models.training.reading import read
from eqtp.models.training.report import Report
from eqtp.models.training.statistics import split_isolated
from eqtp.models.training.targets import TargetLabels, in_every_frame, targets_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `eqtp evaluate`."""
    parser.description = "Errors of a model on labelled frames."
    parser.add_argument("model", help="model file (.safetensors) or the folder of a run")
    parser.add_argument(
        "data", nargs="+", help=f"files that ASE reads, or a named set ({', '.join(NAMES)})"
    )
    parser.add_argument("--plots", metavar="DIR", help="write parity plots here")
    parser.add_argument("--json", metavar="FILE", help="write the errors here")
    parser.add_argument("--batch-size", type=int, default=10, help="frames at a time")
    parser.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ...')
    parser.add_argument("--dtype", choices=("float32", "float64"), help="default: the model's own")
    for name in ("energy", "forces", "stress"):
        parser.add_argument(f"--{name}-key", help=f"key of the {name} label")
    parser.add_argument(
        "--target-key",
        action="append",
        default=[],
        metavar="NAME=KEY",
        help="key of a tensor target's label; by default its name, with REF_ before it or not",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say; returns the exit status."""
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = eqtp.models.load(
        args.model, dtype=getattr(torch, args.dtype) if args.dtype else None
    )
    dtype, r_max = next(model.parameters()).dtype, model.hyperparameters["r_max"]
    keys = LabelKeys(args.energy_key, args.forces_key, args.stress_key)
    targets = _targets(model, args.target_key)
    evaluations, notes, published = [], [], None
    for data in args.data:
        if data in NAMES:
            splits = load_named(data)
            sets, published = splits.tests, splits.published
            notes += splits.notes
            present: TargetLabels = {}
        else:
            require = None if not targets else ()
            frames = read(data, keys=keys, require=require, targets=targets, targets_required=False)
            frames, _ = split_isolated(frames)
            present = in_every_frame(frames, targets)
            sets = {Path(data).name: frames}
        for name, frames in sets.items():
            structures = list(StructureDataset(frames, r_max, dtype=dtype, targets=present))
            evaluations.append(
                evaluate(model, structures, name=name, batch_size=args.batch_size, device=device)
            )
    report = Report(f"errors of {args.model}", evaluations, notes, published)
    print(report.text())
    if args.json:
        write_atomically(Path(args.json), report.json().encode())
    if args.plots:
        for quantity in ("energy", "forces", *targets):
            plot = plot_parity(evaluations, quantity, Path(args.plots) / f"parity_{quantity}.png")
            if plot:
                print(f"plot: {plot}")
    return 0


def _targets(model: Any, keys: list[str]) -> TargetLabels:
    """The model's tensor targets with the keys of their labels."""
    chosen = {}
    known = targets_of(model)
    for text in keys:
        name, separator, key = text.partition("=")
        if not separator or name not in known:
            raise ValueError(
                "--target-key must read NAME=KEY with a target of the model "
                f"({', '.join(known) or 'this one has none'}), got {text!r}"
            )
        chosen[name] = key
    return {name: (target, chosen.get(name)) for name, target in known.items()}
