"""Random rotations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rand_matrix(
    *size: int,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*size 3 3"]:
    """Draws rotation matrices from the uniform (Haar) distribution of SO(3).

    Four normal numbers, normalised, are a uniform unit quaternion (w, x, y, z).
    Source: Marsaglia, Ann. Math. Stat. 43 (1972) 645.

    Args:
        *size: shape of the batch; none for a single matrix.
        dtype: torch's default when None.
        device: torch's default when None.
        generator: source of randomness, on ``device``.

    Returns:
        Proper rotations, orthogonal to rounding.

    Example:
        >>> R = rand_matrix(5, dtype=torch.float64)
        >>> R.shape, torch.allclose(R @ R.mT, torch.eye(3, dtype=torch.float64))
        (torch.Size([5, 3, 3]), True)
    """
    quaternion = torch.randn(*size, 4, dtype=dtype, device=device, generator=generator)
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)), dim=-1),
        torch.stack((2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)), dim=-1),
        torch.stack((2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)), dim=-1),
    )
    return torch.stack(rows, dim=-2)
