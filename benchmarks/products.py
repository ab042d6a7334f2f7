"""Products of two features of degrees up to L: every method, expressivity beside time.

The three settings of Xie et al., "The Price of Freedom", arXiv:2506.13523:

    SISO    l x l -> l             one path; labelled without parity, so that no l is empty
    SIMO    l x l -> 0 ... 2l
    MIMO    0 ... L x 0 ... L -> 0 ... 2L

"natural" MIMO is labelled 0e, 1o, 2e, ..., which forbids paths of odd l1 + l2 + l3; "all" has every
triangle. "collapsed" adds the paths of one l3 up, so that all methods give results of one form;
"separate" keeps a block for every path, which Clebsch-Gordan products alone can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from eqtp.benchmarks.contestants import Make, e3nn, eqtp_product
from eqtp.benchmarks.harness.case import Case, Contestant
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import harmonics
from eqtp.irreps import Irreps
from eqtp.methods import get_method
from eqtp.problem import TensorProductProblem

__all__ = ["SETTINGS", "cases", "methods", "product"]

SETTINGS = ("SISO", "SIMO", "MIMO natural", "MIMO all", "MIMO all, separate")

QUICK = {setting: (2,) for setting in SETTINGS} | {"MIMO natural": (1, 2)}
"""Degrees of a quick run."""

ROWS = {3: 10_000, 5: 2_000, 10: 500}
"""Rows up to a degree: L = 10 is some 10,000 constants a row."""

MAX_DENSE_DEGREE = 5
"""L up to which the definition and e3nn take part; e3nn's constants end at degree 11."""

MAX_MAP_DEGREE = 4
"""L up to which the dimension of the bilinear maps is found, by the rank of a Jacobian."""


def cases(choice: Choice) -> Iterator[Case]:
    """L = 1 ... 10 with one channel, as in the paper, and channels at L = 2 and 4.

    Derivatives are those of MIMO products with results of one form.
    """
    every = ("forward",) if choice.quick else ("forward", "backward", "double backward")
    for setting in SETTINGS:
        for degree in QUICK[setting] if choice.quick else range(1, 11):
            tasks = every if setting in ("MIMO natural", "MIMO all") else every[:1]
            rows = next(number for most, number in ROWS.items() if degree <= most)
            yield _case(setting, degree, 1, 1_000 if choice.quick else rows, tasks, choice)
    for channels in (16,) if choice.quick else (4, 16, 64, 256):
        for degree in (2,) if choice.quick else (2, 4):
            few = max(100, (1_000 if choice.quick else 10_000) // channels)
            yield _case("MIMO natural", degree, channels, few, every, choice)


def _case(setting: str, degree: int, channels: int, rows: int, tasks: Any, choice: Choice) -> Case:
    problem = product(setting, degree, channels)
    separate = setting.endswith("separate")
    at_two = "" if channels == 1 else f", {channels} channels"
    return product_case(
        "products",
        f"{setting}, L = {degree}{at_two}",
        problem,
        methods(
            problem,
            cg_only=separate,
            dense=degree <= MAX_DENSE_DEGREE,
            bilinear_map=degree <= MAX_MAP_DEGREE and channels == 1,
        ),
        baseline="eqtp cg",
        rows=rows,
        shared_weights=True,
        dtype=choice.dtype,
        tasks=tasks,
        forces=("x1",),
        sizes={"setting": setting, "L": degree, "channels": channels},
        group=setting if channels == 1 else f"{setting}, L = {degree}, channels",
        x="L" if channels == 1 else "channels",
    )


def product(setting: str, degree: int, channels: int = 1) -> TensorProductProblem:
    """A problem of `SETTINGS`, channel by channel ("uuu").

    Raises:
        ValueError: The product has no path: there is nothing to measure.

    Example:
        >>> len(product("MIMO natural", 2).paths), len(product("MIMO all", 2).paths)
        (14, 19)
    """
    parity = "natural" if setting == "MIMO natural" else "e"
    if setting in ("SISO", "SIMO"):
        in1 = f"{channels}x{degree}e"
        out = in1 if setting == "SISO" else harmonics(2 * degree, "e", channels)
    else:
        in1, out = (harmonics(l, parity, channels) for l in (degree, 2 * degree))
    a, b = Irreps(in1), Irreps(out)
    paths = [
        (i, j, k)
        for i, (_, first) in enumerate(a)
        for j, (_, second) in enumerate(a)
        for k, (_, third) in enumerate(b)
        if third in first * second
    ]
    if not paths:
        raise ValueError(f"{setting} of degree {degree} has no path: nothing would be measured")
    if setting.endswith("separate"):
        out = "+".join(f"{channels}x{b[k].ir}" for _, _, k in paths)
        paths = [(i, j, number) for number, (i, j, _) in enumerate(paths)]
    return TensorProductProblem.from_instructions(
        in1, in1, out, [(i, j, k, "uuu", True) for i, j, k in paths]
    )


def methods(
    problem: TensorProductProblem,
    *,
    cg_only: bool = False,
    dense: bool = True,
    bilinear_map: bool = False,
) -> dict[str, Make]:
    """Every method of eqtp's TensorProduct, and e3nn."""

    def ours(**options: Any) -> Make:
        return eqtp_product(problem, bilinear_map=bilinear_map, **options)

    found = {
        "eqtp cg": ours(),
        "eqtp cg torch": ours(backend="torch"),
    }
    if dense:
        found |= {
            "eqtp cg dense": ours(backend="reference"),
            "e3nn": e3nn(problem, shared_weights=True),
        }
    if not cg_only:
        options = {"bilinear_map": bilinear_map}
        for evaluation in ("direct", "grid", "fourier"):
            found[f"eqtp gaunt {evaluation}"] = on_own_paths(
                problem, "gaunt", evaluation=evaluation, **options
            )
        if any(sum(problem.degrees(path)) % 2 for path in problem.paths):  # or it is "gaunt"
            found["eqtp gaunt_full grid"] = on_own_paths(
                problem, "gaunt_full", evaluation="grid", **options
            )
        found["eqtp matrix"] = on_own_paths(problem, "matrix", **options)
    return found


def on_own_paths(problem: TensorProductProblem, method: str, **options: Any) -> Make:
    """A method on those paths of a problem that it has; the column of paths says how many."""
    degrees = [ir.l for irreps in (problem.irreps_in1, problem.irreps_out) for _, ir in irreps]
    has_path = get_method(method, max(degrees)).has_path
    kept = [
        instruction
        for instruction, path in zip(problem.instructions, problem.paths, strict=True)
        if has_path(*problem.degrees(path))
    ]
    if not kept:
        return partial(_without_paths, method)
    irreps = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
    own = TensorProductProblem.from_instructions(*irreps, kept)
    return eqtp_product(own, method=method, **options)


def _without_paths(method: str) -> Contestant:
    raise NotImplementedError(f"method {method!r} has none of the paths")
