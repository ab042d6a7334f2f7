"""Rotation matrices of every degree, as polynomials of the 3 x 3 matrix."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j

# Largest entry of R R^T - 1 that is accepted. Matrices composed in float32 stay below 1e-5 and
# those of a finite difference below 1e-5 too; a matrix that is scaled, transposed in part or
# filled by mistake is off by far more.
ORTHOGONALITY_TOLERANCE = 1e-4


def wigner_D(l: int, R: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch {2*l+1} {2*l+1}"]:
    """Computes the representation of degree ``l`` of rotations: ``Y_l(R v) = D Y_l(v)``.

    ``D^1 = R`` and ``D^l[kn] = (2 l + 1) w[ijk] w[abn] D^(l-1)[ia] R[jb]`` with
    ``w = wigner_3j(l - 1, 1, l)``, the part of degree ``l`` in ``D^(l-1) (x) R``. There are no
    angles and so no singular rotations; each entry is a polynomial of degree ``l`` in the entries
    of ``R``, differentiable to any order. A step is a projection, so errors do not grow.

    An improper matrix is accepted and means what the polynomial says, ``D(-R) = (-1)^l D(R)``:
    the representation of natural parity ``(-1)^l``. Other parities are the caller's business.

    Args:
        l: degree, >= 0.
        R: orthogonal matrices in the order x, y, z.

    Returns:
        The matrices in the dtype of ``R``; computed in float64.

    Raises:
        ValueError: ``l`` is negative, ``R`` is not of shape [..., 3, 3], or not orthogonal.

    Example:
        >>> half_turn_about_y = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
        >>> wigner_D(2, half_turn_about_y).diagonal().round(decimals=6).tolist()
        [1.0, -1.0, 1.0, -1.0, 1.0]
    """
    if l < 0:
        raise ValueError(f"wigner_D needs a degree >= 0, got l = {l}")
    if R.shape[-2:] != (3, 3):
        raise ValueError(f"R must have shape [..., 3, 3], got {tuple(R.shape)}")
    rotation = R.to(torch.float64)
    _check_orthogonal(rotation.detach())
    if l == 0:
        return torch.ones_like(R[..., :1, :1])
    D = rotation
    for degree in range(2, l + 1):
        w3j = _projection(degree, R.device)
        D = torch.einsum("...ia,ijk,...jb,abn->...kn", D, w3j, rotation, w3j)
    return D.to(R.dtype)


@functools.cache
@torch.inference_mode(False)  # the cached tensor must serve later calls that record gradients
def _projection(l: int, device: torch.device) -> Tensor:
    """Returns ``sqrt(2 l + 1) wigner_3j(l - 1, 1, l)``: isometric from degree ``l``."""
    return wigner_3j(l - 1, 1, l).mul((2 * l + 1) ** 0.5).to(device)


def _check_orthogonal(R: Tensor) -> None:
    """Raises if a matrix is not orthogonal; the one synchronisation with the device."""
    if R.numel() == 0:
        return
    identity = torch.eye(3, dtype=R.dtype, device=R.device)
    deviation = float((R @ R.mT - identity).abs().max())
    if not deviation <= ORTHOGONALITY_TOLERANCE:  # NaN fails too
        raise ValueError(
            f"R must be orthogonal to {ORTHOGONALITY_TOLERANCE:g}, got |R R^T - 1| up to "
            f"{deviation:.2g}; orthonormalise it first, e.g. by torch.linalg.svd"
        )
