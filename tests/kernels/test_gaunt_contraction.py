"""Many-body Gaunt products against their definition: values and three orders of gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

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

TOLERANCES = {
    torch.float64: 1e-12,  # relative to the largest; sums of a few hundred terms, 5e-15 measured
    torch.float32: 5e-6,  # the same sums; 1e-6 measured
}
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

    @property
    def arguments(self) -> tuple[str, str, int]:
        def expand(irreps: str) -> str:
            return "+".join(f"{self.channels}x{ir}" for ir in irreps.split("+"))

        return expand(self.irreps_in), expand(self.irreps_out), self.correlation


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


def operands(
    case: Case, iterated: bool, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, element; of five elements, numbers 1 and 4 are absent."""
    problem = case.problem(iterated)
    x = torch.randn(case.num_nodes, problem.irreps_in.dim, dtype=dtype, requires_grad=True)
    weight = torch.randn(5, problem.num_weights, case.channels, dtype=dtype, requires_grad=True)
    element = torch.tensor([0, 2, 3])[torch.randint(3, (case.num_nodes,))]
    return x, weight, element


def assert_relative(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    assert actual.isfinite().all()
    scale = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    tolerance = TOLERANCES[actual.dtype] * scale * factor
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=tolerance)


def check_value_and_gradients(
    case: Case, iterated: bool, layout: Layout, dtype: torch.dtype, backend: Backend
) -> None:
    problem = case.problem(iterated)
    x, weight, element = operands(case, iterated, dtype)
    direction = torch.randn(case.num_nodes, problem.irreps_out.dim, dtype=dtype)
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w = (t.detach().to(precision).requires_grad_() for t in (x, weight))
        out = gaunt_contraction(a, w, element, problem, layout=layout, backend=name)
        results.append((out, *torch.autograd.grad(out, (a, w), direction.to(precision))))
    for fast, slow in zip(*results, strict=True):
        assert fast.dtype == dtype
        assert_relative(fast, slow)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_values_and_first_gradients_equal_the_definition(
    case: Case, iterated: bool, layout: Layout, backend: Backend
) -> None:
    check_value_and_gradients(case, iterated, layout, torch.float64, backend)


def check_second_gradients(
    case: Case, iterated: bool, dtype: torch.dtype, which: str, backend: Backend
) -> None:
    problem = case.problem(iterated)
    x, weight, element = operands(case, iterated, dtype)
    grad = torch.randn(case.num_nodes, problem.irreps_out.dim, dtype=dtype)
    directions = [torch.randn_like(t) for t in (x, weight)]
    chosen = {"x": slice(0, 1), "weight": slice(1, 2), "both": slice(0, 2)}[which]
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w, g = (t.detach().to(precision).requires_grad_() for t in (x, weight, grad))
        out = gaunt_contraction(a, w, element, problem, backend=name)
        first = torch.autograd.grad(out, (a, w)[chosen], g, create_graph=True)
        along = [direction.to(precision) for direction in directions[chosen]]
        results.append(torch.autograd.grad(first, (a, w, g), along, materialize_grads=True))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=5 if dtype == torch.float32 else 10)


@pytest.mark.parametrize("which", ["x", "weight", "both"])
def test_second_gradients_in_every_operand_equal_the_definition(
    case: Case, iterated: bool, which: str, backend: Backend
) -> None:
    """Of the gradients in x, in the weights or in both, in x, the weights and grad."""
    check_second_gradients(case, iterated, torch.float64, which, backend)


@pytest.mark.parametrize("name", ["mace", "channels_and_a_tail"])
def test_single_precision(name: str, iterated: bool, backend: Backend) -> None:
    check_value_and_gradients(CASES[name], iterated, "ir_mul", torch.float32, backend)
    check_second_gradients(CASES[name], iterated, torch.float32, "x", backend)


@pytest.mark.parametrize("name", ["mace", "lmax_2_to_2e"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_training_on_forces_equals_the_definition(
    name: str, iterated: bool, layout: Layout, backend: Backend
) -> None:
    """Without gradients of the force in the weights' gradients: the kernels alone."""
    case = CASES[name]
    x, weight, element = operands(case, iterated)
    direction = torch.randn(case.num_nodes, case.problem(iterated).irreps_out.dim)
    results = []
    for chosen in (backend, "reference"):
        problem = case.problem(iterated)
        out = gaunt_contraction(x, weight, element, problem, layout=layout, backend=chosen)
        energy = (out * direction).sum() + out.square().sum()  # a gradient that depends on x
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        loss = force.square().sum() + energy
        results.append(torch.autograd.grad(loss, (x, weight)))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=10)


@pytest.mark.parametrize("name", ["mace", "channels_and_a_tail"])
def test_compiled_results_do_not_depend_on_threads(name: str, iterated: bool) -> None:
    case = CASES[name]
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        out = gaunt_contraction(x, weight, element, problem, backend="cpu")
        (force,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        results.append((out, force, *torch.autograd.grad(force.square().sum(), (x, weight))))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_the_library_does_not_depend_on_the_number_of_channels() -> None:
    few, many = (Case("0e+1o", "0e", 2, channels=c).problem(False) for c in (2, 40))
    assert source(few, torch.float64) == source(many, torch.float64)


@pytest.mark.parametrize("name", ["mace", "quartic"])
def test_third_derivatives_equal_the_definition(
    name: str, iterated: bool, backend: Backend
) -> None:
    case = CASES[name]
    x, weight, element = operands(case, iterated)
    results = []
    for chosen in (backend, "reference"):
        out = gaunt_contraction(x, weight, element, case.problem(iterated), backend=chosen)
        first = torch.autograd.grad(out.square().sum(), (x, weight), create_graph=True)
        squares = first[0].square().sum() + first[1].square().sum()
        second = torch.autograd.grad(squares, (x, weight), create_graph=True)
        third = torch.autograd.grad(second[0].sum() + second[1].sum(), (x, weight))
        results.append((*second, *third))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=10)


@pytest.mark.parametrize("correlation", [2, 3, 4])
def test_gradcheck_and_gradgradcheck(correlation: int, iterated: bool, backend: Backend) -> None:
    case = Case("0e+1o", "0e+1o", correlation, channels=1, num_nodes=2)
    x, weight, _ = operands(case, iterated)
    weight, element = weight.detach()[:2].requires_grad_(), torch.tensor([0, 1])

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return gaunt_contraction(x, weight, element, case.problem(iterated), backend=backend)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


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
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
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
    x, weight, element = operands(case, False)
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
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    expected = gaunt_contraction(x, weight, element, problem, backend="reference")
    even = problem.grid_degree // 2 * 2  # odd degrees vanish on a grid with inversion symmetry
    monkeypatch.setattr(torch_kernel, "sphere_grid", lambda degree: sphere_grid(even - 1))
    torch_kernel._tables.cache_clear()
    out = gaunt_contraction(x, weight, element, problem, backend="torch")
    torch_kernel._tables.cache_clear()
    assert float((out - expected).detach().abs().max() / expected.detach().abs().max()) > 1e-3


def test_equivariance(iterated: bool, backend: Backend) -> None:
    case = Case("0e+1o+2e+3o", "0e+1o+2e", 3, channels=1)
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
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
    case = CASES["mace"]
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    direction = torch.randn(case.num_nodes, problem.irreps_out.dim)

    def out(x: Tensor, weight: Tensor) -> Tensor:
        return gaunt_contraction(x, weight, element, problem, backend=backend)

    both = torch.autograd.grad(out(x, weight), (x, weight), direction)
    for pair, index in (((x, weight.detach()), 0), ((x.detach(), weight), 1), ((x, weight), 1)):
        (alone,) = torch.autograd.grad(out(*pair), pair[index], direction)
        assert_relative(alone, both[index])


def test_operands_need_not_be_contiguous(iterated: bool, backend: Backend) -> None:
    case = CASES["mace"]
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    expected = gaunt_contraction(x, weight, element, problem, backend=backend)
    x, weight = (torch.stack([t.detach()] * 2, dim=-1)[..., 0] for t in (x, weight))
    element = element.repeat_interleave(2)[::2]
    assert_relative(gaunt_contraction(x, weight, element, problem, backend=backend), expected)


def test_nodes_are_independent_of_each_other(iterated: bool, backend: Backend) -> None:
    case = CASES["mace"]
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    expected = gaunt_contraction(x, weight, element, problem, backend=backend)
    order = torch.randperm(case.num_nodes)
    permuted = gaunt_contraction(x[order], weight, element[order], problem, backend=backend)
    assert_relative(permuted, expected[order])
    spoilt = x.detach().clone()
    spoilt[5] = torch.nan
    out = gaunt_contraction(spoilt, weight, element, problem, backend=backend)
    others = torch.arange(case.num_nodes) != 5
    assert out[5].isnan().all()
    assert_relative(out[others], expected[others])


def test_pieces_of_the_torch_kernel(iterated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["mace"]
    problem, (x, weight, element) = case.problem(iterated), operands(case, iterated)
    expected = gaunt_contraction(x, weight, element, problem, backend="torch")
    for size in (1, 1 << 14):
        monkeypatch.setattr(torch_kernel, "TORCH_MAX_BYTES", size)
        out = gaunt_contraction(x, weight, element, problem, backend="torch")
        assert_relative(out, expected)


def test_inference_mode_before_training(iterated: bool, backend: Backend) -> None:
    problem = GauntContractionProblem.from_irreps("2x0e+2x1o+2x2e+2x3o", "2x2e", 2, iterated)
    x, weight = torch.randn(4, 32), torch.randn(1, problem.num_weights, 2)
    element = torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode():
        expected = gaunt_contraction(x, weight, element, problem, backend=backend)
    x.requires_grad_()
    weight.requires_grad_()
    out = gaunt_contraction(x, weight, element, problem, backend=backend)
    out.square().sum().backward()
    assert_relative(out, expected.clone())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 4)}, ValueError, r"x must have shape \(num_nodes, 8\)"),
        ({"x": torch.zeros(3, 8).float()}, TypeError, "one floating dtype"),
        ({"weight": torch.zeros(2, 1, 2)}, ValueError, r"num_elements, 6 weights, 2 channels"),
        ({"element": torch.zeros(3)}, TypeError, "int64 indices, got torch.float"),
        ({"element": torch.tensor([0, 1, 2])}, ValueError, r"\[0, 2\).* values from 0 to 2"),
        ({"layout": "ir"}, ValueError, "layout must be one of"),
        ({"backend": "triton"}, NotImplementedError, "'triton' runs on cuda tensors"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    problem = GauntContractionProblem.from_irreps("2x0e+2x1o", "2x0e+2x1o", 2)
    arguments: dict[str, Any] = {
        "x": torch.zeros(3, 8),
        "weight": torch.zeros(2, problem.num_weights, 2),
        "element": torch.tensor([0, 1, 1]),
        "problem": problem,
    }
    with pytest.raises(error, match=message):
        gaunt_contraction(**(arguments | change))
