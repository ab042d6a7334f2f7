"""Real spherical harmonics of all degrees up to lmax."""

from eqtp.kernels.spherical_harmonics.op import spherical_harmonics

__all__ = ["spherical_harmonics"]
