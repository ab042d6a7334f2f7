"""Message passing: gather, channelwise product, sum at receivers, on graphs of atoms.

Gather and sum are inside the timing of everybody; those who have no fused form use index_select and
index_add. eqtp's operands are in its own layout, ir_mul, as in its models.
"""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import backends, rivals
from eqtp.benchmarks.graphs import edges
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import PROBLEMS, Product, harmonics

__all__ = ["cases"]


def cases(choice: Choice) -> Iterator[Case]:
    """Small systems first; the diamond of 158,000 edges comes with 8 channels, 0.1 GB of weights.

    On a GPU it comes with the 128 of MACE-large as well. The large cases: three systems of growing
    size.
    """
    if choice.quick:
        yield _case(_mace(16, 1), "iron", choice)
        yield _case(_mace(16, 2), "iron", choice)
        return
    if choice.large:
        yield _case(_mace(64, 2), "iron", choice)
        yield _case(_mace(64, 2), "water", choice)
        yield _case(_mace(8, 2), "diamond", choice)
        return
    for graph in ("iron", "threebpa", "water"):
        yield _case(_mace(64, 2), graph, choice)
        yield _case(_mace(128, 1), graph, choice)
    yield _case(PROBLEMS["nequip-lips"], "water", choice)
    for name in ("SevenNet_l3i5-main-layers", "nequip-oam-l-main-layers"):
        yield _case(PROBLEMS[name], "iron", choice)
    yield _case(_mace(16, 1), "sparse", choice)
    yield _case(_mace(8, 2), "diamond", choice)
    if choice.device != "cpu":
        yield _case(PROBLEMS["mace-large"], "diamond", choice)


def _mace(channels: int, degree: int) -> Product:
    """The convolution of a MACE with node features up to a degree."""
    out = harmonics(3 if degree > 1 else 2)
    name = f"MACE, {channels} channels, l <= {degree}"
    in1 = harmonics(degree, channels=channels)
    return Product(name, in1, harmonics(3), out, "channelwise", "MACE")


def _case(product: Product, graph: str, choice: Choice) -> Case:
    problem, where = product.problem, edges(graph)
    ours = backends(problem, layout="ir_mul")
    return product_case(
        "convolution",
        f"{product.name} on {graph}",
        problem,
        ours | rivals(problem, on_graph=True, compiled=choice.compiled),
        baseline="e3nn",
        rows=where.graph.num_edges,
        edges=where,
        dtype=choice.dtype,
        sizes={"source": product.source},
    )
