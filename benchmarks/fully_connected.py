"""Fully connected ("uvw") products: every channel mixes; DiffDock, e3tools, tetris."""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import backends, rivals
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.problems import PROBLEMS

__all__ = ["cases"]


def cases(choice: Choice) -> Iterator[Case]:
    """The six products; quick: two of them on few rows."""
    quick = ("tetris-poly-2", "e3tools_conv")
    for product in PROBLEMS.values():
        if product.order != "fully connected" or (choice.quick and product.name not in quick):
            continue
        problem = product.problem
        yield product_case(
            "fully_connected",
            product.name,
            problem,
            backends(problem, plain=choice.quick)
            | rivals(problem, compiled=choice.compiled, shared_weights=product.shared_weights),
            baseline="e3nn",
            rows=200 if choice.quick else 2_000,
            shared_weights=product.shared_weights,
            dtype=choice.dtype,
            sizes={"source": product.source},
        )
