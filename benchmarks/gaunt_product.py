"""Gaunt products beside the algorithms that were published, and beside eqtp's own CG product.

x1, x2 and the result have 64 channels of every degree to L = 1 ... 8, "uuu", float32, 1000 rows
(250 above L = 5, where the Fourier form's arrays take 2 MB a row); forward, and forward with the
gradients of both operands. Contestants:

    fourier     as in Gaunt Tensor Products (ICLR 2024): dense complex matrices to full Fourier
                series, full complex FFTs of (4L+1)^2, and a dense matrix back
    grid        as in The Price of Freedom's MACE: e3nn's ToS2Grid and FromS2Grid on the
                equiangular grid of 2 (2L+1) x (4L+1) points
    eqtp        TensorProduct(method="gaunt", evaluation="auto")
    eqtp grid   the same with evaluation="grid"
    eqtp cg     TensorProduct(method="cg") of the same paths: every path with weights of its own

The rivals' constants are exact here, and they apply no weights. Contestants take turns; what is
compared is CPU time, of one thread.

    .venv/bin/python -m eqtp.benchmarks.gaunt_product
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eqtp
from eqtp.benchmarks.timing import (
    alternate,
    machine,
    relative_error,
    results_folder,
    worker,
    write_json,
)
from eqtp.kernels.gaunt_fourier._constants import from_harmonics, to_harmonics
from eqtp.kernels.gaunt_fourier._series import full_series

MODULE = "eqtp.benchmarks.gaunt_product"
CHANNELS = 64
BARS = {"fourier": 5.0, "grid": 2.0}
"""How many times faster eqtp must be at every L >= 2."""

Product = Callable[[Tensor, Tensor], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eqtp bench gaunt_product`."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--degrees", type=int, nargs="+", default=list(range(1, 9)))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=results_folder() / "gaunt_product.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table and writes the JSON file."""
    if args.worker:
        torch.set_num_threads(args.threads)
        (lmax,) = args.degrees
        write_json(args.worker, measure(lmax, args.rows, args.repetitions))
        return 0
    record: dict[str, Any] = {"machine": machine(), "threads": args.threads, "degrees": {}}
    for lmax in args.degrees:
        rows = args.rows if lmax <= 5 else args.rows // 4
        record["degrees"][lmax] = worker(
            MODULE, args.threads, "--degrees", lmax, "--rows", rows, "--repetitions",
            args.repetitions,
        )  # fmt: skip
        write_json(args.output, record)
    print(table(record))
    print(f"written: {args.output}")
    return 0


def measure(lmax: int, rows: int, repetitions: int) -> dict[str, Any]:
    """Errors and times of every contestant at one degree."""
    torch.manual_seed(0)
    products = contestants(lmax)
    exact = _eqtp(lmax, "gaunt", "direct")
    result: dict[str, Any] = {"rows": rows, "errors": {}, "times": {}}
    dim = (lmax + 1) ** 2
    operands = {
        name: [torch.randn(rows, *shape) for _ in range(2)]
        for name, shape in (("rows", (CHANNELS, dim)), ("eqtp", (dim * CHANNELS,)))
    }
    few = torch.randn(2, 3, dim, CHANNELS, dtype=torch.float64)
    expected = _by_degree(exact(*few.flatten(2)).view(3, dim, CHANNELS))
    for name, product in products.items():
        is_eqtp = name.startswith("eqtp")
        x = few.float().flatten(2) if is_eqtp else few.float().transpose(2, 3)
        out = product(*x)
        out = out.view(3, dim, CHANNELS) if is_eqtp else out.transpose(1, 2)
        if name != "eqtp cg":  # its weights differ
            result["errors"][name] = relative_error(_by_degree(out), expected)
    for task, function in (("forward", forward), ("forward+backward", forward_backward)):
        calls: dict[str, Callable[[], object]] = {}
        for name, product in products.items():
            leaves = [
                x.clone().requires_grad_(task != "forward")
                for x in operands["eqtp" if name.startswith("eqtp") else "rows"]
            ]
            calls[name] = partial(function, product, *leaves)
        samples = alternate(calls, repetitions=repetitions, warmup=1)
        result["times"][task] = {name: sample.summary() for name, sample in samples.items()}
    return result


def _by_degree(out: Tensor) -> Tensor:
    """Every degree divided by its size: the contestants scale degrees differently."""
    lmax = round(out.shape[1] ** 0.5) - 1
    parts = [out[:, l * l : (l + 1) ** 2].double() for l in range(lmax + 1)]
    return torch.cat([part / part.norm() for part in parts], dim=1)


def forward(product: Product, x1: Tensor, x2: Tensor) -> Tensor:
    """The product."""
    return product(x1, x2)


def forward_backward(product: Product, x1: Tensor, x2: Tensor) -> tuple[Tensor, ...]:
    """Gradients in both operands."""
    return torch.autograd.grad(product(x1, x2).sum(), (x1, x2))


def contestants(lmax: int) -> dict[str, Product]:
    """Every contestant at one degree."""
    return {
        "fourier": _published_fourier(lmax),
        "grid": _published_grid(lmax),
        "eqtp": _eqtp(lmax, "gaunt", "auto"),
        "eqtp grid": _eqtp(lmax, "gaunt", "grid"),
        "eqtp cg": _eqtp(lmax, "cg", "auto"),
    }


def _published_fourier(lmax: int) -> Product:
    """Dense base changes and full complex FFTs, on [rows, channels, (L+1)^2]."""
    degrees, size = tuple(range(lmax + 1)), 4 * lmax + 1
    forward_matrix = full_series(from_harmonics(degrees))
    to_series = forward_matrix.flatten(1).to(torch.complex64)
    # Any matrix that agrees on series of real functions: here Re of u, v >= 0 alone.
    half = to_harmonics(degrees, 2 * lmax)
    back = half.new_zeros(size, size, half.shape[2])
    back[2 * lmax :, 2 * lmax : 3 * lmax + 1] = half
    from_series = back.flatten(0, 1).to(torch.complex64)

    def product(x1: Tensor, x2: Tensor) -> Tensor:
        series = [
            torch.fft.fft2(
                (x.to(torch.complex64) @ to_series).unflatten(-1, (2 * lmax + 1, 2 * lmax + 1)),
                s=(size, size),
            )
            for x in (x1, x2)
        ]
        convolved = torch.fft.ifft2(series[0] * series[1])
        parts: Tensor = (convolved.flatten(-2) @ from_series).real
        return parts

    return product


def _published_grid(lmax: int) -> Product:
    """e3nn's transforms on its equiangular grid, on [rows, channels, (L+1)^2]."""
    o3: Any = importlib.import_module("e3nn.o3")
    resolution = 2 * (2 * lmax + 1), 4 * lmax + 1
    to_grid = o3.ToS2Grid(lmax, resolution, normalization="integral")
    from_grid = o3.FromS2Grid(resolution, lmax, normalization="integral", lmax_in=2 * lmax)
    return lambda x1, x2: from_grid(to_grid(x1) * to_grid(x2))


def _eqtp(lmax: int, method: str, evaluation: Any) -> eqtp.TensorProduct:
    irreps = "+".join(f"{CHANNELS}x{l}{'eo'[l % 2]}" for l in range(lmax + 1))
    paths = [
        (l1, l2, l3, "uuu", True)
        for l1, l2, l3 in itertools.product(range(lmax + 1), repeat=3)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ]
    tp = eqtp.TensorProduct(
        irreps, irreps, irreps, paths, method=method, evaluation=evaluation, layout="ir_mul"
    )
    assert tp.weight is not None
    tp.weight.requires_grad_(False)
    tp.weight.fill_(1.0)
    return tp.double() if evaluation == "direct" else tp


def table(record: dict[str, Any]) -> str:
    """CPU milliseconds, and how many times faster eqtp is."""
    lines = []
    for task in ("forward", "forward+backward"):
        lines.append(f"{task}, CPU us per row")
        names = ("fourier", "grid", "eqtp cg", "eqtp grid", "eqtp")
        lines.append(
            "L   " + "".join(f"{name:>12}" for name in names) + "   fourier/ grid/ cg/eqtp"
        )
        for lmax, result in record["degrees"].items():
            times = {
                name: 1e6 * result["times"][task][name]["cpu"]["min"] / result["rows"]
                for name in names
            }
            ratios = "".join(f"{times[name] / times['eqtp']:9.1f}" for name in names[:3])
            lines.append(f"{lmax:<4}" + "".join(f"{times[name]:12.2f}" for name in names) + ratios)
    errors = [max(result["errors"].values()) for result in record["degrees"].values()]
    lines.append(f"largest relative error of any contestant: {max(errors):.1e}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m eqtp.benchmarks.gaunt_product`."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
