"""The graphs that the benchmarks run on, made on the spot: no downloads.

diamond      1000 atoms, 158 neighbours within 6 Å: 158,000 edges, as OpenEquivariance's carbon
water        boxes of water at liquid density, 192 to 1536 atoms, 5 Å
threebpa     five frames of 3BPA, 5 Å
iron         54 atoms of bcc iron, 5 Å: small systems, where calls cost more than work
sparse       20,000 nodes with 6 neighbours each
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from eqtp.graph import Graph

__all__ = ["GRAPHS", "Edges", "atoms", "edges", "random_edges"]


@dataclass(frozen=True)
class Edges:
    """A graph in space.

    Attributes:
        name: Name.
        graph: Senders and receivers, sorted by receiver.
        vectors: positions[dst] - positions[src] + shift of every edge, Å, float64, [E, 3].
    """

    name: str
    graph: Graph
    vectors: Tensor

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.graph.num_src

    def head(self, num_edges: int) -> Edges:
        """The receivers, in order, that hold the first `num_edges` edges, renumbered senders."""
        if num_edges >= self.graph.num_edges:
            return self
        src, dst = self.graph.edge_src[:num_edges], self.graph.edge_dst[:num_edges]
        nodes, index = torch.unique(torch.cat([src, dst]), return_inverse=True)
        graph = Graph(index[:num_edges], index[num_edges:], len(nodes))
        return Edges(f"{self.name}, first {num_edges} edges", graph, self.vectors[:num_edges])


@cache
def edges(name: str) -> Edges:
    """A graph of `GRAPHS`.

    Raises:
        ValueError: There is no such graph.

    Example:
        >>> edges("iron").graph
        Graph(2992 edges, 54 -> 54 nodes)
    """
    if name not in GRAPHS:
        raise ValueError(f"graph must be one of {sorted(GRAPHS)}, got {name!r}")
    r_max = GRAPHS[name][1]
    from eqtp.models.training.data import from_ase

    data: Any = from_ase(atoms(name), r_max, dtype=torch.float64)
    shift = data.positions[data.edge_dst] - data.positions[data.edge_src] + data.edge_shift
    return Edges(name, Graph(data.edge_src, data.edge_dst, len(data.positions)), shift)


@cache
def random_edges(num_edges: int, num_nodes: int) -> Edges:
    """Edges between random nodes, sorted by receiver, with random vectors."""
    generator = torch.Generator().manual_seed(0)
    src = torch.randint(num_nodes, (num_edges,), generator=generator)
    dst = torch.randint(num_nodes, (num_edges,), generator=generator).sort().values
    vectors = torch.randn(num_edges, 3, dtype=torch.float64, generator=generator)
    return Edges("random", Graph(src, dst, num_nodes), vectors)


@cache
def atoms(name: str) -> Any:
    """The structure behind a graph, as `ase.Atoms` (a list of them for 3BPA)."""
    return GRAPHS[name][0]()


def _diamond() -> Any:
    from ase.build import bulk

    return bulk("C", "diamond", a=3.57, cubic=True) * (5, 5, 5)


def _iron() -> Any:
    from ase.build import bulk

    iron = bulk("Fe", "bcc", a=2.87, cubic=True) * (3, 3, 3)
    iron.rattle(0.05, seed=0)
    return iron


def _water(molecules_per_edge: int) -> Callable[[], Any]:
    def make() -> Any:
        from eqtp.models.acceleration.command import water_box

        return water_box(molecules_per_edge)

    return make


def _threebpa() -> Any:
    from eqtp.models.training.datasets import load_named

    return list(load_named("3bpa-xtb").train[:5])  # comes with the package


def _sparse() -> Any:
    """A rattled simple cubic lattice, nearest neighbours only."""
    from ase import Atoms
    from ase.build import bulk

    crystal: Atoms = bulk("Po", "sc", a=3.35) * (20, 25, 40)
    crystal.rattle(0.05, seed=0)
    return crystal


GRAPHS: dict[str, tuple[Callable[[], Any], float]] = {
    "diamond": (_diamond, 6.0),
    "water": (_water(4), 5.0),
    "water-512": (_water(8), 5.0),
    "threebpa": (_threebpa, 5.0),
    "iron": (_iron, 5.0),
    "sparse": (_sparse, 4.0),
}
"""How the structure of a graph is made, and its cutoff in Å."""
