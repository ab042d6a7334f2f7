"""The Triton kernels of many-body Gaunt products, in Triton's interpreter and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from triton_checks import assert_no_spills, compiled, interpreted, run_in_the_interpreter

from eqtp.benchmarks.triton_registers import (
    CONTRACTION_PASSES,
    TARGETS,
    compile_gaunt_contraction,
)
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.kernels.codegen.polynomial_ops import contract
from eqtp.kernels.codegen.polynomial_triton import make_pass
from eqtp.kernels.gaunt_contraction import _triton
from eqtp.kernels.gaunt_contraction.reference import gaunt_contraction_reference

TOLERANCES = {
    torch.float64: 1e-12,  # relative; sums of a few hundred terms, 1e-15 measured
    torch.float32: 5e-6,
    torch.float16: 2e-3,  # float32 arithmetic, one rounding to the storage type: 2^-11 of the value
    torch.bfloat16: 1.6e-2,  # 2^-8
}
PROBLEMS = {
    "cubic": ("3x0e+3x1o", "3x0e+3x1o", 3),
    "linear": ("3x0e+3x1o", "3x1o+3x0e", 1),
    "linear_in_one_degree": ("3x0e+3x1o+3x2e", "3x1o", 1),
    "quadratic_in_blocks_of_channels": ("33x1o+33x0e+33x1o", "33x1o", 2),
    "vanishing": ("2x1o", "2x1o+2x0e+2x5o", 3),
    "full_block": ("32x0e+32x1o", "32x0e", 2),
}


def check(problem: GauntContractionProblem, element: list[int], dtype: torch.dtype) -> None:
    """Value, gradients in x and weight, second gradients in x, weight and grad."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    nodes, weights = len(element), (4, problem.num_weights, problem.num_channels)
    shapes = (nodes, problem.irreps_in.dim), weights, (nodes, problem.irreps_out.dim)
    operands, h = [random(*shape) for shape in shapes], random(*shapes[0])
    results = []
    elements = torch.tensor(element, dtype=torch.int64)
    for exact in (False, True):
        x, weight, grad = ((t.double() if exact else t).detach().requires_grad_() for t in operands)
        if exact:
            out = gaunt_contraction_reference(x, weight, elements, problem)
        else:
            where = problem.text, "gaunt_contraction._triton"
            out = contract(x, weight, elements, problem, "mul_ir", *where)
        first = torch.autograd.grad(out, (x, weight), grad, create_graph=True)
        along = h.double() if exact else h
        second = torch.autograd.grad(first[0], (x, weight, grad), along, materialize_grads=True)
        results.append((out, *first, *second))
    for ours, exactly in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == exactly.shape
        scale = max(float(exactly.detach().abs().max()), 1.0) if exactly.numel() else 1.0
        atol = TOLERANCES[dtype] * scale
        torch.testing.assert_close(ours.double(), exactly, rtol=0, atol=atol)


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


@interpreted
@pytest.mark.parametrize("name", PROBLEMS)
def test_matches_the_definition(name: str) -> None:
    check(GauntContractionProblem.from_irreps(*PROBLEMS[name]), [2, 0], torch.float64)


@interpreted
@pytest.mark.parametrize("element", [[], [1, 1, 1, 0]])
def test_numbers_of_nodes(element: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """No node; elements with no, one, a full and several items of work."""
    monkeypatch.setattr(_triton, "TRITON_ITEM_NODES", 2)
    check(GauntContractionProblem.from_irreps("3x0e+3x1o", "3x0e", 2), element, torch.float64)


@interpreted
def test_split_into_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of x per kernel: every component is written once."""
    monkeypatch.setattr(_triton, "triton_max_components", lambda *choice: 1)
    make_pass.cache_clear()
    check(GauntContractionProblem.from_irreps("3x1o+3x0e", "3x0e", 2), [2, 0], torch.float64)
    make_pass.cache_clear()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_storage_types(dtype: torch.dtype) -> None:
    check(GauntContractionProblem.from_irreps("3x0e+3x1o", "3x0e", 2), [2, 0], dtype)


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pass_name", CONTRACTION_PASSES)
def test_kernels_write_every_component_once(pass_name: str, dtype: torch.dtype, lanes: int) -> None:
    problem = GauntContractionProblem.from_irreps("0e+1o+2e+3o+4e+5o+6e", "0e+1o", 3)
    results, dual = CONTRACTION_PASSES[pass_name]
    plan = _triton.Pass(problem, results, dual, dtype, lanes)
    written = [variable for kernel in plan.kernels for variable in kernel.written]
    dims = {"out": 4, "grad_x": 49, "grad_weight": problem.num_weights}
    assert len(written) == len(set(written)) == sum(dims[name] for name in results)
    assert "grad_weight" not in results or len(results) == 1


def test_says_what_it_cannot_serve() -> None:
    flat = GauntContractionProblem.from_irreps("0e+1o", "0e", 3)
    assert _triton.why_unsupported(flat, torch.bfloat16) is None
    assert "torch.int32" in str(_triton.why_unsupported(flat, torch.int32))
    iterated = GauntContractionProblem.from_irreps("0e+1o", "0e", 3, True)
    assert "flat form" in str(_triton.why_unsupported(iterated, torch.float32))
    large = GauntContractionProblem.from_irreps("0e+7o", "0e", 3)
    assert "up to lmax 6" in str(_triton.why_unsupported(large, torch.float32))


def test_another_number_of_nodes_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    problem = GauntContractionProblem.from_irreps("40x0e+40x1o", "40x0e", 2)
    kernels = []
    for nodes, elements in ((1, 1), (17, 16), (1000, 90)):
        launches.clear()
        x, grad = torch.randn(nodes, 160), torch.randn(nodes, 40)
        weight = torch.randn(elements, problem.num_weights, 40)
        element = torch.randint(elements, (nodes,))
        results = {"grad_x": torch.empty_like(x), "grad_weight": torch.empty_like(weight)}
        _triton.run(problem, element, x=x, weight=weight, grad=grad, **results)
        kernels.append([kernel for kernel, _ in launches])
        items = nodes // 16 + min(nodes, elements)
        assert [grid for _, grid in launches] == [
            *((nodes, 2), (items, 2), (items, 2)),  # the weights w, then the weights u
            (elements, -(-problem.num_weights * 40 // 256)),
        ]
    assert all(others == kernels[0] for others in kernels[1:])


def check_spills(name: str, pass_name: str, target: str, dtype: torch.dtype) -> None:
    for number, usage in enumerate(compile_gaunt_contraction(name, pass_name, target, dtype)):
        assert_no_spills(usage, f"{name} {pass_name}, kernel {number}, {target}, {dtype}")


@compiled
@pytest.mark.parametrize("pass_name", ["forward", "gradient x", "gradient w"])
def test_lmax_3_does_not_spill(pass_name: str) -> None:
    check_spills("gaunt-3", pass_name, "sm_90", torch.float32)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", CONTRACTION_PASSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_pass_of_lmax_3_spills(dtype: torch.dtype, target: str, pass_name: str) -> None:
    check_spills("gaunt-3", pass_name, target, dtype)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", CONTRACTION_PASSES)
def test_no_pass_of_lmax_6_spills(pass_name: str) -> None:
    check_spills("gaunt-6", pass_name, "sm_90", torch.float32)
