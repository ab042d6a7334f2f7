"""Many-body Gaunt products: powers of a function on the sphere, with weights of every element."""

from __future__ import annotations

from eqtp.kernels.gaunt_contraction.op import gaunt_contraction

__all__ = ["gaunt_contraction"]
