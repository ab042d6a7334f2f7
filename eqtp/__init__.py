"""Equivariant tensor products for molecular machine learning, exact and fast."""

from __future__ import annotations

from eqtp.irreps import Irrep, Irreps

__version__ = "0.1.0"

__all__ = ["Irrep", "Irreps", "__version__"]
