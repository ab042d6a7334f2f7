"""Many-body Gaunt products against their definition: values and three orders of gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contraction_checks import (
    REFUSED,
    Contraction,
    assert_relative,
    check_by_differences,
    check_inference_mode,
    check_nodes_are_independent,
    check_one_operand_alone,
    check_refused,
    check_second_gradients,
    check_strides,
    check_third_derivatives,
    check_threads,
    check_training_on_forces,
    check_value_and_gradients,
)

from eqtp.backend import Backend
from eqtp.gaunt_contraction_coupling import independent_weights
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.gaunt_contraction import _torch as torch_kernel
from eqtp.kernels.gaunt_contraction import gaunt_contraction
from eqtp.kernels.gaunt_contraction._cpu_source import source
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.layout import Layout
from eqtp.so3 import rand_matrix, wigner_D
from eqtp.so3.sphere_grid import sphere_grid
from eqtp.symmetric_problem import SymmetricContractionProblem

BACKENDS: tuple[Backend, ...] = ("cpu", "torch")


@dataclasses.dataclass(frozen=True)
class Case:
    """A product and a number of nodes; "C" in the irreps stands for the multiplicity."""

    irreps_in: str
    irreps_out: str
    correlation: int
    channels: int
    num_nodes: int = 7

    def problem(self, iterated: bool) -> GauntContractionProblem:
        return GauntContractionProblem.from_irreps(*self.arguments, iterated)

    def contraction(self, iterated: bool) -> Contraction:
        return contraction_of(self.problem(iterated), self.num_nodes)

    @property
    def arguments(self) -> tuple[str, str, int]:
        def expand(irreps: str) -> str:
            return "+".join(f"{self.channels}x{ir}" for ir in irreps.split("+"))

        return expand(self.irreps_in), expand(self.irreps_out), self.correlation


def contraction_of(problem: GauntContractionProblem, num_nodes: int) -> Contraction:
    return Contraction(gaunt_contraction, problem, num_nodes, single=5e-6)  # 1e-6 measured


CASES = {
    "mace": Case("0e+1o+2e+3o", "0e+1o", 3, channels=3, num_nodes=37),
    "lmax_2_to_2e": Case("0e+1o+2e", "0e+1o+2e", 3, channels=5),
    "linear": Case("0e+1o+2e", "1o+0e", 1, channels=5),
    "quadratic": Case("0e+1o+2e", "2e+0e", 2, channels=1),
    "quartic": Case("0e+1o+2e", "0e+1o", 4, channels=2),
    "quintic": Case("0e+1o", "0e+1o", 5, channels=2),
    "results_beyond_lmax": Case("0e+1o", "3o+2e", 3, channels=2),
    "channels_and_a_tail": Case("0e+1o", "0e+1o", 3, channels=33, num_nodes=70),
    "repeated_and_disordered": Case("1o+0e+1o", "1o+1o+0e", 3, channels=2),
    "no_scalar": Case("2e", "2e+4e", 2, channels=1),
    "vanishing": Case("1o", "1o+0e+5o", 3, channels=2),  # P_0(f), P_1(f^2), P_5 are zero
    "scalars": Case("0e", "0e", 3, channels=4),
    "one_node": Case("0e+1o", "0e+1o", 3, channels=4, num_nodes=1),
    "no_node": Case("0e+1o", "0e+1o", 3, channels=4, num_nodes=0),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["flat", "iterated"])
def iterated(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_values_and_first_gradients_equal_the_definition(
    case: Case, iterated: bool, layout: Layout, backend: Backend
) -> None:
    check_value_and_gradients(case.contraction(iterated), layout, torch.float64, backend)


@pytest.mark.parametrize("which", ["x", "weight", "both"])
def test_second_gradients_in_every_operand_equal_the_definition(
    case: Case, iterated: bool, which: str, backend: Backend
) -> None:
    check_second_gradients(case.contraction(iterated), torch.float64, which, backend)


@pytest.mark.parametrize("name", ["mace", "channels_and_a_tail"])
def test_single_precision(name: str, iterated: bool, backend: Backend) -> None:
    contraction = CASES[name].contraction(iterated)
    check_value_and_gradients(contraction, "ir_mul", torch.float32, backend)
    check_second_gradients(contraction, torch.float32, "x", backend)


@pytest.mark.parametrize("name", ["mace", "lmax_2_to_2e"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_training_on_forces_equals_the_definition(
    name: str, iterated: bool, layout: Layout, backend: Backend
) -> None:
    check_training_on_forces(CASES[name].contraction(iterated), layout, backend)


@pytest.mark.parametrize("name", ["mace", "channels_and_a_tail"])
def test_compiled_results_do_not_depend_on_threads(name: str, iterated: bool) -> None:
    check_threads(CASES[name].contraction(iterated), torch.float64)


def test_the_library_does_not_depend_on_the_number_of_channels() -> None:
    few, many = (Case("0e+1o", "0e", 2, channels=c).problem(False) for c in (2, 40))
    assert source(few, torch.float64) == source(many, torch.float64)


@pytest.mark.parametrize("name", ["mace", "quartic"])
def test_third_derivatives_equal_the_definition(
    name: str, iterated: bool, backend: Backend
) -> None:
    check_third_derivatives(CASES[name].contraction(iterated), backend)


@pytest.mark.parametrize("correlation", [2, 3, 4])
def test_gradcheck_and_gradgradcheck(correlation: int, iterated: bool, backend: Backend) -> None:
    case = Case("0e+1o", "0e+1o", correlation, channels=1, num_nodes=2)
    check_by_differences(case.contraction(iterated), backend)


@pytest.mark.parametrize(
    "case",
    [
        CASES["mace"],
        CASES["lmax_2_to_2e"],
        CASES["quartic"],
        CASES["results_beyond_lmax"],
        CASES["repeated_and_disordered"],
        CASES["vanishing"],
    ],
)
def test_equals_the_clebsch_gordan_contraction_with_effective_weights(
    case: Case, iterated: bool, backend: Backend
) -> None:
    problem, (x, weight, element) = case.problem(iterated), case.contraction(iterated).operands()
    out = gaunt_contraction(x, weight, element, problem, backend=backend)
    coupled = symmetric_contraction(
        x,
        independent_weights(weight, problem),
        element,
        SymmetricContractionProblem.from_irreps(*case.arguments),
        backend="reference",
    )
    assert_relative(out, coupled)


def test_without_weights_and_cut_the_iterated_form_is_the_flat_one() -> None:
    """At correlation 3 with a result of twice the degree of x, nothing is cut."""
    case = Case("0e+1o", "2e+0e", 3, channels=3)
    flat, iterated = case.problem(False), case.problem(True)
    x, weight, element = case.contraction(False).operands()
    same = torch.ones(5, iterated.num_weights, 3)
    for power in (1, 2, 3):
        same[:, iterated.input_weights(power)] = weight[:, flat.input_weights(power)]
    for block in range(2):
        same[:, iterated.power_weights(block)] = weight[:, flat.power_weights(block)]
    expected = gaunt_contraction(x, weight, element, flat, backend="reference")
    assert_relative(gaunt_contraction(x, same, element, iterated, backend="reference"), expected)


@pytest.mark.parametrize("name", ["mace", "results_beyond_lmax"])
def test_a_grid_of_a_lower_degree_fails(
    name: str, iterated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid is no larger than needed: the next smaller rule is wrong."""
    case = CASES[name]
    problem, (x, weight, element) = case.problem(iterated), case.contraction(iterated).operands()
    expected = gaunt_contraction(x, weight, element, problem, backend="reference")
    even = problem.grid_degree // 2 * 2  # odd degrees vanish on a grid with inversion symmetry
    monkeypatch.setattr(torch_kernel, "sphere_grid", lambda degree: sphere_grid(even - 1))
    torch_kernel._tables.cache_clear()
    out = gaunt_contraction(x, weight, element, problem, backend="torch")
    torch_kernel._tables.cache_clear()
    assert float((out - expected).detach().abs().max() / expected.detach().abs().max()) > 1e-3


def test_equivariance(iterated: bool, backend: Backend) -> None:
    case = Case("0e+1o+2e+3o", "0e+1o+2e", 3, channels=1)
    problem, (x, weight, element) = case.problem(iterated), case.contraction(iterated).operands()
    rotation = rand_matrix()
    for inversion in (1, -1):
        d_in, d_out = (
            torch.block_diag(*(wigner_D(ir.l, rotation) * inversion**ir.l for _, ir in irreps))
            for irreps in (problem.irreps_in, problem.irreps_out)
        )
        moved = gaunt_contraction(x @ d_in.T, weight, element, problem, backend=backend)
        expected = gaunt_contraction(x, weight, element, problem, backend=backend) @ d_out.T
        assert_relative(moved, expected)


def test_gradients_of_one_operand_alone_are_the_same(iterated: bool, backend: Backend) -> None:
    check_one_operand_alone(CASES["mace"].contraction(iterated), backend)


def test_operands_need_not_be_contiguous(iterated: bool, backend: Backend) -> None:
    check_strides(CASES["mace"].contraction(iterated), backend)


def test_nodes_are_independent_of_each_other(iterated: bool, backend: Backend) -> None:
    check_nodes_are_independent(CASES["mace"].contraction(iterated), backend)


def test_pieces_of_the_torch_kernel(iterated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["mace"]
    problem, (x, weight, element) = case.problem(iterated), case.contraction(iterated).operands()
    expected = gaunt_contraction(x, weight, element, problem, backend="torch")
    for size in (1, 1 << 14):
        monkeypatch.setattr(torch_kernel, "TORCH_MAX_BYTES", size)
        out = gaunt_contraction(x, weight, element, problem, backend="torch")
        assert_relative(out, expected)


def test_inference_mode_before_training(iterated: bool, backend: Backend) -> None:
    problem = GauntContractionProblem.from_irreps("2x0e+2x1o+2x2e+2x3o", "2x2e", 2, iterated)
    check_inference_mode(contraction_of(problem, 4), backend)


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    problem = GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0e+2x1o", 2)
    assert problem.num_weights == 6
    check_refused(contraction_of(problem, 3), change, error, message)
