"""Products of functions on the sphere against their definition, factor * w3j."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.kernels.gaunt_grid import SphereProductProblem, _torch, _transforms, sphere_product
from eqtp.kernels.gaunt_grid import config as choices
from eqtp.kernels.gaunt_grid import reference as definition
from eqtp.so3 import gaunt, rand_matrix, wigner_D

TOLERANCES = {
    torch.float64: 1e-12,  # the bar, relative to the largest element; 1e-14 is typical
    torch.float32: 5e-6,  # sums of a few hundred terms of size one
    "leak": 1e-13,  # of paths that a product does not have
}
BACKENDS = ("cpu", "torch")
CHANNELS = ((5, 5), (19, 1), (1, 3), (1, 1))
PROBLEMS = {
    "even": SphereProductProblem((0, 1, 2), (0, 1, 2, 3), (0, 1, 2)),
    "odd": SphereProductProblem((0, 1, 2), (1, 2, 3), (0, 1, 2, 3), odd=True),
    "gaps": SphereProductProblem((1, 3), (0, 2), (1, 2, 5)),
    "scalars": SphereProductProblem((0,), (0,), (0,)),
    "nothing": SphereProductProblem((0,), (0,), (0,), odd=True),
}
Product = Callable[..., Tensor]  # called with unpacked operands, which no signature can follow

KERNEL: Product = sphere_product
DEFINITION: Product = definition.sphere_product


def make(
    problem: SphereProductProblem,
    channels: tuple[int, int],
    rows: int = 7,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    return [
        torch.randn(rows, dim, width).to(dtype).requires_grad_()
        for dim, width in zip(problem.dims, channels, strict=False)
    ]


def weighted(product: Product, problem: SphereProductProblem, **options: Any) -> Product:
    """The product of (x1, x2, *weights)."""
    return lambda x1, x2, *weights: product(x1, x2, problem, *weights, **options)


def derivatives(product: Product, operands: list[Tensor], order: int) -> list[Tensor]:
    """A nonlinear function's derivatives up to an order."""
    out = product(*operands)
    results, value = [out], ((0.1 * out).sin() * out).sum()
    for _ in range(order):
        grads = torch.autograd.grad(value, operands, create_graph=True)
        results += grads
        value = torch.stack([((grad + 0.1) ** 3).sum() for grad in grads]).sum()
    return results


def assert_close(ours: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, exact, strict=True):
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_matches_the_definition_to_third_order(
    name: str, channels: tuple[int, int], backend: str
) -> None:
    problem = PROBLEMS[name]
    operands = make(problem, channels)
    ours = derivatives(
        lambda *x: KERNEL(*x, problem, backend=backend),
        operands,
        3,
    )
    exact = derivatives(lambda *x: DEFINITION(*x, problem), operands, 3)
    assert_close(ours, exact, TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", ["even", "odd"])
def test_weights(name: str, channels: tuple[int, int], shared: bool, backend: str) -> None:
    problem = PROBLEMS[name]
    operands = make(problem, channels)
    for degrees, width in zip(problem.degrees, (*channels, max(channels)), strict=True):
        rows = 1 if shared else len(operands[0])
        operands.append(torch.randn(rows, len(degrees), width).requires_grad_())
    ours = derivatives(weighted(KERNEL, problem, backend=backend), operands, 2)
    exact = derivatives(weighted(DEFINITION, problem), operands, 2)
    assert_close(ours, exact, TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_weights_and_one_direction(backend: str) -> None:
    """Weights of one side only, and gradients of a single gradient."""
    problem = PROBLEMS["even"]
    x1, x2 = make(problem, (5, 5))
    b = torch.randn(7, 4, 5).requires_grad_()
    for direction in range(3):
        results = []
        for function, options in ((KERNEL, {"backend": backend}), (DEFINITION, {})):
            value = (function(x1, x2, problem, None, b, **options) ** 2).sum()
            grads = torch.autograd.grad(value, (x1, x2, b), create_graph=True)
            results.append(torch.autograd.grad(grads[direction].sin().sum(), (x1, x2, b)))
        assert_close(list(results[0]), list(results[1]), TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("odd", [False, True])
def test_degrees_6_6_12(odd: bool, backend: str) -> None:
    """The bar's largest product, on more points than the dense transforms take."""
    problem = SphereProductProblem(tuple(range(7)), tuple(range(7)), tuple(range(13)), odd)
    operands = make(problem, (3, 3), rows=3)
    ours = derivatives(
        lambda *x: KERNEL(*x, problem, backend=backend),
        operands,
        2,
    )
    exact = derivatives(lambda *x: DEFINITION(*x, problem), operands, 2)
    assert_close(ours, exact, TOLERANCES[torch.float64])


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.parametrize("name", PROBLEMS)
def test_dense_and_separable_transforms(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transforms, "DENSE_LIMIT", limit)
    _transforms.make_plan.cache_clear()
    problem = PROBLEMS[name]
    operands = make(problem, (5, 5))
    plan = _transforms.make_plan(problem, torch.float64, torch.device("cpu"))
    kind = _transforms.Dense if limit >= problem.degree else _transforms.Separable
    assert all(isinstance(transform, kind) for transform in plan.transforms)
    ours = derivatives(
        lambda *x: KERNEL(*x, problem, backend="torch"),
        operands,
        2,
    )
    exact = derivatives(lambda *x: DEFINITION(*x, problem), operands, 2)
    _transforms.make_plan.cache_clear()
    assert_close(ours, exact, TOLERANCES[torch.float64])


def test_constants_are_those_of_the_sphere() -> None:
    constants = SphereProductProblem((0, 1, 2), (0, 1, 2), (0, 1, 2)).constants
    expected = (4 * torch.pi) ** 0.5 * gaunt(1, 2, 1)
    torch.testing.assert_close(constants[1:4, 4:9, 1:4], expected)


def test_even_and_odd_do_not_leak() -> None:
    """The grid's own constants, of unit operands, vanish where the definition's do."""
    degrees = tuple(range(7))
    for odd in (False, True):
        problem = SphereProductProblem(degrees, degrees, degrees, odd)
        x1 = torch.eye(49).repeat_interleave(49, 0)[..., None]
        x2 = torch.eye(49).repeat(49, 1)[..., None]
        ours = KERNEL(x1, x2, problem, backend="torch").view(49, 49, 49)
        leak = torch.where(problem.constants == 0, ours, 0.0).abs().max()
        scale = problem.constants.abs().max()
        assert float(leak) < TOLERANCES["leak"] * float(scale)
        assert_close([ours], [problem.constants], TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["even", "odd"])
def test_float32(name: str, backend: str) -> None:
    problem = PROBLEMS[name]
    operands = make(problem, (16, 16), dtype=torch.float32)
    double = [x.detach().double().requires_grad_() for x in operands]
    ours = derivatives(
        lambda *x: KERNEL(*x, problem, backend=backend),
        operands,
        1,
    )
    exact = derivatives(lambda *x: DEFINITION(*x, problem), double, 1)
    assert ours[0].dtype == torch.float32
    assert_close(ours, exact, TOLERANCES[torch.float32])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gaps", "odd"])
def test_gradgradcheck(name: str, backend: str) -> None:
    problem = PROBLEMS[name]
    operands = make(problem, (2, 1), rows=2)

    def product(x1: Tensor, x2: Tensor) -> Tensor:
        return KERNEL(x1, x2, problem, backend=backend)

    assert torch.autograd.gradcheck(product, operands)
    assert torch.autograd.gradgradcheck(product, operands)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_derivative_at_a_time(backend: str) -> None:
    problem = PROBLEMS["even"]
    for alone in range(2):
        results = []
        for function in (KERNEL, DEFINITION):
            options = {"backend": backend} if function is KERNEL else {}
            torch.manual_seed(alone)
            operands = make(problem, (5, 1))
            operands[1 - alone].requires_grad_(False)
            out = function(*operands, problem, **options)
            (grad,) = torch.autograd.grad(out.sin().sum(), operands[alone], create_graph=True)
            (second,) = torch.autograd.grad(grad.sin().sum(), operands[alone])
            results.append([out, grad, second])
        assert_close(results[0], results[1], TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["even", "odd"])
def test_equivariance(name: str, backend: str) -> None:
    """Under rotations; under inversion degrees of even sum are even and the curl is odd."""
    problem = PROBLEMS[name]
    x1, x2 = make(problem, (4, 4))
    rotation = rand_matrix()
    represent = [
        torch.block_diag(*[wigner_D(degree, rotation) for degree in degrees])
        for degrees in problem.degrees
    ]

    def product(a: Tensor, b: Tensor) -> Tensor:
        return KERNEL(a, b, problem, backend=backend)

    rotated = product(represent[0] @ x1, represent[1] @ x2)
    assert_close([rotated], [represent[2] @ product(x1, x2)], TOLERANCES[torch.float64])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_empty_sizes(shape: tuple[int, int], backend: str) -> None:
    rows, width = shape
    operands = make(PROBLEMS["even"], (width, width), rows=rows)
    out = KERNEL(*operands, PROBLEMS["even"], backend=backend)
    assert out.shape == (rows, 9, width)
    assert [g.shape for g in torch.autograd.grad(out.sum(), operands)] == [
        x.shape for x in operands
    ]


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PROBLEMS["even"]
    operands = make(problem, (3, 3), rows=23)
    whole = derivatives(lambda *x: KERNEL(*x, problem, backend="torch"), operands, 1)
    monkeypatch.setattr(_torch, "chunk_rows", lambda size: 5)
    parts = derivatives(lambda *x: KERNEL(*x, problem, backend="torch"), operands, 1)
    assert_close(parts, whole, TOLERANCES[torch.float64])
    assert choices.chunk_rows(1) > 1000


def test_refusals() -> None:
    problem = PROBLEMS["even"]
    x1, x2 = make(problem, (4, 4))
    with pytest.raises(ValueError, match=r"x1 must have shape \[rows, 9, channels\]"):
        KERNEL(x2, x1, problem)
    with pytest.raises(ValueError, match="as many channels"):
        KERNEL(x1, x2[..., :3], problem)
    with pytest.raises(TypeError, match="share dtype"):
        KERNEL(x1, x2.float(), problem)
    with pytest.raises(TypeError, match="floating-point"):
        KERNEL(x1.long(), x2, problem)
    with pytest.raises(ValueError, match=r"b must have shape \[7 or 1, 4 degrees, 4 channels\]"):
        KERNEL(x1, x2, problem, None, torch.ones(7, 3, 4))
    with pytest.raises(ValueError, match="ascending degrees"):
        SphereProductProblem((1, 0), (0,), (0,))
