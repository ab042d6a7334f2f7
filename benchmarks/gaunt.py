"""Products of functions on the sphere, by direct sums, exact grids and Fourier series.

Beside Clebsch-Gordan products with the same effective weights. "gaunt" has the paths of even
l1 + l2 + l3, "gaunt_full" all of them; R passes with weights of their own reach more bilinear maps.
"""

from __future__ import annotations

from collections.abc import Iterator

from eqtp.benchmarks.contestants import Make, eqtp_product
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice, product_case
from eqtp.benchmarks.products import product
from eqtp.problem import TensorProductProblem

__all__ = ["cases"]


def cases(choice: Choice) -> Iterator[Case]:
    """L and channels; natural parity for "gaunt", all paths for "gaunt_full".

    One channel is in `products`.
    """
    degrees = (2,) if choice.quick else (1, 2, 3, 4, 6, 8)
    for degree in degrees:
        for channels in (16,) if choice.quick or degree > 4 else (16, 128):
            for setting in ("MIMO natural", "MIMO all")[: 1 if choice.quick else 2]:
                yield _case(setting, degree, channels, choice)


def _case(setting: str, degree: int, channels: int, choice: Choice) -> Case:
    problem = product(setting, degree, channels)
    # Rows times channels; at L = 8 Clebsch-Gordan products take 0.05 ms for each, with gradients.
    numbers = 20_000 if degree < 4 else 3_000
    rows = 200 if choice.quick else max(100, numbers // channels)
    return product_case(
        "gaunt",
        f"{setting}, L = {degree}, {channels} channels",
        problem,
        _contestants(problem, setting == "MIMO natural"),
        baseline="eqtp cg",
        rows=rows,
        shared_weights=True,
        dtype=choice.dtype,
        forces=("x1",),
        sizes={"L": degree, "channels": channels},
        group=f"{setting}, {channels} channels",
    )


def _contestants(problem: TensorProductProblem, natural: bool) -> dict[str, Make]:
    found = {
        "eqtp cg": eqtp_product(problem),
        "eqtp cg torch": eqtp_product(problem, backend="torch"),
    }
    method = "gaunt" if natural else "gaunt_full"
    for evaluation in ("direct", "grid", "fourier"):
        found[f"eqtp {method} {evaluation}"] = eqtp_product(
            problem, method=method, evaluation=evaluation
        )
    found[f"eqtp {method} torch"] = eqtp_product(problem, method=method, backend="torch")
    found[f"eqtp {method}, 4 passes"] = eqtp_product(problem, method=method, passes=4)
    return found
