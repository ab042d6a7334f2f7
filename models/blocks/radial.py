"""Radial part of a message: Bessel functions, a smooth cutoff, and a small network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.kernels.radial import Activation, RadialBasis, radial_network

__all__ = [
    "SILU_GAIN",
    "BesselBasis",
    "ExpNormalBasis",
    "RadialNetwork",
    "cosine_cutoff",
    "polynomial_cutoff",
]

SILU_GAIN = 1.6791767923989418
"""1 / sqrt(<silu(z)²>) for normal z, with the digits that e3nn 0.4.4 samples and MACE carries."""


def polynomial_cutoff(
    r: Float[Tensor, " *edges"], r_max: float, p: int
) -> Float[Tensor, " *edges"]:
    """Smooth cutoff, 1 at r = 0 and 0 with two derivatives at r = r_max and beyond.

        f(u) = 1 - (p+1)(p+2)/2 u^p + p(p+2) u^(p+1) - p(p+1)/2 u^(p+2),   u = r / r_max

    Source: DimeNet (arXiv 2003.03123), equation 8.

    Args:
        r: Distances in Å.
        r_max: Cutoff radius in Å.
        p: Order, at least 2.

    Example:
        >>> polynomial_cutoff(torch.tensor([0.0, 5.0]), 5.0, 5).tolist()
        [1.0, 0.0]
    """
    u = r / r_max
    a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
    return (1 - u.pow(p) * (a + u * (c * u - b))) * (u < 1)


class BesselBasis(nn.Module):
    """Radial Bessel functions times the polynomial cutoff.

        b_n(r) = sqrt(2 / r_max) sin(n pi r / r_max) / r * f(r / r_max),   n = 1 ... num_bessel

    Source: DimeNet (arXiv 2003.03123), equations 7 and 8.

    Args:
        r_max: Cutoff radius in Å.
        num_bessel: Number of functions.
        num_polynomial_cutoff: Order p of the cutoff.
    """

    def __init__(self, r_max: float, num_bessel: int, num_polynomial_cutoff: int) -> None:
        super().__init__()
        self.r_max = r_max
        self.p = num_polynomial_cutoff
        frequencies = math.pi / r_max * torch.arange(1, num_bessel + 1, dtype=torch.float64)
        self.register_buffer("bessel_weights", frequencies.to(torch.get_default_dtype()))
        self.bessel_weights: Tensor

    def forward(self, r: Float[Tensor, " edges"]) -> Float[Tensor, "edges num_bessel"]:
        """The basis at distances r (Å, positive)."""
        envelope = polynomial_cutoff(r, self.r_max, self.p) * math.sqrt(2 / self.r_max) / r
        return torch.sin(r[:, None] * self.bessel_weights) * envelope[:, None]

    def with_slope(
        self, r: Float[Tensor, " edges"]
    ) -> tuple[Float[Tensor, "edges num_bessel"], Float[Tensor, "edges num_bessel"]]:
        """The basis and its derivative."""
        u, p, factor = r / self.r_max, self.p, math.sqrt(2 / self.r_max)
        envelope = polynomial_cutoff(r, self.r_max, p) * factor / r
        steep = u.pow(p - 1) * (1 - u).square() * (u < 1)
        steep = steep * (-p * (p + 1) * (p + 2) / 2 * factor / self.r_max)
        slope = (steep - envelope) / r
        phase = r[:, None] * self.bessel_weights
        sine, cosine = torch.sin(phase), torch.cos(phase) * self.bessel_weights
        return sine * envelope[:, None], cosine * envelope[:, None] + sine * slope[:, None]


def cosine_cutoff(r: Float[Tensor, " *edges"], r_max: float) -> Float[Tensor, " *edges"]:
    """Smooth cutoff, 1 at r = 0 and 0 with its derivative at r = r_max and beyond.

        f(r) = (cos(pi r / r_max) + 1) / 2

    Source: Behler and Parrinello, Phys. Rev. Lett. 98, 146401 (2007), equation 2.

    Args:
        r: Distances in Å.
        r_max: Cutoff radius in Å.

    Example:
        >>> cosine_cutoff(torch.tensor([0.0, 5.0, 6.0]), 5.0).tolist()
        [1.0, 0.0, 0.0]
    """
    return (torch.cos(r * (math.pi / r_max)) + 1) / 2 * (r < r_max)


class ExpNormalBasis(nn.Module):
    """Gaussians of exp(-5 r / r_max), times the cosine cutoff.

        b_k(r) = f(r) exp(-beta_k (exp(-5 r / r_max) - mu_k)^2),   k = 1 ... num_rbf

    mu runs evenly from exp(-r_max) to 1 and beta = (2 (1 - exp(-r_max)) / num_rbf)^-2, with
    r_max in Å, as in PhysNet. Both are constants here.

    Source: PhysNet (J. Chem. Theory Comput. 15, 3678 (2019)), equation 7; the form with 5 / r_max
    is that of TensorNet (arXiv 2306.06482).

    Args:
        r_max: Cutoff radius in Å.
        num_rbf: Number of functions.
    """

    def __init__(self, r_max: float, num_rbf: int) -> None:
        super().__init__()
        self.r_max = r_max
        first = math.exp(-r_max)
        means = torch.linspace(first, 1.0, num_rbf, dtype=torch.float64)
        betas = torch.full((num_rbf,), (2 * (1 - first) / num_rbf) ** -2, dtype=torch.float64)
        self.register_buffer("means", means.to(torch.get_default_dtype()))
        self.register_buffer("betas", betas.to(torch.get_default_dtype()))
        self.means: Tensor
        self.betas: Tensor

    def forward(self, r: Float[Tensor, " edges"]) -> Float[Tensor, "edges num_rbf"]:
        """The basis at distances r (Å)."""
        offset = torch.exp(r * (-5 / self.r_max))[:, None] - self.means
        return cosine_cutoff(r, self.r_max)[:, None] * torch.exp(-self.betas * offset.square())

    def with_slope(
        self, r: Float[Tensor, " edges"]
    ) -> tuple[Float[Tensor, "edges num_rbf"], Float[Tensor, "edges num_rbf"]]:
        """The basis and its derivative."""
        decay = torch.exp(r * (-5 / self.r_max))
        offset = decay[:, None] - self.means
        gaussian = torch.exp(-self.betas * offset.square())
        frequency = math.pi / self.r_max
        steep = torch.sin(r * frequency) * (-frequency / 2) * (r < self.r_max)
        inner = (cosine_cutoff(r, self.r_max) * decay * (10 / self.r_max))[:, None]
        values = cosine_cutoff(r, self.r_max)[:, None] * gaussian
        return values, gaussian * (steep[:, None] + inner * self.betas * offset)


class RadialNetwork(nn.Module):
    """Multilayer perceptron without biases, e3nn's `FullyConnectedNet`.

        h = SILU_GAIN * silu(h W_k / sqrt(fan_in)) for every layer but the last, which is linear

    Args:
        sizes: Sizes of input, hidden layers and output.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.num_layers = len(sizes) - 1
        for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.randn(fan_in, fan_out))
            self.add_module(f"layer{k}", layer)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The matrices, in order."""
        return [self.get_parameter(f"layer{k}.weight") for k in range(self.num_layers)]

    def forward(
        self, basis: RadialBasis, last: Float[Tensor, "hidden size_out"] | None = None
    ) -> Float[Tensor, "edges size_out"]:
        """The whole network; `last` takes the place of the last matrix."""
        *hidden, own = self.weights
        weights = [*hidden, own if last is None else last]
        return radial_network(basis, weights, Activation(SILU_GAIN))

    def factors(
        self, basis: RadialBasis, last: Float[Tensor, "hidden size_out"] | None = None
    ) -> tuple[Float[Tensor, "edges hidden"], Float[Tensor, "hidden size_out"]]:
        """Two matrices whose product is the network, for products that take `radial=`.

        `last` takes the place of the last matrix.
        """
        *hidden, own = self.weights
        last = own if last is None else last
        features = radial_network(basis, hidden, Activation(SILU_GAIN, on_last=True))
        return features, last / math.sqrt(last.shape[0])
