"""Products on the sphere as convolutions of Fourier series, against factor * w3j."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqtp.kernels.gaunt_fourier import fourier_product
from eqtp.kernels.gaunt_fourier._constants import from_harmonics, to_harmonics
from eqtp.kernels.gaunt_fourier._series import full_series
from eqtp.kernels.gaunt_grid import SphereProductProblem
from eqtp.kernels.gaunt_grid import reference as definition
from eqtp.so3 import spherical_harmonics

Product = Callable[..., Tensor]  # called with unpacked operands, which no signature can follow

KERNEL: Product = fourier_product
DEFINITION: Product = definition.sphere_product

TOLERANCES = {
    torch.float64: 1e-12,  # the bar, relative to the largest element; 1e-14 is typical
    torch.float32: 5e-6,
}
PROBLEMS = {
    "even": SphereProductProblem((0, 1, 2), (0, 1, 2, 3), (0, 1, 2)),
    "gaps": SphereProductProblem((1, 3), (0, 2), (1, 2, 5)),
    "unreachable": SphereProductProblem((0, 1), (0, 1), (0, 6)),
    "small result": SphereProductProblem((0, 6), (0,), (0,)),
    "scalars": SphereProductProblem((0,), (0,), (0,)),
    "bar": SphereProductProblem(tuple(range(7)), tuple(range(7)), tuple(range(13))),
}


def make(problem: SphereProductProblem, channels: tuple[int, int]) -> list[Tensor]:
    pairs = zip(problem.dims, channels, strict=False)
    return [torch.randn(3, dim, width).requires_grad_() for dim, width in pairs]


def close(a: Tensor, b: Tensor) -> None:
    atol = TOLERANCES[a.dtype] * max(float(b.detach().abs().max()), 1.0)
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("channels", [(3, 3), (4, 1)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_matches_the_definition_to_second_order(
    name: str, channels: tuple[int, int], direct: bool
) -> None:
    problem = PROBLEMS[name]
    operands = make(problem, channels)
    results: list[list[Tensor]] = []
    for ours in (True, False):
        out = KERNEL(*operands, problem, direct=direct) if ours else DEFINITION(*operands, problem)
        grads = torch.autograd.grad((out * out).sum(), operands, create_graph=True)
        value = torch.stack([(grad**3).sum() for grad in grads]).sum()
        results.append([out, *grads, *torch.autograd.grad(value, operands)])
    for a, b in zip(*results, strict=True):
        close(a, b)


@pytest.mark.parametrize("direct", [False, True])
def test_float32(direct: bool) -> None:
    x1, x2 = make(PROBLEMS["even"], (3, 3))
    out = KERNEL(x1.float(), x2.float(), PROBLEMS["even"], direct=direct)
    assert out.dtype == torch.float32
    close(out, DEFINITION(x1, x2, PROBLEMS["even"]))


def test_series_are_those_of_the_harmonics() -> None:
    """Summed up at any point, past the pole too: (beta, alpha) is (2 pi - beta, alpha + pi)."""
    beta, alpha = torch.rand(11) * 2 * torch.pi, torch.rand(11) * 2 * torch.pi
    points = torch.stack([beta.sin() * alpha.sin(), beta.cos(), beta.sin() * alpha.cos()], dim=1)
    u = torch.arange(-5, 6)
    waves = torch.exp(1j * (beta[:, None, None] * u[:, None] + alpha[:, None, None] * u))
    series = full_series(from_harmonics(tuple(range(6))))
    values = torch.einsum("puv,kuv->pk", waves, series)
    assert float(values.imag.abs().max()) < TOLERANCES[torch.float64]
    close(values.real, spherical_harmonics(5, points))


def test_projections_undo_the_series() -> None:
    degrees = tuple(range(6))
    eye = torch.einsum("iuv,uvk->ik", from_harmonics(degrees), to_harmonics(degrees, 5)).real
    close(eye, torch.eye(36))


def test_refuses_the_curl() -> None:
    problem = SphereProductProblem((1,), (1,), (1,), odd=True)
    with pytest.raises(ValueError, match="even sum"):
        KERNEL(torch.ones(1, 3, 1), torch.ones(1, 3, 1), problem)
