"""Channelwise ("uvu") products: those of MACE, NequIP, SevenNet, Nequix; each row has its weights.

The products of the models row by row, and the project's bars: 20,000 edges of a random graph with
800 nodes, 64 channels, node features and results up to degree 2 and 3, harmonics up to 3 (17
paths), float32, summed at the receivers. There eqtp is to be so many times faster than e3nn:

                        1 thread    2 threads
    forward                   60           50
    backward                  40           40
    double backward           30           30
"""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import backends, rivals
from eqtp.benchmarks.graphs import random_edges
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.counting import flops_per_row
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import CORE, PROBLEMS, Product, harmonics

__all__ = ["BARS", "cases"]

BARS = {
    ("forward", "eqtp cpu", 1): 60.0,
    ("forward", "eqtp cpu", 2): 50.0,
    ("backward", "eqtp cpu", 1): 40.0,
    ("backward", "eqtp cpu", 2): 40.0,
    ("double backward", "eqtp cpu", 1): 30.0,
    ("double backward", "eqtp cpu", 2): 30.0,
}
FLOPS = 200_000_000
"""Counted flops of a forward pass at most, or a case of five degrees takes minutes."""

QUICK = ("nequip-water", "mace-medium", "4_32_2_p_sc.txt#3")


def cases(choice: Choice) -> Iterator[Case]:
    """Products row by row, then the bars' graph; quick: three products and a small graph.

    Large cases: the bars' graph alone.
    """
    if choice.large:
        yield _bars(choice)
        return
    if choice.quick:
        names: tuple[str, ...] = QUICK
    else:
        roofline = tuple(name for name in PROBLEMS if name.startswith("roofline"))
        names = tuple(n for n in CORE if PROBLEMS[n].order != "fully connected") + roofline
    for name in names:
        few = FLOPS // flops_per_row(PROBLEMS[name].problem)
        yield _rows(PROBLEMS[name], 200 if choice.quick else min(2_000, few), choice)
    yield _bars(choice)
    if not choice.quick:
        for channels in (1, 4, 16, 64, 256):
            yield _channels(channels, choice)


def _rows(product: Product, rows: int, choice: Choice) -> Case:
    problem = product.problem
    return product_case(
        "channelwise",
        product.name,
        problem,
        backends(problem, plain=choice.quick) | rivals(problem, compiled=choice.compiled),
        baseline="e3nn",
        rows=rows,
        dtype=choice.dtype,
        sizes={"source": product.source},
    )


def _bars(choice: Choice) -> Case:
    edges, nodes, channels = (1_000, 40, 16) if choice.quick else (20_000, 800, 64)
    product = Product(
        "bars",
        harmonics(2, channels=channels),
        harmonics(3),
        harmonics(3),
        "channelwise",
        "random graph",
    )
    problem = product.problem
    ours = backends(problem, layout="ir_mul")
    return product_case(
        "channelwise",
        f"{edges} edges of a random graph, {channels} channels",
        problem,
        ours | rivals(problem, on_graph=True, compiled=choice.compiled),
        baseline="e3nn",
        rows=edges,
        edges=random_edges(edges, nodes),
        dtype=choice.dtype,
        sizes={"channels": channels},
        bars={} if choice.quick else BARS,
    )


def _channels(channels: int, choice: Choice) -> Case:
    """The product of a large MACE over the number of channels."""
    irreps = harmonics(2, channels=channels), harmonics(3), harmonics(3)
    problem = Product("", *irreps, "channelwise", "").problem
    return product_case(
        "channelwise",
        f"mace-large with {channels} channels",
        problem,
        backends(problem) | rivals(problem),
        baseline="e3nn",
        rows=max(500, 64_000 // channels),
        dtype=choice.dtype,
        sizes={"channels": channels},
        group="mace-large over channels",
        x="channels",
    )
