"""Products of matrices, as in TensorNet, beside Clebsch-Gordan products and those on the sphere.

Features 0e+1o+2e are 3 x 3 matrices, whose anticommutator has every path of natural parity; with
both parities of each path ("all") the commutator joins in. Larger degrees take (2j+1) x (2j+1).
"""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import Make, eqtp_product
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import harmonics
from eqtp.irreps import Irreps
from eqtp.problem import TensorProductProblem

__all__ = ["cases", "product"]


def cases(choice: Choice) -> Iterator[Case]:
    """Results up to the degree of the features; L = 2 over channels, then larger L."""
    if choice.quick:
        yield _case(2, 16, "natural", choice)
        return
    for channels in (1, 16, 64, 256):
        yield _case(2, channels, "natural", choice)
    for degree in (1, 2, 3, 4):
        yield _case(degree, 32, "e", choice)


def product(degree: int, channels: int, parity: str) -> TensorProductProblem:
    """Every path that stays within degree L, channel by channel.

    Example:
        >>> len(product(2, 4, "natural").paths), len(product(2, 4, "e").paths)
        (11, 15)
    """
    irreps = harmonics(degree, parity, channels)
    blocks = Irreps(irreps)
    paths = [
        (i, j, k, "uuu", True)
        for i, (_, a) in enumerate(blocks)
        for j, (_, b) in enumerate(blocks)
        for k, (_, c) in enumerate(blocks)
        if c in a * b
    ]
    return TensorProductProblem.from_instructions(irreps, irreps, irreps, paths)


def _case(degree: int, channels: int, parity: str, choice: Choice) -> Case:
    problem = product(degree, channels, parity)
    gaunt = "gaunt" if parity == "natural" else "gaunt_full"
    contestants: dict[str, Make] = {
        "eqtp cg": eqtp_product(problem),
        "eqtp cg torch": eqtp_product(problem, backend="torch"),
        "eqtp matrix": eqtp_product(problem, method="matrix"),
        "eqtp matrix torch": eqtp_product(problem, method="matrix", backend="torch"),
        f"eqtp {gaunt}": eqtp_product(problem, method=gaunt),
    }
    labels = "natural parity" if parity == "natural" else "all paths"
    return product_case(
        "matrix",
        f"L = {degree}, {channels} channels, {labels}",
        problem,
        contestants,
        baseline="eqtp cg",
        rows=500 if choice.quick else max(200, 100_000 // channels),
        shared_weights=True,
        dtype=choice.dtype,
        forces=("x1",),
        sizes={"L": degree, "channels": channels},
        group="natural parity, L = 2" if parity == "natural" else "all paths, 32 channels",
        x="channels" if parity == "natural" else "L",
    )
