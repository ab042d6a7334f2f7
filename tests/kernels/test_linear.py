"""Linear maps in C++ against their definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.kernels.linear import LinearProblem, linear, reference, serves

TOLERANCES = {
    torch.float64: 1e-13,  # relative to the largest element; 1e-15 measured
    torch.float32: 5e-6,  # sums of up to 400 terms; 5e-7 measured
}
CASES = [
    ("4x0e+16x1o", "8x0e+8x1o"),
    ("3x0e+3x0e+2x1o+2x1o+2x1o+1x2e", "2x0e+4x1o+3x2e+2x3o"),
    ("2x0e+3x1o+2x0e+2x1o+1x1o+0x2e", "2x0e+4x1o+2x0e+1x1o+1x2e+0x0e"),
    ("80x0e+33x1o+80x0e", "70x0e+33x1o"),
    ("1x1o", "1x0e"),
    ("", "2x0e"),
    ("2x0e", ""),
]


def operands(case: tuple[str, str], elements: int, nodes: int, dtype: Any) -> tuple[Any, ...]:
    problem = LinearProblem.from_irreps(Irreps(case[0]), Irreps(case[1]), elements)
    x = torch.randn(nodes, problem.dim_in, dtype=dtype, requires_grad=True)
    weight = torch.randn(problem.weight_numel, dtype=dtype, requires_grad=True)
    element = torch.randint(elements, (nodes,)) if elements > 1 else None
    return problem, x, weight, element


def assert_close(a: Tensor, b: Tensor) -> None:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=0.0, atol=TOLERANCES[b.dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("elements", [1, 5])
@pytest.mark.parametrize("nodes", [0, 1, 7, 300])
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_definition(
    case: tuple[str, str], elements: int, nodes: int, dtype: torch.dtype
) -> None:
    """Values, gradients, and the gradients of a function of the gradients."""
    problem, x, weight, element = operands(case, elements, nodes, dtype)
    assert serves(x, weight)

    def results(out: Tensor) -> list[Tensor]:
        if not out.requires_grad:
            return [out]
        options: Any = {"allow_unused": True, "materialize_grads": True}
        first = torch.autograd.grad(out.sin().sum(), [x, weight], create_graph=True, **options)
        scalar = sum((g.square().sum() for g in first), start=out.sum())
        return [out, *first, *torch.autograd.grad(scalar, [x, weight], **options)]

    expected = results(reference.linear(x, weight, problem, element))
    for a, b in zip(results(linear(x, weight, problem, element)), expected, strict=False):
        assert_close(a, b)


def test_gradgradcheck() -> None:
    problem, x, weight, element = operands(("2x0e+2x1o", "3x0e+1x1o"), 2, 4, torch.float64)

    def square(x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, problem, element).square()

    assert torch.autograd.gradcheck(square, (x, weight))
    assert torch.autograd.gradgradcheck(square, (x, weight))


def test_same_result_for_any_number_of_threads() -> None:
    problem, x, weight, element = operands(CASES[3], 3, 500, torch.float32)

    def results() -> tuple[Tensor, ...]:
        out = linear(x, weight, problem, element)
        return out, *torch.autograd.grad(out.sum(), [x, weight])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(3)
        three = results()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_torch_serves_what_the_kernel_does_not() -> None:
    problem, x, weight, _ = operands(CASES[0], 1, 3, torch.float64)
    expected = linear(x, weight, problem)
    assert_close(
        torch.func.vmap(lambda row: linear(row, weight, problem))(x[:, None])[:, 0], expected
    )
    assert not serves(x.bfloat16(), weight.bfloat16())
    assert not serves(x.float(), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not serves(x, weight)


def test_strided_operands_and_small_indices() -> None:
    problem, x, weight, element = operands(CASES[0], 3, 6, torch.float64)
    strided = torch.stack([x, x], 1)[:, 1]
    expected = reference.linear(x, weight, problem, element)
    assert_close(linear(strided, weight, problem, element.int()), expected)


@pytest.mark.parametrize("open_slot", range(3))
def test_opcheck(open_slot: int) -> None:
    problem, x, weight, element = operands(CASES[0], 3, 6, torch.float64)
    g = torch.randn(6, problem.dim_out, requires_grad=True)
    given: list[Tensor | None] = [x, weight, g]
    given[open_slot] = None
    torch.library.opcheck(torch.ops.eqtp.linear.default, (*given, element, problem.text))


@pytest.mark.parametrize("elements", [1, 3])
def test_compiles_as_one_graph(elements: int) -> None:
    problem, x, weight, element = operands(CASES[0], elements, 6, torch.float64)
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")

    def results(function: Any) -> list[Tensor]:
        out = function(x, weight, problem, element)
        return [out, *torch.autograd.grad(out.sin().sum(), [x, weight])]

    for mine, expected in zip(results(compiled), results(linear), strict=True):
        assert_close(mine, expected)


def test_kernels_run_under_dispatch_modes() -> None:
    """What looks at operations sees an op; what it computes is the same."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    problem, x, weight, element = operands(CASES[0], 3, 6, torch.float64)
    expected = linear(x, weight, problem, element)
    assert not seen
    with Watch():  # type: ignore[no-untyped-call]
        found = linear(x, weight, problem, element)
    assert "eqtp.linear.default" in seen
    assert_close(found, expected)
