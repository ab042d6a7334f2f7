"""Definition of the product of functions on the sphere.

    out[k] = c[l3] sum_ij factor(l1, l2, l3) w3j(l1, l2, l3)[i, j, k] a[l1] x1[i] b[l2] x2[j]

over the paths of even sum, where the constants are sqrt(4 pi) times Gaunt coefficients, or those of
odd sum (the surface curl); `eqtp.methods` has the factors. Plain, slow and exact in the dtype it is
given: what the kernels are tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["sphere_product"]


def sphere_product(
    x1: Tensor,
    x2: Tensor,
    problem: SphereProductProblem,
    a: Tensor | None = None,
    b: Tensor | None = None,
    c: Tensor | None = None,
) -> Tensor:
    """The formula above for every row and channel; arguments as in `op.sphere_product`."""
    blocks = [block.to(x1.device) for block in problem.blocks]
    x1 = x1 if a is None else x1 * a[:, blocks[0]]
    x2 = x2 if b is None else x2 * b[:, blocks[1]]
    channels = max(x1.shape[2], x2.shape[2])
    constants = problem.constants.to(x1)
    out = torch.einsum(
        "zic,zjc,ijk->zkc", x1.expand(-1, -1, channels), x2.expand(-1, -1, channels), constants
    )
    return out if c is None else out * c[:, blocks[2]]
