"""What a family of benchmarks offers, and the cases that tensor products make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from eqtp.benchmarks.graphs import Edges
from eqtp.benchmarks.harness.case import Case, Contestant, Inputs, Work
from eqtp.benchmarks.harness.counting import product_work
from eqtp.nn.explanation import flops_per_row
from eqtp.problem import TensorProductProblem

__all__ = ["Choice", "Family", "product_case"]

CHECKED_NUMBERS, CHECKED_FLOPS = 1_000_000, 100_000_000
"""Numbers of a check's widest tensor, 8 MB in float64 and many of them while second derivatives are
made, and flops of its forward pass, constants that are zero included, as the definition has it: as
many rows are checked as keep to both, and at least 8."""


@dataclass(frozen=True)
class Choice:
    """How much of a family is wanted.

    Attributes:
        quick: A few small cases instead of all.
        dtype: Of the operands.
        compiled: Whether torch.compile takes part: minutes of compiling.
        device: Where the cases will run.
        large: A few large cases alone: what a full run measures with all cores as well.
    """

    quick: bool = True
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    device: str = "cpu"
    large: bool = False


class Family(Protocol):
    """A module of benchmarks that is a family; its docstring's first line says what it measures."""

    def cases(self, choice: Choice) -> Iterator[Case]:
        """The cases, small ones first."""
        ...


def product_case(
    family: str,
    name: str,
    problem: TensorProductProblem,
    contestants: Mapping[str, Callable[[], Contestant]],
    *,
    baseline: str,
    rows: int,
    edges: Edges | None = None,
    shared_weights: bool = False,
    vectors: bool = False,
    dtype: torch.dtype = torch.float32,
    sizes: Mapping[str, int | float | str] | None = None,
    **options: Any,
) -> Case:
    """A case of a tensor product on rows, or on the edges of a graph.

    Args:
        family: Of the case.
        name: Of the case.
        problem: The product.
        contestants: By name.
        baseline: One of them.
        rows: Rows; with a graph, edges (all of them where it has fewer).
        edges: The graph.
        shared_weights: One weight vector for all rows.
        vectors: x2 are edge vectors instead of columns of irreps_in2.
        dtype: Of the operands.
        sizes: What the report shows, beside what is known here.
        **options: More attributes of the case.
    """
    dim1, dim2, numel, dim_out = problem.dims
    rows = rows if edges is None else min(rows, edges.graph.num_edges)

    def make(number: int, generator: torch.Generator) -> Inputs:
        part = None if edges is None else edges.head(number)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        num_in1 = number if part is None else part.num_nodes
        tensors = {"x1": normal(num_in1, dim1)}
        if vectors:
            tensors["x2"] = normal(number, 3) if part is None else part.vectors.to(dtype)
        else:
            tensors["x2"] = normal(number, dim2)
        if numel > 0:
            tensors["weight"] = normal(numel) if shared_weights else normal(number, numel)
        return Inputs(tensors, None if part is None else part.graph)

    def work(task: str) -> Work:
        nodes = rows if edges is None else edges.num_nodes
        return product_work(
            problem,
            task,
            rows_in1=nodes,
            rows=rows,
            rows_out=nodes,
            shared_weights=shared_weights,
        )

    known: dict[str, int | float | str] = {
        "rows" if edges is None else "edges": rows,
        "paths": len(problem.paths),
        "constants": problem.num_constants,
        "weights": numel,
        "weights per row": "no" if shared_weights else "yes",
    }
    if edges is not None:
        known |= {"graph": edges.name, "nodes": edges.num_nodes}
    widest = max(dim_out, numel, dim1)
    return Case(
        family=family,
        name=name,
        make=make,
        rows=rows,
        check_rows=max(8, min(CHECKED_NUMBERS // widest, CHECKED_FLOPS // flops_per_row(problem))),
        contestants=contestants,
        baseline=baseline,
        sizes=known | dict(sizes or {}),
        work=work,
        dtype=dtype,
        **options,
    )
