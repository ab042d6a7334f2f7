"""Symmetric contraction: element-dependent equivariant polynomials of node features."""

from __future__ import annotations

from eqtp.kernels.symmetric_contraction.op import symmetric_contraction

__all__ = ["symmetric_contraction"]
