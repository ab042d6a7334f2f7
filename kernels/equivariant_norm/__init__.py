"""Features over their root mean square, every degree counting the same."""

from eqtp.kernels.equivariant_norm.op import equivariant_norm
from eqtp.kernels.equivariant_norm.reference import degrees

__all__ = ["degrees", "equivariant_norm"]
