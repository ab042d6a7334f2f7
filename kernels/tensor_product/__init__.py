"""The general tensor product: every mode of e3nn, mixed in one problem, rows and graphs."""

from __future__ import annotations

from eqtp.kernels.tensor_product.op import tensor_product

__all__ = ["tensor_product"]
