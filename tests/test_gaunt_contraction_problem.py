"""The description of many-body Gaunt products: weights, constants, and what they span."""

from __future__ import annotations

import pytest
import torch

from eqtp.gaunt_contraction_coupling import gaunt_couplings
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.gaunt_contraction import gaunt_contraction

TOLERANCES = {
    "second moment": 0.03,  # relative; of 200,000 samples of powers up to the fourth
}
RANKS = {  # (power, iterated) -> couplings spanned of all, for results 0e, 1o, 2e at lmax 3
    (2, False): ((4, 4), (3, 3), (5, 5)),
    (2, True): ((4, 4), (3, 3), (5, 5)),
    (3, False): ((8, 8), (9, 12), (9, 14)),
    (3, True): ((8, 8), (12, 12), (14, 14)),
    (4, False): ((17, 23), (15, 31), (18, 46)),
    (4, True): ((23, 23), (31, 31), (46, 46)),
}


@pytest.mark.parametrize(("power", "iterated"), RANKS)
def test_numbers_of_couplings_that_are_spanned(power: int, iterated: bool) -> None:
    problem = GauntContractionProblem.from_irreps("0e+1o+2e+3o", "0e+1o+2e", power, iterated)
    found = []
    for degree in problem.degrees_out:
        _, projection = gaunt_couplings(problem, degree, power)
        rank = int(torch.linalg.matrix_rank(projection, rtol=1e-9))
        found.append((rank, projection.shape[1]))
    assert tuple(found) == RANKS[power, iterated]


@pytest.mark.parametrize("lmax", [1, 2, 4])
def test_iterated_products_span_all_couplings_of_degree_three(lmax: int) -> None:
    irreps = "+".join(f"{l}{'eo'[l % 2]}" for l in range(lmax + 1))
    problem = GauntContractionProblem.from_irreps(irreps, "0e+1o+2e", 3, True)
    for degree in problem.degrees_out:
        _, projection = gaunt_couplings(problem, degree, 3)
        assert torch.linalg.matrix_rank(projection, rtol=1e-9) == projection.shape[1]


@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("correlation", [1, 2, 3, 4])
def test_weights_are_numbered_without_gaps(correlation: int, iterated: bool) -> None:
    problem = GauntContractionProblem.from_irreps("0e+1o+2e", "0e+1o+3o", correlation, iterated)
    slices = [problem.input_weights(1)]
    for power in range(2, correlation + 1):
        if problem.has_step(power):
            slices += [problem.input_weights(power), problem.step_weights(power)]
        else:
            assert problem.input_weights(power) == slices[0]
    slices += [problem.power_weights(block) for block in range(3)]
    assert [s.start for s in slices[1:]] == [s.stop for s in slices[:-1]]
    assert (slices[0].start, slices[-1].stop) == (0, problem.num_weights)


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "correlation"),
    [("0e+1o+2e+3o", "0e+1o+2e", 4), ("0e+1o+0e", "0e+1o", 3), ("1o", "0e+1o+2e+5o", 3)],
)
def test_powers_have_unit_mean_square(irreps_in: str, irreps_out: str, correlation: int) -> None:
    """The closed form against samples; what vanishes identically has the constant zero."""
    samples = 200_000
    problem = GauntContractionProblem.from_irreps(irreps_in, irreps_out, correlation)
    x, element = torch.randn(samples, problem.dim_in), torch.zeros(samples, dtype=torch.int64)
    for block, degree in enumerate(problem.degrees_out):
        start = sum(2 * l + 1 for l in problem.degrees_out[:block])
        for power in range(correlation):
            weight = torch.zeros(1, problem.num_weights, 1)
            weight[:, problem.input_weights(1)] = 1
            weight[:, problem.power_weights(block).start + power] = 1
            out = gaunt_contraction(x, weight, element, problem, backend="torch")
            mean = float(out[:, start : start + 2 * degree + 1].square().mean())
            expected = 0.0 if problem.norm[block][power] == 0 else 1.0
            assert abs(mean - expected) < TOLERANCES["second moment"]
    assert any(0.0 in row for row in problem.norm) == (irreps_in == "1o")


def test_refusals() -> None:
    with pytest.raises(
        ValueError,
        match=r"irreps_in must be of natural parity .* use Clebsch-Gordan products, 'cg'",
    ):
        GauntContractionProblem.from_irreps("2x0e+2x1e", "2x0e", 2)
    with pytest.raises(ValueError, match="irreps_out must be of natural parity"):
        GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0o", 2)
    with pytest.raises(ValueError, match="correlation must be an integer of at least 1"):
        GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 0)
    with pytest.raises(ValueError, match="irreps_out must have the multiplicity 2"):
        GauntContractionProblem.from_irreps("2x0e+2x1o", "3x0e", 2)
