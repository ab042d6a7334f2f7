"""What the SO(2) convolutions know of an edge: its length and the elements of its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eqtp.kernels.equivariant_norm import equivariant_norm

__all__ = ["EdgeNetwork", "GaussianBasis", "SineBasis"]


class GaussianBasis(nn.Module):
    """Gaussians at equal distances from 0 to r_max.

        g_n(r) = exp(-(r - mu_n)^2 / (2 (width d)^2)),   mu_n = n d,   d = r_max / (size - 1)

    Nothing vanishes at the cutoff: an envelope on the messages makes them smooth.
    Source: SchNet (arXiv 1706.08566), with eSCN-MD's width of two spacings.

    Args:
        r_max: Cutoff radius in Å.
        size: Number of functions, at least 2.
        width: Standard deviation in units of the spacing d.

    Example:
        >>> GaussianBasis(5.0, 3)(torch.tensor([2.5])).shape
        torch.Size([1, 3])
    """

    def __init__(self, r_max: float, size: int, width: float = 2.0) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"a Gaussian basis must have at least 2 functions, got {size}")
        centers = torch.linspace(0, r_max, size, dtype=torch.float64)
        self.register_buffer("centers", centers.to(torch.get_default_dtype()))
        self.centers: Tensor
        self.inverse_width = (size - 1) / (width * r_max)

    def forward(self, r: Float[Tensor, " edges"]) -> Float[Tensor, "edges size"]:
        """The basis at distances r in Å."""
        return torch.exp(-0.5 * ((r[:, None] - self.centers) * self.inverse_width).square())


class SineBasis(nn.Module):
    """Bessel functions without an envelope: ``b_n(r) = sqrt(2) sin(n pi r / r_max) r_0 / r``.

    The factor r_0 = r_max / 4 makes their mean square at bond lengths of the order of 1.
    Source: DimeNet (arXiv 2003.03123), equation 7.

    Args:
        r_max: Cutoff radius in Å.
        size: Number of functions.
    """

    def __init__(self, r_max: float, size: int) -> None:
        super().__init__()
        frequencies = math.pi / r_max * torch.arange(1, size + 1, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies.to(torch.get_default_dtype()))
        self.frequencies: Tensor
        self.factor = math.sqrt(2) * r_max / 4

    def forward(self, r: Float[Tensor, " edges"]) -> Float[Tensor, "edges size"]:
        """The basis at distances r in Å, positive."""
        return torch.sin(r[:, None] * self.frequencies) * (self.factor / r)[:, None]


class EdgeNetwork(nn.Module):
    """Numbers of every edge from its radial basis and its pair of elements.

        h = basis W_0 / sqrt(size) + T[element of the sender, element of the receiver]
        h <- silu(layer_norm(h)) W_k / sqrt(fan_in) + bias_k,   k = 1 ... last

    The table T is what a linear map of both ends' element embeddings amounts to.
    Source: eSCN-MD's radial network (arXiv 2502.12147).

    Args:
        num_elements: Number of elements.
        sizes: Of the basis, the hidden layers and the result.
    """

    def __init__(self, num_elements: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.num_elements = num_elements
        self.pairs = nn.Parameter(torch.randn(num_elements**2, sizes[1]))
        shapes = list(pairwise(sizes))
        self.weights = nn.ParameterList(torch.randn(shape) for shape in shapes)
        self.gains = nn.ParameterList(torch.ones(fan_in) for fan_in, _ in shapes[1:])
        self.offsets = nn.ParameterList(torch.zeros(fan_in) for fan_in, _ in shapes[1:])
        self.biases = nn.ParameterList(torch.zeros(fan_out) for _, fan_out in shapes[1:])

    def pair(
        self, sender: Int[Tensor, " edges"], receiver: Int[Tensor, " edges"]
    ) -> Int[Tensor, " edges"]:
        """The row of every edge in the table, from the elements of its ends."""
        return sender * self.num_elements + receiver

    def forward(
        self, basis: Float[Tensor, "edges size"], pair: Int[Tensor, " edges"]
    ) -> Float[Tensor, "edges size_out"]:
        """The network, one row per edge."""
        first, *others = self.weights
        h = torch.addmm(self.pairs.index_select(0, pair), basis, first * first.shape[0] ** -0.5)
        for weight, gain, offset, bias in zip(
            others, self.gains, self.offsets, self.biases, strict=True
        ):
            h = equivariant_norm(h[:, None], gain[None], offset, activation=True).squeeze(1)
            h = torch.addmm(bias, h, weight * weight.shape[0] ** -0.5)
        return h
