"""A training step and an evaluation of TensorNet beside plain torch and torchmd-net's own path.

One batch of five 3BPA frames, two layers, 64 channels, O(3), float32, one set of weights for all.
"plain torch" is the published equations on full 3x3 matrices (`tensornet_plain`); "torchmd-net" is
torchmd-net 3.1 without its Warp kernels, where it is installed. Both compute what torchmd-net
keeps per edge. The contestants take turns in one process per number of threads.

    python -m eqtp.benchmarks.tensornet
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.benchmarks.tensornet_plain import PlainTensorNet
from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.benchmarks.training_step import evaluate, five_frames, milliseconds, training_step
from eqtp.models.tensornet import TensorNet

MODULE = "eqtp.benchmarks.tensornet"
CHANNELS, LAYERS = 64, 2
BAR = 2.0  # the baseline's time over eqtp's, at least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench tensornet`."""
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, default=results_folder() / "tensornet.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        write_json(args.worker, measure(args.threads[0], args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "channels": CHANNELS, "layers": LAYERS}
    options = ("--repetitions", args.repetitions)
    record["threads"] = {t: worker(MODULE, t, *options) for t in args.threads}
    write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def contestants(statistics: dict[str, Any]) -> dict[str, nn.Module]:
    """The models, float64, the baseline first; the weights are the same."""
    torch.manual_seed(0)
    if find_spec("torchmdnet") is None:
        known = {key: statistics[key] for key in statistics if key != "avg_num_neighbors"}
        ours = TensorNet(**known, channels=CHANNELS, num_layers=LAYERS).double()
        return {"plain torch": PlainTensorNet(ours), "eqtp": ours}
    opponent, config = torchmd_net(r_max=statistics["r_max"])
    ours = TensorNet.from_torchmd_net(opponent.model.state_dict(), config)
    return {"torchmd-net": opponent, "plain torch": PlainTensorNet(ours), "eqtp": ours}


class TorchmdNet(nn.Module):
    """A model of torchmd-net with the interface of eqtp's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, data: Any) -> dict[str, Tensor]:
        """Energies and forces; torchmd-net finds the edges anew in every call."""
        positions = data.positions.detach().clone()
        charge = getattr(data, "total_charge", None)
        energy, forces = self.model(data.atomic_numbers, positions, data.batch, q=charge)
        return {"energy": energy.squeeze(1).double(), "forces": forces}


def torchmd_net(r_max: float, **changes: Any) -> tuple[TorchmdNet, dict[str, Any]]:
    """A TensorNet of torchmd-net in float64 on its plain-torch path, and its config."""
    from torchmdnet.models import tensornet
    from torchmdnet.models.model import create_model

    tensornet.OPT = False  # as where warp-lang is not installed
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, f"_{name}"))
    config = {
        "model": "tensornet",
        "precision": 64,
        "embedding_dimension": CHANNELS,
        "num_layers": LAYERS,
        "num_rbf": 32,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "cutoff_lower": 0.0,
        "cutoff_upper": r_max,
        "max_z": 20,
        "max_num_neighbors": 64,
        "equivariance_invariance_group": "O(3)",
        "prior_model": None,
        "output_model": "Scalar",
        "reduce_op": "add",
        "derivative": True,
        "atom_filter": -1,
        **changes,
    }
    return TorchmdNet(create_model(config).double()), config


def measure(threads: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant in this process."""
    from eqtp.benchmarks.threebpa import ThreeBPA, collate

    torch.set_num_threads(threads)
    data = ThreeBPA.load()
    models = contestants(data.statistics())
    frames = five_frames(data.train)
    double, single = collate(frames, torch.float64), collate(frames, torch.float32)
    baseline = next(iter(models))
    reference = evaluate(models[baseline], double)
    errors = {"float64": _errors(evaluate(models["eqtp"], double), reference)}
    models = {name: model.float() for name, model in models.items()}
    for name in (baseline, "eqtp"):
        errors[f"float32 {name}"] = _errors(evaluate(models[name], single), reference)
    steps = {name: training_step(model, single) for name, model in models.items()}
    step_times = alternate(steps, repetitions=repetitions)
    evaluations = {name: _evaluation(model, single) for name, model in models.items()}
    evaluate_times = alternate(evaluations, repetitions=repetitions)
    return {
        "threads": threads,
        "num_atoms": len(single.positions),
        "num_edges": len(single.edge_src),
        "parameters": sum(map(Tensor.numel, models["eqtp"].parameters())),
        "errors": errors,
        "step": {name: samples.summary() for name, samples in step_times.items()},
        "evaluate": {name: samples.summary() for name, samples in evaluate_times.items()},
    }


def _evaluation(model: nn.Module, data: Any) -> Callable[[], object]:
    return lambda: evaluate(model, data)


def _errors(output: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    return {key: relative_error(output[key], reference[key]) for key in ("energy", "forces")}


def table(record: dict[str, Any]) -> str:
    """The medians with quartiles in ms, and the others' times over eqtp's."""
    lines = []
    for threads, measured in record["threads"].items():
        lines.append(
            f"\n3BPA, batch 5 ({measured['num_edges']} edges), {LAYERS} layers, {CHANNELS} "
            f"channels, float32, {threads} thread(s); median [quartiles] in ms"
        )
        lines.append(f"{'':10}{'':14}{'CPU':>26}{'wall':>26}{'CPU ratio':>11}{'wall ratio':>11}")
        for task in ("step", "evaluate"):
            ours = measured[task]["eqtp"]
            for name, clocks in measured[task].items():
                ratios = [clocks[c]["median"] / ours[c]["median"] for c in ("cpu", "wall")]
                cells = "".join(f"{milliseconds(clocks[clock]):>26}" for clock in ("cpu", "wall"))
                lines.append(f"{task:10}{name:14}{cells}{ratios[0]:11.2f}{ratios[1]:11.2f}")
        lines.append(f"{'':10}bar: a training step at least {BAR} times faster than the baseline")
        for name, error in measured["errors"].items():
            cells = ", ".join(f"{key} {value:.1e}" for key, value in error.items())
            lines.append(f"relative error, {name:20}{cells}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.tensornet`."""
    parser = argparse.ArgumentParser(prog="tensornet", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
