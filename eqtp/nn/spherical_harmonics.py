"""Spherical harmonics as a module."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.kernels.spherical_harmonics.op import check_options, spherical_harmonics
from eqtp.so3.solid_harmonics import Normalization


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of degrees 0 to ``lmax``; see `eqtp.so3.spherical_harmonics`.

    Args:
        lmax: highest degree.
        normalization: "component", "norm" or "integral".
        normalize: whether to use the directions of the vectors only.

    Attributes:
        irreps_out: one irrep of each degree, of parity ``(-1)^l``.

    Raises:
        ValueError: ``lmax`` is negative or the normalisation unknown.

    Example:
        >>> SphericalHarmonics(2).irreps_out
        1x0e+1x1o+1x2e
    """

    def __init__(
        self, lmax: int, normalization: Normalization = "component", normalize: bool = True
    ) -> None:
        super().__init__()
        check_options(lmax, normalization)
        self.lmax = lmax
        self.normalization: Normalization = normalization
        self.normalize = normalize
        self.irreps_out: Irreps = Irreps.spherical_harmonics(lmax)

    def forward(self, vec: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch dim"]:
        """Computes the harmonics [..., (lmax+1)^2] of vectors [..., 3]."""
        return spherical_harmonics(self.lmax, vec, self.normalization, self.normalize)

    def extra_repr(self) -> str:
        """Lists the options for `repr`."""
        return f"lmax={self.lmax}, normalization={self.normalization!r}, normalize={self.normalize}"
