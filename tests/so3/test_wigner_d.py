from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from eqtp.so3 import rand_matrix, spherical_harmonics, wigner_D

TOLERANCES = {
    "matrix": 1e-13,  # entries of at most 1; rounding of R enters l times, 2e-14 measured at l = 20
    "e3nn": 1e-12,  # e3nn takes arccos of an entry for its angles
    "float32": 1e-5,  # R rounded to 6e-8 enters l = 12 times
}
HALF_TURNS = [
    torch.diag(torch.tensor(d, dtype=torch.float64))
    for d in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1])
]


def rotation_about(axis_angle: Tensor) -> Tensor:
    x, y, z = axis_angle.unbind()
    zero = torch.zeros_like(x)
    generator = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).view(3, 3)
    return torch.matrix_exp(generator)


def test_agrees_with_e3nn() -> None:
    o3 = pytest.importorskip("e3nn").o3
    R = rand_matrix(7)
    for l in range(12):
        torch.testing.assert_close(
            wigner_D(l, R), o3.Irrep(l, 1).D_from_matrix(R), rtol=0, atol=TOLERANCES["e3nn"]
        )


@pytest.mark.parametrize("l", [0, 1, 2, 5, 12, 20])
def test_rotates_the_harmonics(l: int) -> None:
    R, vec = rand_matrix(), torch.randn(6, 3)
    block = slice(l * l, (l + 1) ** 2)
    torch.testing.assert_close(
        spherical_harmonics(l, vec @ R.mT, "norm")[:, block],
        spherical_harmonics(l, vec, "norm")[:, block] @ wigner_D(l, R).mT,
        rtol=0,
        atol=TOLERANCES["matrix"],
    )


@pytest.mark.parametrize("l", [1, 2, 3, 8, 12, 20])
def test_is_an_orthogonal_representation(l: int) -> None:
    R, S = rand_matrix(2)
    assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=TOLERANCES["matrix"])
    assert_close(wigner_D(l, R @ S), wigner_D(l, R) @ wigner_D(l, S))
    assert_close(wigner_D(l, R.mT), wigner_D(l, R).mT)
    assert_close(wigner_D(l, R) @ wigner_D(l, R).mT, torch.eye(2 * l + 1))


def test_degree_one_is_the_matrix_and_degree_zero_is_one() -> None:
    R = rand_matrix(4)
    assert torch.equal(wigner_D(1, R), R)
    assert torch.equal(wigner_D(0, R), torch.ones(4, 1, 1))


def test_is_the_identity_for_the_identity() -> None:
    for l in range(13):
        torch.testing.assert_close(
            wigner_D(l, torch.eye(3)), torch.eye(2 * l + 1), rtol=0, atol=TOLERANCES["matrix"]
        )


@pytest.mark.parametrize("R", HALF_TURNS)
def test_is_a_diagonal_of_signs_for_half_turns(R: Tensor) -> None:
    D = wigner_D(6, R)
    torch.testing.assert_close(
        D, torch.diag(D.diagonal().sign()), rtol=0, atol=TOLERANCES["matrix"]
    )


def test_an_inversion_has_the_natural_parity() -> None:
    R = rand_matrix()
    for l in range(5):
        torch.testing.assert_close(wigner_D(l, -R), (-1) ** l * wigner_D(l, R))


@pytest.mark.parametrize("turn", [0.0, torch.pi])
def test_is_differentiable_where_euler_angles_are_singular(turn: float) -> None:
    base = rotation_about(torch.tensor([turn, 0.0, 0.0]))
    axis_angle = torch.zeros(3, requires_grad=True)

    def D(axis_angle: Tensor) -> Tensor:
        return wigner_D(3, rotation_about(axis_angle) @ base)

    assert torch.autograd.gradcheck(D, (axis_angle,))
    assert torch.autograd.gradgradcheck(D, (axis_angle,))


def test_keeps_dtype_and_batch_shape() -> None:
    R = rand_matrix(2, 3)
    D = wigner_D(12, R.float())
    assert D.dtype == torch.float32
    torch.testing.assert_close(D.double(), wigner_D(12, R), rtol=0, atol=TOLERANCES["float32"])
    assert wigner_D(2, R[:0]).shape == (0, 3, 5, 5)


def test_can_be_differentiated_after_a_first_call_in_inference_mode() -> None:
    l = 23  # above the degrees that other tests have put into the cache
    with torch.inference_mode():
        wigner_D(l, rand_matrix())
    R = rand_matrix().requires_grad_()
    (gradient,) = torch.autograd.grad(wigner_D(l, R).trace(), R)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("l", "R", "message"),
    [
        (-1, torch.eye(3), "degree >= 0, got l = -1"),
        (1, torch.eye(4), r"shape \[..., 3, 3\], got \(4, 4\)"),
        (1, torch.ones(3), r"shape \[..., 3, 3\], got \(3,\)"),
        (2, 1.1 * torch.eye(3), "R must be orthogonal"),
        (2, torch.full((3, 3), torch.nan), "R must be orthogonal"),
    ],
)
def test_refuses_bad_input(l: int, R: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wigner_D(l, R)
