"""The Triton kernels of products on the sphere, in Triton's interpreter and compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_checks import assert_no_spills, compiled, interpreted, run_in_the_interpreter

from eqtp.benchmarks.triton_registers import REALS, TARGETS, Usage, compile_source
from eqtp.kernels.codegen.multilinear_terms import Term, differentiate
from eqtp.kernels.gaunt_grid import SphereProductProblem, _ops, reference
from eqtp.kernels.gaunt_grid import op as public
from eqtp.kernels.gaunt_grid._schedule import Schedule, schedule
from eqtp.kernels.gaunt_grid._triton_source import FUNCTION, SphereKernel, kernels_of

TOLERANCES = {
    torch.float64: 1e-12,  # relative to the largest value
    torch.float32: 1e-5,
}
PROBLEMS = {
    "even": SphereProductProblem((0, 1, 2), (0, 1, 2), (0, 1)),
    "odd": SphereProductProblem((0, 1), (1, 2), (1, 2), odd=True),
    "gaps": SphereProductProblem((1, 3), (0, 2), (1, 2, 5)),
}


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def make(
    problem: SphereProductProblem, channels: tuple[int, int], rows: int, weights: str
) -> list[Tensor]:
    operands = [torch.randn(rows, dim, n) for dim, n in zip(problem.dims, channels, strict=False)]
    if weights != "none":
        for degrees, width in zip(problem.degrees, (*channels, max(channels)), strict=True):
            operands.append(torch.randn(1 if weights == "shared" else rows, len(degrees), width))
    return operands


def derivatives(
    problem: SphereProductProblem, operands: list[Tensor], backend: str | None, order: int
) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in operands]
    x1, x2, a, b, c = [*inputs, None, None, None][:5]
    assert x1 is not None
    assert x2 is not None
    out = (
        reference.sphere_product(x1, x2, problem, a, b, c)
        if backend is None
        else _ops.product(x1, x2, a, b, c, problem.text, backend)
    )
    results, value = [out], (out * out).sum()
    for _ in range(order):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        results += grads
        value = torch.stack([((grad + 0.1) ** 2).sum() for grad in grads]).sum()
    return results


def check(
    problem: SphereProductProblem, operands: list[Tensor], dtype: torch.dtype, order: int
) -> None:
    ours = derivatives(problem, [x.to(dtype) for x in operands], "triton", order)
    exact = derivatives(problem, [x.double() for x in operands], None, order)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == dtype
        scale = max(float(b.detach().abs().max()), 1.0) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCES[dtype] * scale)


@interpreted
@pytest.mark.parametrize("weights", ["none", "shared", "per row"])
@pytest.mark.parametrize("channels", [(3, 3), (17, 1), (1, 2)])
@pytest.mark.parametrize("name", ["even", "odd"])
def test_to_second_order(name: str, channels: tuple[int, int], weights: str) -> None:
    check(PROBLEMS[name], make(PROBLEMS[name], channels, 3, weights), torch.float64, 2)


@interpreted
def test_to_third_order_and_float32() -> None:
    operands = make(PROBLEMS["gaps"], (2, 2), 2, "per row")
    check(PROBLEMS["gaps"], operands, torch.float64, 3)
    check(PROBLEMS["gaps"], operands, torch.float32, 1)


@interpreted
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1)])
def test_small_sizes(shape: tuple[int, int]) -> None:
    rows, width = shape
    check(
        PROBLEMS["even"], make(PROBLEMS["even"], (width, width), rows, "per row"), torch.float64, 1
    )


VALUE: tuple[Term, ...] = (Term((0, 1, 2, 3, None, 4), (None, None, None, None, 0, None)),)


def plan_of(odd: bool, name: str, weighted: bool) -> Schedule:
    """The schedule of a pass of training: value, gradients, or second gradients."""
    terms, given = VALUE, 5
    if name != "value":
        terms, given = differentiate(terms, 5, [0], range(5)), 6
    if name == "second":
        operands = (0, 2) if not weighted else range(5)
        terms = differentiate(terms, 6, operands, range(6))
        given = 11
    weights = frozenset((1, 3, 4))
    present = frozenset(range(given))
    if weighted:
        return schedule(odd, terms, present, frozenset())
    directions = {6 + number for number in weights}
    dropped = weights | directions
    wanted = tuple(
        Term(
            term.operands,
            tuple(r if r not in weights else None for r in term.results),
        )
        for term in terms
    )
    return schedule(odd, wanted, present - dropped, weights)


def compile_kernel(
    lmax: int, odd: bool, name: str, weighted: bool, target: str, dtype: torch.dtype
) -> list[Usage]:
    degrees = tuple(range(lmax + 1))
    whole = SphereKernel(
        SphereProductProblem(degrees, degrees, degrees, odd),
        plan_of(odd, name, weighted),
        64,
        -1,
        frozenset(),
        dtype,
        TARGETS[target][2],
    )
    kinds = {"real": REALS[dtype], "index": "*i64", "number": "i32"}
    usages = []
    for kernel in kernels_of(whole):
        types = {argument: kinds[kind] for argument, kind in kernel.arguments.items()}
        usages.append(compile_source(kernel.source, FUNCTION, types, kernel.launch, target))
    return usages


def check_spills(
    lmax: int, odd: bool, name: str, weighted: bool, target: str, dtype: torch.dtype
) -> None:
    for usage in compile_kernel(lmax, odd, name, weighted, target, dtype):
        assert_no_spills(
            usage, f"L = {lmax}, odd {odd}, {name}, weighted {weighted}, {target}, {dtype}"
        )


@compiled
def test_the_largest_value_does_not_spill() -> None:
    check_spills(6, False, "value", False, "sm_90", torch.float32)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["value", "gradient", "second"])
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("lmax", [3, 6])
def test_no_spills(lmax: int, target: str, odd: bool, name: str, weighted: bool) -> None:
    if weighted and lmax > 3:
        pytest.skip("there weights are applied by torch")
    if target == "sm_80" and odd and lmax > 3:
        pytest.skip("known: the curl spills on sm_80 at L = 6, 100 to 370 accesses of local memory")
    check_spills(lmax, odd, name, weighted, target, torch.float32)


def test_says_what_it_cannot_serve() -> None:
    pytest.importorskip("triton")
    large = SphereProductProblem(tuple(range(7)), tuple(range(7)), tuple(range(13)))
    assert "at most 64 components" in str(public.why_not("triton", large, torch.float32))
    assert "torch.float16" in str(public.why_not("triton", PROBLEMS["even"], torch.float16))
    assert public.why_not("triton", PROBLEMS["even"], torch.float32) is None
