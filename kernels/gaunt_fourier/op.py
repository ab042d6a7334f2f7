"""Products of functions on the sphere by fast Fourier transforms. Definition: reference.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from eqtp.kernels.gaunt_fourier import reference
from eqtp.kernels.gaunt_fourier._constants import to_harmonics
from eqtp.kernels.gaunt_fourier._series import both_signs_of_u, half_series
from eqtp.kernels.gaunt_grid.op import validate
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.operators import is_autocast, widest

__all__ = ["fourier_product"]


def fourier_product(
    x1: Float[Tensor, "rows dim1 channels1"],
    x2: Float[Tensor, "rows dim2 channels2"],
    problem: SphereProductProblem,
    *,
    direct: bool = False,
) -> Float[Tensor, "rows dim3 channels"]:
    """Product of functions on the sphere, as a convolution of their series on the torus.

    The same product as `eqtp.kernels.gaunt_grid.sphere_product`, computed as in the paper, but with
    exact constants, real transforms and half of the series by symmetry. Sizes are the smallest
    without aliasing: 2 (L1 + L2) + 1 for beta and L1 + L2 + L3 + 1 for alpha. The grid is faster at
    any degree: the points of the transform are a double cover of the sphere. Differentiable to any
    order. Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv:2401.10216, section 3.2.

    Args:
        x1: Parts of F, degrees in the order of `problem.degrees1`.
        x2: Parts of G. Either operand may have one channel, which then serves all of the other's.
        problem: The degrees.
        direct: Sums the convolution term by term, without a transform.

    Raises:
        ValueError: Shapes disagree with the problem or each other, or the problem is the odd one.
        TypeError: Operands differ in dtype or device, or are not floating-point tensors.

    Example:
        >>> problem = SphereProductProblem((0, 1), (0, 1), (0, 1, 2))
        >>> fourier_product(torch.randn(5, 4, 8), torch.randn(5, 4, 8), problem).shape
        torch.Size([5, 9, 8])
    """
    if is_autocast(x1):
        x1, x2 = widest((x1, x2))
    validate(x1, x2, problem)
    if problem.odd:
        raise ValueError(
            "the Fourier form multiplies functions, which couples degrees of even sum; use "
            "eqtp.kernels.gaunt_grid.sphere_product for the surface curl"
        )
    if direct or 0 in (x1.numel(), x2.numel()):  # there is no transform of nothing
        return reference.fourier_product(x1, x2, problem)
    l1, l2, l3 = (degrees[-1] for degrees in problem.degrees)
    size = 2 * (l1 + l2) + 1, max(l1 + l2 + l3 + 1, 2 * max(l1, l2, l3) + 1)
    values = _values(x1, problem.degrees1, size) * _values(x2, problem.degrees2, size)
    series = torch.fft.rfft2(values, norm="forward")[..., : l1 + l2 + 1, : l3 + 1]
    table = torch.view_as_real(to_harmonics(problem.degrees3, l1 + l2).conj().resolve_conj()).to(x1)
    parts = torch.view_as_real(series).flatten(-3) @ table.permute(0, 1, 3, 2).flatten(0, 2)
    return parts.transpose(1, 2)


def _values(x: Tensor, degrees: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Values on the torus, [rows, channels, *size]."""
    series = both_signs_of_u(half_series(x, degrees))
    lmax = degrees[-1]
    padded = pad(series, (0, size[1] // 2 - lmax, 0, size[0] - series.shape[-2]))
    values: Tensor = torch.fft.irfft2(padded.roll(-lmax, -2), s=size, norm="forward")
    return values
