"""The fast symmetric contraction against its definition: values and three orders of gradients."""

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
    everything,
)
from torch import Tensor

from eqtp.backend import Backend
from eqtp.kernels.symmetric_contraction import _cpu, symmetric_contraction
from eqtp.kernels.symmetric_contraction import _torch as kernel
from eqtp.kernels.symmetric_contraction.config import ChunkConfig
from eqtp.layout import Layout
from eqtp.symmetric_problem import SymmetricContractionProblem

BACKENDS: tuple[Backend, ...] = ("cpu", "torch")


@dataclasses.dataclass(frozen=True)
class Case:
    """A contraction and a number of nodes; "C" in the irreps stands for the multiplicity."""

    irreps_in: str
    irreps_out: str
    correlation: int
    channels: int
    num_nodes: int = 7

    @property
    def problem(self) -> SymmetricContractionProblem:
        def expand(irreps: str) -> str:
            return "+".join(f"{self.channels}x{ir}" for ir in irreps.split("+"))

        return SymmetricContractionProblem.from_irreps(
            expand(self.irreps_in), expand(self.irreps_out), self.correlation
        )

    @property
    def contraction(self) -> Contraction:
        return contraction_of(self.problem, self.num_nodes)


def contraction_of(problem: SymmetricContractionProblem, num_nodes: int) -> Contraction:
    return Contraction(symmetric_contraction, problem, num_nodes, single=2e-6)  # 4e-7 measured


CASES = {
    "mace": Case("0e+1o+2e+3o", "0e+1o", 3, channels=3, num_nodes=37),
    "lmax_2_to_2e": Case("0e+1o+2e", "0e+1o+2e", 3, channels=5),
    "linear": Case("0e+1o+2e", "1o+0e", 1, channels=5),
    "quadratic": Case("0e+1o+2e", "2e+0e", 2, channels=1),
    "quartic": Case("0e+1o+2e", "0e+1o", 4, channels=2),
    "quintic": Case("0e+1o", "0e+1o", 5, channels=2),
    "chunks_and_a_tail": Case("0e+1o", "0e+1o", 3, channels=33, num_nodes=130),
    "one_vector": Case("0e+1o", "1o+0e", 3, channels=16, num_nodes=8),
    "mixed_parity": Case("0e+0o+1o+1e", "0e+1o+1e+0o", 3, channels=3),
    "repeated": Case("1o+0e+1o", "1o+1o", 3, channels=2),
    "no_scalar": Case("2e", "2e+4e", 2, channels=1),
    "without_path": Case("0e+2e", "1o+0e", 2, channels=3),  # 1o is always zero
    "one_node": Case("0e+1o", "0e+1o", 3, channels=4, num_nodes=1),
    "no_node": Case("0e+1o", "0e+1o", 3, channels=4, num_nodes=0),
}
SMALL = ("lmax_2_to_2e", "linear", "mixed_parity", "quartic")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_first_gradients_equal_the_definition(
    case: Case, layout: Layout, dtype: torch.dtype, backend: Backend
) -> None:
    check_value_and_gradients(case.contraction, layout, dtype, backend)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_training_on_forces_equals_the_definition(
    case: Case, layout: Layout, backend: Backend
) -> None:
    check_training_on_forces(case.contraction, layout, backend)


@pytest.mark.parametrize("which", ["x", "weight", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_gradients_in_every_operand_equal_the_definition(
    case: Case, dtype: torch.dtype, which: str, backend: Backend
) -> None:
    check_second_gradients(case.contraction, dtype, which, backend)


@pytest.mark.parametrize("name", SMALL)
def test_third_derivatives_equal_the_definition(name: str, backend: Backend) -> None:
    check_third_derivatives(CASES[name].contraction, backend)


@pytest.mark.parametrize(
    "case",
    [
        Case("0e+1o", "0e+1o", 3, channels=1, num_nodes=2),
        Case("0e+1o", "1o", 2, channels=1, num_nodes=2),
        Case("1o+0o", "0e", 4, channels=1, num_nodes=2),
    ],
    ids=lambda case: f"degree_{case.correlation}",
)
def test_gradcheck_and_gradgradcheck(case: Case, backend: Backend) -> None:
    check_by_differences(case.contraction, backend)


def test_gradients_of_one_operand_alone_are_the_same(backend: Backend) -> None:
    check_one_operand_alone(CASES["mace"].contraction, backend)


@pytest.mark.parametrize("with_weights", [True, False])
def test_forces_do_not_compute_gradients_of_weights(
    with_weights: bool, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["mace"]
    x, weight, element = case.contraction.operands()
    weight.requires_grad_(with_weights)
    calls = []
    add_outer, run = kernel._add_outer, _cpu.run

    def counted_add_outer(*arguments: Any) -> None:
        calls.append("torch")
        add_outer(*arguments)

    def counted_run(
        problem: SymmetricContractionProblem, element: Tensor, **tensors: Tensor | None
    ) -> None:
        if tensors.get("grad_weight") is not None:
            calls.append("cpu")
        run(problem, element, **tensors)

    monkeypatch.setattr(kernel, "_add_outer", counted_add_outer)
    monkeypatch.setattr(_cpu, "run", counted_run)
    out = symmetric_contraction(x, weight, element, case.problem, backend=backend)
    (force,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert not calls
    (force.sum() + out.sum()).backward()
    assert set(calls) == ({backend} if with_weights else set())


@pytest.mark.parametrize(
    "config",
    [
        ChunkConfig(node_multiple=1, max_nodes=1, max_bytes=1),
        ChunkConfig(node_multiple=4, max_nodes=8, max_bytes=1 << 12),
        ChunkConfig(node_multiple=32, max_nodes=4096, max_bytes=1 << 30),
    ],
)
def test_results_do_not_depend_on_the_chunks(
    config: ChunkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["mace"]
    x, weight, element = case.contraction.operands()

    expected = everything(case.contraction, x, weight, element, "torch")
    monkeypatch.setattr(kernel, "ChunkConfig", lambda: config)
    for actual, wanted in zip(
        everything(case.contraction, x, weight, element, "torch"), expected, strict=True
    ):
        assert_relative(actual, wanted)


@pytest.mark.parametrize("name", ["mace", "chunks_and_a_tail"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_results_do_not_depend_on_threads(name: str, dtype: torch.dtype) -> None:
    check_threads(CASES[name].contraction, dtype)


def test_compiled_kernels_write_every_result(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, element = case.contraction.operands()
    expected = everything(case.contraction, x, weight, element, "cpu")
    monkeypatch.setattr(
        torch, "empty_like", lambda t: torch.full_like(t, torch.nan, requires_grad=False)
    )
    monkeypatch.setattr(Tensor, "new_empty", lambda t, *size: t.new_full(size, torch.nan))
    for actual, wanted in zip(
        everything(case.contraction, x, weight, element, "cpu"), expected, strict=True
    ):
        assert torch.equal(actual, wanted)


def test_nodes_are_independent_of_each_other(backend: Backend) -> None:
    check_nodes_are_independent(CASES["mace"].contraction, backend)


def test_operands_need_not_be_contiguous(backend: Backend) -> None:
    check_strides(CASES["mace"].contraction, backend)


def test_inference_mode_before_training(backend: Backend) -> None:
    problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o+2x1e", "2x1e", 2)
    check_inference_mode(contraction_of(problem, 4), backend)


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e+2x1o", 2)
    assert problem.num_weights == 5
    check_refused(contraction_of(problem, 3), change, error, message)


OPS = torch.ops.eqtp


@pytest.mark.parametrize(
    "arguments",
    [
        ("polynomials", "x weight"),
        ("polynomials_backward", "x weight grad"),
        ("polynomials_double_backward", "h v x weight grad"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_opcheck(arguments: tuple[str, str]) -> None:
    name, names = arguments
    case = CASES["mace"]
    x, weight, element = case.contraction.operands()
    grad = torch.randn(len(x), case.problem.irreps_out.dim)
    known = {"x": x, "weight": weight, "grad": grad, "h": torch.randn_like(x)}
    known["v"] = torch.randn_like(weight)
    where = (element, case.problem.text, "symmetric_contraction._cpu")
    wanted = {"x weight": (), "x weight grad": ([True, True],)}.get(names, ([True] * 3,))
    given = (*(known[n].detach() for n in names.split()), *where, *wanted)
    if "double" not in name:  # whose derivatives go through plain torch
        for operand in given[: len(names.split())]:
            assert isinstance(operand, Tensor)
            operand.requires_grad_()
    torch.library.opcheck(getattr(OPS, name).default, given)


def test_compiles_as_one_graph_with_the_gradients_of_a_force_loss() -> None:
    case = CASES["mace"]
    x, weight, element = case.contraction.operands()
    problem = case.problem

    def function(x: Tensor, weight: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            return symmetric_contraction(x, weight, element, problem).sin().sum()

        force: Tensor = torch.func.grad(energy)(x)
        return force

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")

    def results(function: Any) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
        force = function(*leaves)
        return [force, *torch.autograd.grad(force.square().sum(), leaves)]

    for mine, expected in zip(results(compiled), results(function), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_elements_are_checked_in_compiled_functions() -> None:
    case = CASES["mace"]
    x, weight, element = case.contraction.operands()
    problem = case.problem
    compiled = torch.compile(
        lambda e: symmetric_contraction(x, weight, e, problem, backend="cpu"),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(
        compiled(element), symmetric_contraction(x, weight, element, problem)
    )
    with pytest.raises(ValueError, match="num_elements"):
        compiled(element + len(weight))
