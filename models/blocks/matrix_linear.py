"""Channel mixing of the three parts of 3x3 matrices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.kernels.linear import LinearProblem, linear

__all__ = ["MatrixLinear", "expand_parts"]


class MatrixLinear(nn.Module):
    """One channel-mixing matrix for each of I, A and S, without biases.

        out[n, k, m, w] = sum_u x[n, k, m, u] W[k, u, w],   parts k with 1, 3, 5 components m

    Features are "mul x 0e + mul x 1o + mul x 2e" in layout "ir_mul". Weights start as those of
    `nn.Linear`, evenly between plus and minus 1 / sqrt(channels).

    Args:
        channels: Number of matrices, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        irreps = Irreps([(channels, ir) for _, ir in Irreps.spherical_harmonics(2)])
        self.problem = LinearProblem.from_irreps(irreps, irreps)
        self.gain = channels**0.5
        bound = channels**-0.5
        self.weight = nn.Parameter(torch.empty(3, channels, channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "nodes dim"]) -> Float[Tensor, "nodes dim"]:
        """Mixes the channels."""
        return linear(x, self.gain * self.weight.flatten(), self.problem)


def expand_parts(factors: Float[Tensor, "rows 3*channels"]) -> Float[Tensor, "rows 9*channels"]:
    """One factor per part and channel, repeated for the 1, 3 and 5 components of the parts."""
    scalar, vector, tensor = factors.chunk(3, dim=1)
    return torch.cat([scalar, vector.repeat(1, 3), tensor.repeat(1, 5)], dim=1)
