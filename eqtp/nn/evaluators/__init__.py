"""How the methods of `TensorProduct` are computed: one file per method, one protocol."""

from __future__ import annotations

from typing import get_args

from eqtp.backend import Backend
from eqtp.layout import Layout
from eqtp.methods import get_method
from eqtp.problem import TensorProductProblem

from .cg import ClebschGordan
from .gaunt import Evaluation, GauntProduct
from .matrix import MatrixProduct
from .protocol import Evaluator
from .so2 import SO2

__all__ = ["Evaluation", "Evaluator", "make_evaluator"]


def make_evaluator(
    method: str,
    problem: TensorProductProblem,
    *,
    backend: Backend,
    layout: Layout,
    evaluation: Evaluation,
    passes: int,
) -> Evaluator:
    """The evaluator of a method.

    Args:
        method: Name of the method.
        problem: The product.
        backend: Which implementation the caller asked for.
        layout: Memory order of the operands.
        evaluation: For the Gaunt methods, how the product of functions is computed.
        passes: For the Gaunt methods, number of independently weighted products that are summed.

    Raises:
        ValueError: A name is unknown, an option does not belong to the method, or the method does
            not have a path or mode.
    """
    get_method(method)  # refuses unknown names
    if evaluation not in get_args(Evaluation):
        raise ValueError(f"evaluation must be one of {get_args(Evaluation)}, got {evaluation!r}")
    if method not in ("gaunt", "gaunt_full") and (evaluation, passes) != ("auto", 1):
        raise ValueError(
            f"evaluation= and passes= belong to the methods 'gaunt' and 'gaunt_full', got "
            f"method={method!r}, evaluation={evaluation!r}, passes={passes}"
        )
    if method == "cg":
        return ClebschGordan(problem, backend, layout)
    if method == "so2":
        return SO2(problem, backend, layout)
    if method in ("gaunt", "gaunt_full"):
        return GauntProduct.of(method, problem, backend, layout, evaluation, passes)
    return MatrixProduct.of(problem, backend, layout)
