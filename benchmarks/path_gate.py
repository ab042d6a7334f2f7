"""What a MACE whose paths were gated to a share costs: its product, and its training step.

Second layer of a MACE with hidden irreps up to L = 2 (17 paths), five frames of 3BPA, float32. The
dense product and those that are left for several kept sets are timed in turn: forward, first and
second gradient. Kept sets are random ones, as a trained gate's may be any, the dearest, and that of
a trained model. The bar at a share of 50 %: at most 70 % of the flops and of the time.

    .venv/bin/python -m eqtp.benchmarks.path_gate
    .venv/bin/python -m eqtp.benchmarks.path_gate --channels 32 --model RUN/model.safetensors
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eqtp
from eqtp.benchmarks.timing import Samples, alternate, machine, results_folder, worker, write_json
from eqtp.nn.explanation import flops_per_row

MODULE = "eqtp.benchmarks.path_gate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench path_gate`."""
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--model", type=Path, help="a gated model, trained: its set takes part")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, default=results_folder() / "path_gate.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        trained: Any = eqtp.models.load(args.model) if args.model else None
        learned = trained and trained.hyperparameters["paths"][1]
        write_json(args.worker, measure(args.channels, args.keep, learned, args.repetitions))
        return 0
    options = ["--repetitions", args.repetitions, "--channels", args.channels, "--keep", args.keep]
    options += ["--model", args.model] if args.model else []
    record = {"machine": machine(), **worker(MODULE, args.threads, *options)}
    write_json(args.output, record)
    print(f"{'kept set':12}{'paths':>7}{'flops':>8}{'product, CPU':>16}{'step, CPU':>16}")
    for name, row in record["sets"].items():
        shares = [f"{100 * row[key]:.0f} %" for key in ("flops", "product", "step")]
        print(f"{name:12}{row['paths']:7d}{shares[0]:>8}{shares[1]:>16}{shares[2]:>16}")
    return 0


def measure(
    channels: int, keep: float, learned: Sequence[int] | None, repetitions: int
) -> dict[str, Any]:
    """Shares of the dense model's flops and times, for each kept set, a learned one included."""
    from eqtp.benchmarks.threebpa import ThreeBPA, collate
    from eqtp.benchmarks.training_step import five_frames, training_step
    from eqtp.models.blocks.path_gates import gate_paths, prune_paths

    torch.manual_seed(0)
    frames = ThreeBPA.load()
    data = collate(five_frames(frames.train), torch.float32)
    hidden = "+".join(f"{channels}x{l}{'eo'[l % 2]}" for l in range(3))

    def make() -> Any:
        model = eqtp.models.MACE(max_ell=3, hidden_irreps=hidden, **frames.statistics())
        return model.float().train()

    dense = make()
    problem = dense.interactions[1].conv_tp.problem
    models: dict[str, Any] = {"dense": dense}
    for name, scores in _scores(problem, learned).items():
        model = make()
        *_, gate = gate_paths(model, keep)
        with torch.no_grad():
            gate.scores.copy_(torch.tensor(scores))
        models[name] = prune_paths(model)
    products = {name: _product(model, data) for name, model in models.items()}
    steps = {name: training_step(model, data) for name, model in models.items()}
    time_product = _median(alternate(products, repetitions=repetitions))
    time_step = _median(alternate(steps, repetitions=max(2, repetitions // 2)))
    sets = {}
    for name, model in models.items():
        kept = model.interactions[1].conv_tp.problem
        sets[name] = {
            "paths": len(kept.paths),
            "flops": flops_per_row(kept) / flops_per_row(problem),
            "product": time_product[name] / time_product["dense"],
            "step": time_step[name] / time_step["dense"],
            "parameters": sum(p.numel() for p in model.parameters()),
        }
    absolute = {"product_seconds": time_product, "step_seconds": time_step}
    return {"channels": channels, "keep": keep, "sets": sets, **absolute}


def _scores(
    problem: eqtp.problem.TensorProductProblem, learned: Sequence[int] | None
) -> dict[str, list[float]]:
    """Scores of the paths: random ones, the flops of each, and 1 for those of a learned set."""
    count = len(problem.paths)
    costs = [float(flops_per_row(problem.prune([path]))) for path in range(count)]
    generator = torch.Generator().manual_seed(0)
    drawn = {f"random {k}": torch.rand(count, generator=generator).tolist() for k in range(4)}
    sets = {**drawn, "dearest": [cost / max(costs) for cost in costs]}
    if learned is not None:
        sets["learned"] = [float(path in learned) for path in range(count)]
    return sets


def _product(model: Any, data: Any) -> Callable[[], object]:
    """Forward, gradient and gradient of the gradient of the second layer's product."""
    tp = model.interactions[1].conv_tp
    graph = eqtp.Graph(data.edge_src, data.edge_dst, len(data.positions))
    shapes = (
        (len(data.positions), tp.irreps_in1.dim),
        (graph.num_edges, tp.irreps_in2.dim),
        (graph.num_edges, tp.weight_numel),
    )
    x1, x2, weight = (torch.randn(shape).requires_grad_() for shape in shapes)

    def call() -> tuple[Tensor, ...]:
        out = tp(x1, x2, weight, graph=graph)
        first = torch.autograd.grad(out.square().sum(), (x2, weight), create_graph=True)
        squares = torch.stack([gradient.square().sum() for gradient in first])
        second: tuple[Tensor, ...] = torch.autograd.grad(squares.sum(), (x1, x2, weight))
        return second

    return call


def _median(samples: dict[str, Samples]) -> dict[str, float]:
    """Median CPU time of each call, in seconds."""
    return {name: statistics.median(one.cpu) for name, one in samples.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.path_gate`."""
    parser = argparse.ArgumentParser(prog="path_gate", description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
