"""The Triton kernels of the symmetric contraction, in Triton's interpreter and compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_checks import (
    assert_importable_without_triton,
    assert_no_spills,
    compiled,
    interpreted,
    run_in_the_interpreter,
)

from eqtp.benchmarks.triton_registers import (
    CONTRACTION_PASSES,
    CONTRACTIONS,
    TARGETS,
    compile_contraction,
)
from eqtp.kernels.codegen.polynomial_ops import contract
from eqtp.kernels.codegen.polynomial_triton import make_pass
from eqtp.kernels.symmetric_contraction import _triton
from eqtp.kernels.symmetric_contraction.config import triton_launch
from eqtp.kernels.symmetric_contraction.reference import symmetric_contraction_reference
from eqtp.symmetric_problem import SymmetricContractionProblem

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few hundred terms of size one
    torch.float32: 5e-6,
    torch.float16: 2e-3,  # float32 arithmetic, one rounding to the storage type: 2^-11 of the value
    torch.bfloat16: 1.6e-2,  # 2^-8
}
PROBLEMS = {
    "cubic": ("3x0e+3x1o", "3x0e+3x1o", 3),
    "other_parity": ("3x0o+3x1e", "3x1e+3x1o", 2),  # 1o is always zero
    "linear": ("3x0e+3x1o", "3x1o+3x0e", 1),
    "quartic": ("2x0e+2x1o", "2x0e", 4),  # left factors that are products
    "blocks_of_channels": ("33x0e+33x1o", "33x0e", 2),
    "full_block": ("32x1o", "32x0e", 2),
}


def problem_of(name: str) -> SymmetricContractionProblem:
    return SymmetricContractionProblem.from_irreps(*PROBLEMS[name])


class Example:
    """Operands, a gradient of the result, and directions for the second gradient."""

    def __init__(
        self, problem: SymmetricContractionProblem, element: list[int], dtype: torch.dtype
    ) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

        nodes, weights = len(element), (4, problem.num_paths, problem.num_channels)
        self.problem = problem
        self.element = torch.tensor(element, dtype=torch.int64)
        self.x, self.h = (random(nodes, problem.irreps_in.dim) for _ in range(2))
        self.weight, self.v = (random(*weights) for _ in range(2))
        self.grad = random(nodes, problem.irreps_out.dim)

    def results(self, triton: bool) -> list[Tensor]:
        """Value, gradients in x and weight, second gradients in x, weight and grad."""
        x, weight, grad, h, v = (
            t if triton else t.detach().double().requires_grad_()
            for t in (self.x, self.weight, self.grad, self.h, self.v)
        )
        if triton:
            where = self.problem.text, "symmetric_contraction._triton"
            out = contract(x, weight, self.element, self.problem, "mul_ir", *where)
        else:
            out = symmetric_contraction_reference(x, weight, self.element, self.problem)
        first = _grad([out], [x, weight], [grad], create_graph=True)
        return [out, *first, *_grad(first, [x, weight, grad], [h, v])]

    def check(self) -> None:
        for ours, exact in zip(self.results(True), self.results(False), strict=True):
            assert ours.dtype == self.x.dtype
            assert ours.shape == exact.shape
            scale = max(float(exact.detach().abs().max()), 1.0) if exact.numel() else 1.0
            atol = TOLERANCES[ours.dtype] * scale
            torch.testing.assert_close(ours.double(), exact, rtol=0, atol=atol)


def _grad(
    outputs: list[Tensor], inputs: list[Tensor], along: list[Tensor], create_graph: bool = False
) -> list[Tensor]:
    found = torch.autograd.grad(
        outputs, inputs, along, create_graph=create_graph, materialize_grads=True
    )
    return list(found)


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


@interpreted
@pytest.mark.parametrize("name", PROBLEMS)
def test_matches_the_definition(name: str) -> None:
    Example(problem_of(name), [2, 0, 2], torch.float64).check()


@interpreted
@pytest.mark.parametrize("element", [[], [3], [1] * 5 + [0, 3, 1]])
def test_numbers_of_nodes(element: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """No node, one, and elements with no, one, a full and several items of work."""
    monkeypatch.setattr(_triton, "TRITON_ITEM_NODES", 2)
    Example(problem_of("linear"), element, torch.float64).check()


@interpreted
@pytest.mark.parametrize("name", ["cubic", "other_parity"])
def test_split_into_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows per kernel, weights kept block by block: sums go on from kernel to kernel."""
    launch = replace(triton_launch(8, 32, False), max_products=60, max_kept=5)
    monkeypatch.setattr(_triton, "triton_launch", lambda *choice: launch)
    make_pass.cache_clear()
    example = Example(problem_of(name), [2, 0, 2], torch.float64)
    passes = [
        _triton.Pass(example.problem, results, dual, torch.float64, 32)
        for results, dual in CONTRACTION_PASSES.values()
    ]
    if name == "cubic":
        assert all(len(plan.kernels) > 1 for plan in passes)
    example.check()
    make_pass.cache_clear()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_storage_types(dtype: torch.dtype) -> None:
    problem = SymmetricContractionProblem.from_irreps("3x0e+3x1o", "3x0e", 2)
    Example(problem, [2, 0], dtype).check()


@interpreted
def test_split_sums_are_kept_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = replace(triton_launch(4, 32, False), max_products=20)
    monkeypatch.setattr(_triton, "triton_launch", lambda *choice: launch)
    make_pass.cache_clear()
    Example(problem_of("cubic"), [2, 0], torch.float16).check()
    make_pass.cache_clear()


@interpreted
def test_results_are_the_same_again_and_for_permuted_nodes() -> None:
    """Equal to the last bit; the sums of the weights' gradients keep the order of the nodes."""
    example = Example(problem_of("linear"), [2, 0, 2, 2], torch.float32)
    first, again = example.results(True), example.results(True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    order = torch.tensor([1, 0, 2, 3])  # neither element's nodes change their order
    example.element = example.element[order]
    for name in ("x", "grad", "h"):
        setattr(example, name, getattr(example, name).detach()[order].requires_grad_())
    for (i, a), b in zip(enumerate(first), example.results(True), strict=True):
        assert torch.equal(a if i in (2, 4) else a[order], b)


def test_importable_without_triton() -> None:
    assert_importable_without_triton(
        "eqtp.kernels.symmetric_contraction._triton", "eqtp.kernels.spherical_harmonics._triton"
    )


def test_says_what_it_cannot_serve() -> None:
    problem = SymmetricContractionProblem.from_irreps(*CONTRACTIONS["contraction-0e-1o"])
    assert _triton.why_unsupported(problem, torch.bfloat16) is None
    assert "torch.int32" in str(_triton.why_unsupported(problem, torch.int32))
    large = SymmetricContractionProblem.from_irreps("0e+1o+2e+3o", "0e+1o+2e+3o", 3)
    assert "non-zero constants" in str(_triton.why_unsupported(large, torch.float32))


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pass_name", CONTRACTION_PASSES)
def test_kernels_hold_every_row_once_and_keep_the_limits(
    pass_name: str, dtype: torch.dtype, lanes: int
) -> None:
    problem = SymmetricContractionProblem.from_irreps(*CONTRACTIONS["contraction-0e-1o"])
    results, dual = CONTRACTION_PASSES[pass_name]
    plan = _triton.Pass(problem, results, dual, dtype, lanes)
    rows = [row for kernel in plan.kernels for row in kernel.rows]
    assert len(rows) == len(set(rows))
    if not dual:
        assert len(rows) == 65
    for kernel in plan.kernels:
        assert kernel.num_products <= plan.launch.max_products or len(kernel.rows) == 1
        if "grad_weight" in results:
            assert len(kernel.written) <= plan.launch.max_kept


def test_another_number_of_nodes_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    problem = SymmetricContractionProblem.from_irreps("40x0e+40x1o", "40x0e", 2)
    kernels = []
    for nodes, elements in ((1, 1), (16, 3), (17, 16), (1000, 90)):
        launches.clear()
        x, grad = torch.randn(nodes, 160), torch.randn(nodes, 40)
        weight = torch.randn(elements, problem.num_paths, 40)
        element = torch.randint(elements, (nodes,))
        results = {"grad_x": torch.empty_like(x), "grad_weight": torch.empty_like(weight)}
        _triton.run(problem, element, x=x, weight=weight, grad=grad, **results)
        kernels.append([kernel for kernel, _ in launches])
        items = nodes // 16 + min(nodes, elements)
        assert [grid for _, grid in launches] == [
            *((nodes, 2), (items, 2)),
            (elements, -(-problem.num_paths * 40 // 256)),
        ]
    assert all(others == kernels[0] for others in kernels[1:])


def check_spills(name: str, pass_name: str, target: str, dtype: torch.dtype) -> None:
    for number, usage in enumerate(compile_contraction(name, pass_name, target, dtype)):
        assert_no_spills(usage, f"{name} {pass_name}, kernel {number}, {target}, {dtype}")


@compiled
@pytest.mark.parametrize("pass_name", ["forward", "gradient x", "gradient w"])
def test_scalar_result_does_not_spill(pass_name: str) -> None:
    check_spills("contraction-0e", pass_name, "sm_90", torch.float32)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", CONTRACTION_PASSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["contraction-0e", "contraction-0e-1o"])
def test_mace_does_not_spill(name: str, dtype: torch.dtype, target: str, pass_name: str) -> None:
    check_spills(name, pass_name, target, dtype)
