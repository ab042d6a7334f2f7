"""The fast symmetric contraction against its definition: values and three orders of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.kernels.symmetric_contraction import _cpu, symmetric_contraction
from eqtp.kernels.symmetric_contraction import _torch as kernel
from eqtp.kernels.symmetric_contraction.config import ChunkConfig
from eqtp.layout import Layout
from eqtp.symmetric_problem import SymmetricContractionProblem

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few thousand terms of size one; 2e-15 measured
    torch.float32: 2e-6,  # the same sums; 4e-7 measured
}
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


def operands(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight, element; of five elements, numbers 1 and 4 are absent."""
    problem = case.problem
    x = torch.randn(case.num_nodes, problem.irreps_in.dim, dtype=dtype, requires_grad=True)
    weight = torch.randn(5, problem.num_paths, case.channels, dtype=dtype, requires_grad=True)
    element = torch.tensor([0, 2, 3])[torch.randint(3, (case.num_nodes,))]
    return x, weight, element


def assert_relative(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    assert actual.isfinite().all()
    scale = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    tolerance = TOLERANCES[actual.dtype] * scale * factor
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=tolerance)


def everything(
    case: Case, x: Tensor, weight: Tensor, element: Tensor, backend: Backend
) -> tuple[Tensor, ...]:
    """Value, force and the gradients of a loss of both."""
    out = symmetric_contraction(x, weight, element, case.problem, layout="ir_mul", backend=backend)
    (force,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    loss = force.square().sum() + out.sum()
    return (out.detach(), force.detach(), *torch.autograd.grad(loss, (x, weight)))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_first_gradients_equal_the_definition(
    case: Case, layout: Layout, dtype: torch.dtype, backend: Backend
) -> None:
    x, weight, element = operands(case, dtype)
    direction = torch.randn(case.num_nodes, case.problem.irreps_out.dim, dtype=dtype)
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w = (t.detach().to(precision).requires_grad_() for t in (x, weight))
        out = symmetric_contraction(a, w, element, case.problem, layout=layout, backend=name)
        results.append((out, *torch.autograd.grad(out, (a, w), direction.to(precision))))
    for fast, slow in zip(*results, strict=True):
        assert fast.dtype == dtype
        assert_relative(fast, slow)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_training_on_forces_equals_the_definition(
    case: Case, layout: Layout, backend: Backend
) -> None:
    x, weight, element = operands(case)
    direction = torch.randn(case.num_nodes, case.problem.irreps_out.dim)
    results = []
    for name in (backend, "reference"):
        out = symmetric_contraction(x, weight, element, case.problem, layout=layout, backend=name)
        energy = (out * direction).sum() + out.square().sum()  # a gradient that depends on x
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        loss = force.square().sum() + energy
        results.append(torch.autograd.grad(loss, (x, weight)))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=10)


@pytest.mark.parametrize("which", ["x", "weight", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_gradients_in_every_operand_equal_the_definition(
    case: Case, dtype: torch.dtype, which: str, backend: Backend
) -> None:
    """Of the gradients in x, in the weights or in both, in x, the weights and grad."""
    x, weight, element = operands(case, dtype)
    grad = torch.randn(case.num_nodes, case.problem.irreps_out.dim, dtype=dtype)
    directions = [torch.randn_like(t) for t in (x, weight)]
    chosen = {"x": slice(0, 1), "weight": slice(1, 2), "both": slice(0, 2)}[which]
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w, g = (t.detach().to(precision).requires_grad_() for t in (x, weight, grad))
        out = symmetric_contraction(a, w, element, case.problem, backend=name)
        first = torch.autograd.grad(out, (a, w)[chosen], g, create_graph=True)
        along = [direction.to(precision) for direction in directions[chosen]]
        results.append(torch.autograd.grad(first, (a, w, g), along, materialize_grads=True))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=5 if dtype == torch.float32 else 10)


@pytest.mark.parametrize("name", SMALL)
def test_third_derivatives_equal_the_definition(name: str, backend: Backend) -> None:
    case = CASES[name]
    x, weight, element = operands(case)
    results = []
    for chosen in (backend, "reference"):
        out = symmetric_contraction(x, weight, element, case.problem, backend=chosen)
        first = torch.autograd.grad(out.square().sum(), (x, weight), create_graph=True)
        squares = first[0].square().sum() + first[1].square().sum()
        second = torch.autograd.grad(squares, (x, weight), create_graph=True)
        results.append(torch.autograd.grad(second[0].sum() + second[1].sum(), (x, weight)))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, factor=10)


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
    x, weight, element = operands(case)
    weight = weight.detach()[element.unique()].requires_grad_()
    element = element.unique(return_inverse=True)[1]

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return symmetric_contraction(x, weight, element, case.problem, backend=backend)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


def test_gradients_of_one_operand_alone_are_the_same(backend: Backend) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
    direction = torch.randn(case.num_nodes, case.problem.irreps_out.dim)

    def out(x: Tensor, weight: Tensor) -> Tensor:
        return symmetric_contraction(x, weight, element, case.problem, backend=backend)

    both = torch.autograd.grad(out(x, weight), (x, weight), direction)
    for pair, index in (((x, weight.detach()), 0), ((x.detach(), weight), 1), ((x, weight), 1)):
        (alone,) = torch.autograd.grad(out(*pair), pair[index], direction)
        assert_relative(alone, both[index])


@pytest.mark.parametrize("with_weights", [True, False])
def test_forces_do_not_compute_gradients_of_weights(
    with_weights: bool, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
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
    x, weight, element = operands(case)

    expected = everything(case, x, weight, element, "torch")
    monkeypatch.setattr(kernel, "ChunkConfig", lambda: config)
    for actual, wanted in zip(everything(case, x, weight, element, "torch"), expected, strict=True):
        assert_relative(actual, wanted)


@pytest.mark.parametrize("name", ["mace", "chunks_and_a_tail"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compiled_results_do_not_depend_on_threads(
    name: str, dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    case = CASES[name]
    x, weight, element = operands(case, dtype)
    results = []
    for number in (1, 2, 3, 2):
        threads(number)
        results.append(everything(case, x, weight, element, "cpu"))
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert torch.equal(actual, expected)


def test_compiled_kernels_write_every_result(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, element = operands(case)
    expected = everything(case, x, weight, element, "cpu")
    monkeypatch.setattr(
        torch, "empty_like", lambda t: torch.full_like(t, torch.nan, requires_grad=False)
    )
    monkeypatch.setattr(Tensor, "new_empty", lambda t, *size: t.new_full(size, torch.nan))
    for actual, wanted in zip(everything(case, x, weight, element, "cpu"), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_a_bad_node_spoils_no_other(backend: Backend) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
    expected = symmetric_contraction(x, weight, element, case.problem, backend=backend)
    spoilt = x.detach().clone()
    spoilt[5] = torch.nan
    out = symmetric_contraction(spoilt, weight, element, case.problem, backend=backend)
    assert out[5].isnan().all()
    others = torch.arange(case.num_nodes) != 5
    assert_relative(out[others], expected[others])


def test_operands_need_not_be_contiguous(backend: Backend) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
    expected = everything(case, x, weight, element, backend)
    x, weight = (
        torch.stack([t.detach()] * 2, dim=-1)[..., 0].requires_grad_() for t in (x, weight)
    )
    element = element.repeat_interleave(2)[::2]
    for actual, wanted in zip(everything(case, x, weight, element, backend), expected, strict=True):
        assert_relative(actual, wanted)


def test_permuted_nodes_give_permuted_results(backend: Backend) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
    order = torch.randperm(case.num_nodes)
    out = symmetric_contraction(x, weight, element, case.problem, backend=backend)
    permuted = symmetric_contraction(
        x[order], weight, element[order], case.problem, backend=backend
    )
    assert_relative(permuted, out[order])


def test_nodes_of_one_element_are_independent_of_the_others(backend: Backend) -> None:
    case = CASES["mace"]
    x, weight, element = operands(case)
    out = symmetric_contraction(x, weight, element, case.problem, backend=backend)
    chosen = element == 2
    alone = symmetric_contraction(x[chosen], weight, element[chosen], case.problem, backend=backend)
    assert_relative(alone, out[chosen])
    assert not torch.allclose(
        symmetric_contraction(x, weight, (element + 1) % 5, case.problem, backend=backend), out
    )


def test_inference_mode_before_training(backend: Backend) -> None:
    problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o+2x1e", "2x1e", 2)
    x, weight = torch.randn(4, 14), torch.randn(1, problem.num_paths, 2)
    element = torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode():
        expected = symmetric_contraction(x, weight, element, problem, backend=backend)
    x.requires_grad_()
    weight.requires_grad_()
    out = symmetric_contraction(x, weight, element, problem, backend=backend)
    out.square().sum().backward()
    assert_relative(out, expected.clone())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 4)}, ValueError, r"x must have shape \(num_nodes, 8\)"),
        ({"x": torch.zeros(3, 8).float()}, TypeError, "one floating dtype"),
        ({"weight": torch.zeros(2, 1, 2)}, ValueError, r"num_elements, 5 weights, 2 channels"),
        ({"element": torch.zeros(3)}, TypeError, "int64 indices, got torch.float"),
        ({"element": torch.zeros(3, 2).long()}, ValueError, "one index per node"),
        ({"element": torch.tensor([0, 1, 2])}, ValueError, r"\[0, 2\).* values from 0 to 2"),
        ({"element": torch.tensor([0, -1, 0])}, ValueError, r"\[0, 2\).* values from -1 to 0"),
        ({"layout": "ir"}, ValueError, "layout must be one of"),
        ({"backend": "triton"}, NotImplementedError, "'triton' runs on cuda tensors"),
        ({"backend": "fast"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e+2x1o", 2)
    arguments: dict[str, Any] = {
        "x": torch.zeros(3, 8),
        "weight": torch.zeros(2, problem.num_paths, 2),
        "element": torch.tensor([0, 1, 1]),
        "problem": problem,
    }
    with pytest.raises(error, match=message):
        symmetric_contraction(**(arguments | change))


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
    x, weight, element = operands(case)
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
    x, weight, element = operands(case)
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
    x, weight, element = operands(case)
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
