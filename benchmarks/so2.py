"""Convolutions in frames along the edges beside Clebsch-Gordan products with harmonics.

x2 are edge vectors for everybody: whoever wants harmonics makes them inside the timing. Channels
mix ("uvw"), the weights are shared by all edges, and the harmonics go to twice the features'
degree, where the methods compute the same, weight for weight.
"""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import Make, e3nn, eqtp_product
from eqtp.benchmarks.graphs import edges
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import Product, harmonics
from eqtp.problem import TensorProductProblem

__all__ = ["cases", "product"]


def cases(choice: Choice) -> Iterator[Case]:
    """Degree of the features and channels, on the 54 atoms of iron and on 3BPA."""
    if choice.quick:
        yield _case(2, 8, "iron", choice)
        return
    for degree in (1, 2, 3, 4, 6):
        for channels in (16, 64) if degree < 4 else (16,):
            yield _case(degree, channels, "iron", choice)
    yield _case(3, 32, "threebpa", choice)


def product(degree: int, channels: int) -> TensorProductProblem:
    """Every path from natural parity to natural parity, channels mixed.

    Example:
        >>> len(product(2, 4).paths)
        14
    """
    features = harmonics(degree, channels=channels)
    return Product("", features, harmonics(2 * degree), features, "fully connected", "").problem


def _case(degree: int, channels: int, graph: str, choice: Choice) -> Case:
    problem, where = product(degree, channels), edges(graph)
    contestants: dict[str, Make] = {
        "eqtp cg": eqtp_product(problem, vectors=True),
        "eqtp so2": eqtp_product(problem, method="so2", vectors=True),
        "eqtp so2 torch": eqtp_product(problem, method="so2", backend="torch", vectors=True),
        "e3nn": e3nn(problem, vectors=True, shared_weights=True),
    }
    return product_case(
        "so2",
        f"L = {degree}, {channels} channels on {graph}",
        problem,
        contestants,
        baseline="eqtp cg",
        rows=where.graph.num_edges,
        edges=where,
        shared_weights=True,
        vectors=True,
        dtype=choice.dtype,
        sizes={"L": degree, "channels": channels},
        group=f"{channels} channels on {graph}",
    )
