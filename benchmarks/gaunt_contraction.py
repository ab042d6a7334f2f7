"""MACE's products with Clebsch-Gordan and with Gaunt products: CPU time, forward to training.

The symmetric contraction of `eqtp.models.MACE` (result 0e+1o; the linear map behind it is the same
for all and left out) on the features of a batch of five molecules of 27 atoms and four elements,
float32: forward; forward and backward; and a loss of forces, whose gradient is a second one. Gaunt
products have fewer weights than `cg`, so this is the price of a product and not of an accuracy.
`cg` is left out where its couplings take minutes to make. The bar is "gaunt" 1.3 times faster than
"cg" at lmax 3, correlation 3.

    .venv/bin/python -m eqtp.benchmarks gaunt_contraction
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.irreps import Irreps
from eqtp.nn import SymmetricContraction
from eqtp.nn.symmetric_contraction import ContractionMethod

MODULE = "eqtp.benchmarks.gaunt_contraction"
METHODS: tuple[ContractionMethod, ...] = ("cg", "gaunt", "gaunt_iterated")
PASSES = ("forward", "backward", "force_loss")
CALLS = 5
"""Calls of a sample."""
LARGEST_CG = {1: 6, 2: 6, 3: 5, 4: 3}
"""Largest lmax of each correlation whose couplings are made in less than about a minute."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench gaunt_contraction`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=135)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--correlation", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--output", type=Path, default=results_folder() / "gaunt_contraction.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        sizes = args.channels[0], args.lmax[0], args.correlation[0]
        write_json(args.worker, measure(*sizes, args.nodes, args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": args.threads, "rows": []}
    print(
        "| channels | lmax | correlation | method | "
        + " | ".join(f"{name}, ms (times cg)" for name in PASSES)
        + " | weights | error |\n|"
        + "---|" * (6 + len(PASSES))
    )
    for sizes in itertools.product(args.channels, args.lmax, args.correlation):
        options = ("--channels", sizes[0], "--lmax", sizes[1], "--correlation", sizes[2])
        more = ("--nodes", args.nodes, "--repetitions", args.repetitions)
        measured = worker(MODULE, args.threads, *options, *more)
        record["rows"].append(measured)
        print(format_rows(measured), flush=True)
    write_json(args.output, record)
    return 0


def measure(
    channels: int, lmax: int, correlation: int, nodes: int, repetitions: int
) -> dict[str, Any]:
    """Times, number of weights and error of every method that the sizes allow."""
    torch.manual_seed(0)
    irreps_in = Irreps([(channels, (l, (-1) ** l)) for l in range(lmax + 1)])
    irreps_out = Irreps([(channels, (l, (-1) ** l)) for l in range(min(lmax, 1) + 1)])
    x, element = torch.randn(nodes, irreps_in.dim), torch.randint(4, (nodes,))
    calls: dict[str, Callable[[], object]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if method == "cg" and lmax > LARGEST_CG.get(correlation, 1):
            continue
        product = SymmetricContraction(
            irreps_in, irreps_out, correlation, 4, method=method, layout="ir_mul"
        )
        methods[method] = {
            "weights_per_channel": sum(weight.shape[1] for weight in product.parameters()),
            "error": _error(product, x, element),
        }
        for name in PASSES:
            calls[f"{method} {name}"] = _call(name, product, x.clone(), element)
    for name, samples in alternate(calls, repetitions=repetitions).items():
        owner, part = name.split()
        methods[owner][part] = samples.summary()
    sizes = {"channels": channels, "lmax": lmax, "correlation": correlation, "nodes": nodes}
    return sizes | {"methods": methods}


def _error(product: SymmetricContraction, x: Tensor, element: Tensor) -> float:
    """Of the force, beside the same product in float64 by plain torch."""
    exact = copy.deepcopy(product).double()
    exact.backend = "torch"
    return relative_error(_force(product, x, element), _force(exact, x.double(), element))


def _force(product: nn.Module, x: Tensor, element: Tensor, create_graph: bool = False) -> Tensor:
    x = x.detach().requires_grad_()
    energy = product(x, element).square().sum()
    return torch.autograd.grad(energy, x, create_graph=create_graph)[0]


def _call(name: str, product: nn.Module, x: Tensor, element: Tensor) -> Callable[[], object]:
    parameters = [*product.parameters()]

    def forward() -> None:
        with torch.no_grad():
            product(x, element)

    def backward() -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(product(leaf, element).square().sum(), [leaf, *parameters])

    def force_loss() -> None:
        loss = _force(product, x, element, create_graph=True).square().sum()
        torch.autograd.grad(loss, parameters)

    chosen = {"forward": forward, "backward": backward, "force_loss": force_loss}[name]

    def several() -> None:  # a single call of 0.2 ms would be one of cold caches
        for _ in range(CALLS):
            chosen()

    return several


def format_rows(measured: dict[str, Any]) -> str:
    """Lines of the table: CPU time of the fastest repetition, and how often it goes into cg's."""
    methods = measured["methods"]
    lines = []
    for method, found in methods.items():
        cells = [measured["channels"], measured["lmax"], measured["correlation"], method]
        for name in PASSES:
            time = found[name]["cpu"]["min"] / CALLS
            ratio = (
                methods["cg"][name]["cpu"]["min"] / CALLS / time
                if "cg" in methods
                else float("nan")
            )
            cells.append(f"{time * 1e3:.3f} ({ratio:.2f})")
        cells += [found["weights_per_channel"], f"{found['error']:.0e}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.gaunt_contraction`."""
    parser = argparse.ArgumentParser(
        prog="gaunt_contraction", description=str(__doc__).splitlines()[0]
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
