"""`eqtp bench --advise "MODEL IRREPS..."`: the fastest exact way to a product, measured here.

    --advise "mace 128x0e+128x1o"                     node features; harmonics up to 3
    --advise "nequip 32x0e+32x0o+32x1e+32x1o 2"       and the harmonics' highest degree
    --advise "escn 64x0e+64x1o+64x2e"                 channels mix; harmonics to twice the degree
    --advise "uvu 64x0e+64x1o 0e+1o 0e+1o"            mode and three irreps; uvw, uuu likewise
    --advise "mace-large"                             a product of `benchmarks/problems.py`

Exact are those that compute the same function of the same weights: all backends of "cg", and "so2"
where x2 are the harmonics of edge vectors. "gaunt", "gaunt_full" and "matrix" tie the weights of
their paths to each other: another class of functions, which is measured and named, not advised.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import torch

from eqtp.benchmarks.contestants import Make, eqtp_product
from eqtp.benchmarks.graphs import GRAPHS, edges
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import product_case
from eqtp.benchmarks.harness.measure import Options, Row, measure
from eqtp.benchmarks.harness.table import table
from eqtp.benchmarks.problems import PROBLEMS, Product, harmonics
from eqtp.benchmarks.timing import device_name
from eqtp.methods import METHODS
from eqtp.problem import Mode, TensorProductProblem, parse_irreps

__all__ = ["HELP", "main", "parse", "verdicts"]

MODELS = ("mace", "nequip", "escn")
HELP = 'e.g. "mace 128x0e+128x1o": the fastest exact method and backend for a product, measured'


def parse(text: str) -> tuple[TensorProductProblem, bool]:
    """A product from its description, and whether x2 are harmonics of edge vectors.

    Raises:
        ValueError: The text is none of the forms above.

    Example:
        >>> problem, from_vectors = parse("mace 8x0e+8x1o 2")
        >>> len(problem.paths), from_vectors
        (7, True)
    """
    words = text.split()
    if words and words[0].lower() in MODELS:
        words[0] = words[0].lower()
    if len(words) == 1 and words[0] in PROBLEMS:
        return PROBLEMS[words[0]].problem, _is_harmonics(PROBLEMS[words[0]].problem)
    if len(words) in (2, 3) and words[0] in MODELS:
        model, features = words[:2]
        lmax = parse_irreps(features).lmax
        degree = _degree(words[2]) if len(words) == 3 else (2 * lmax if model == "escn" else 3)
        kept = {"mace": harmonics(degree), "nequip": features, "escn": features}[model]
        order: Any = "fully connected" if model == "escn" else "channelwise"
        return Product(text, features, harmonics(degree), kept, order, model).problem, True
    if len(words) == 4 and words[0] in get_args(Mode):
        problem = _by_mode(words[0], *words[1:])
        return problem, _is_harmonics(problem)
    raise ValueError(
        'a product is described as "mace|nequip|escn FEATURES [DEGREE]", "MODE IN1 IN2 OUT" or a '
        f"name of benchmarks/problems.py, got {text!r}"
    )


def _degree(word: str) -> int:
    if not word.isdecimal():
        raise ValueError(f"the harmonics' highest degree must be a number such as 3, got {word!r}")
    return int(word)


def _by_mode(mode: str, in1: str, in2: str, out: str) -> TensorProductProblem:
    a, b, c = map(parse_irreps, (in1, in2, out))
    if mode == "uvu":
        return Product("", in1, in2, out, "channelwise", "").problem
    paths = [
        (i, j, k, mode, True)
        for i, (_, first) in enumerate(a)
        for j, (_, second) in enumerate(b)
        for k, (_, third) in enumerate(c)
        if third in first * second
    ]
    return TensorProductProblem.from_instructions(a, b, c, paths)


def _is_harmonics(problem: TensorProductProblem) -> bool:
    """Whether irreps_in2 are single harmonics of rising degree."""
    degrees = [ir.l for _, ir in problem.irreps_in2]
    single = all(mul == 1 for mul, _ in problem.irreps_in2)
    return single and degrees == sorted(set(degrees))


def contestants(problem: TensorProductProblem, *, vectors: bool) -> dict[str, Make]:
    """Every method of eqtp and the backends of "cg" and "so2"."""
    found: dict[str, Make] = {}
    for method in METHODS:
        names: tuple[Any, ...] = ("auto",)
        if method in ("cg", "so2"):
            names = ("cpu", "triton", "torch")
        for backend in names:
            for layout in ("mul_ir", "ir_mul"):
                found[f"{method} {backend} {layout}"] = eqtp_product(
                    problem, method=method, backend=backend, layout=layout, vectors=vectors
                )
    return found


def case_of(text: str, args: argparse.Namespace) -> Case:
    """What is measured for a description.

    Raises:
        ValueError: The text describes no product, or one without a path.
    """
    problem, is_harmonics = parse(text)
    if not problem.paths:
        raise ValueError(f"a product must have a path, and {text!r} has none: check the parities")
    where = None if args.graph == "rows" else edges(args.graph)
    vectors = is_harmonics and where is not None
    modes = {path.mode for path in problem.paths}
    return product_case(
        "advice",
        text,
        problem,
        contestants(problem, vectors=vectors),
        baseline="cg torch mul_ir",
        rows=args.rows,
        edges=where,
        shared_weights=modes != {"uvu"},
        vectors=vectors,
        dtype=getattr(torch, args.dtype),
        forces=("x2",) if vectors else ("x1",),
    )


def verdicts(rows: Sequence[Row]) -> list[str]:
    """The fastest exact contestant of each task, and a faster one that is not the same."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        measured = [row for row in rows if row["task"] == task and row["status"] == "measured"]
        measured.sort(key=lambda row: float(row["wall"]["median"]))
        exact = [row for row in measured if row["contestant"].split()[0] in ("cg", "so2")]
        if not exact:
            lines.append(f"{task}: nothing serves this product")
            continue
        best = exact[0]
        method, backend, layout = best["contestant"].split()
        lines.append(
            f"{task}: method={method!r}, backend={backend!r}, layout={layout!r}: "
            f"{1e3 * best['wall']['median']:.3g} ms, error {best['error']:.0e}"
        )
        if measured[0] is not best:
            other = measured[0]["contestant"]
            factor = best["wall"]["median"] / measured[0]["wall"]["median"]
            lines.append(
                f"  {other} is {factor:.1f} times faster and not the same: its weights are "
                "products of the operands' and the result's, see `eqtp.methods`"
            )
    return lines


def main(argv: Sequence[str]) -> int:
    """Measures and prints the advice."""
    parser = argparse.ArgumentParser(prog="eqtp bench --advise", description=HELP)
    parser.add_argument("product", nargs="+", help="e.g. mace 128x0e+128x1o")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=int, default=2_000, help="rows or edges that are timed")
    parser.add_argument("--graph", default="water", choices=[*GRAPHS, "rows"])
    args = parser.parse_args(argv)
    if min(args.rows, args.threads) < 1:
        raise ValueError(f"rows and threads must be at least 1, got {args.rows} and {args.threads}")
    device, product = device_name(args.device), " ".join(args.product)
    torch.set_num_threads(args.threads)
    torch.set_default_dtype(getattr(torch, args.dtype))
    options = Options(device=args.device, threads=args.threads, seconds=1.0, min_rounds=3)
    rows: list[Row] = []
    for found in measure(case_of(product, args), options):
        rows += found
        print(table(found), flush=True)
    print(f"\n{product} on {device}, {args.dtype}, {args.threads} thread(s)")
    print("\n".join(verdicts(rows)))
    return 0
