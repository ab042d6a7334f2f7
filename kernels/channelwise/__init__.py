"""Channelwise tensor products: "uvu" with one channel in x2, rows or message passing."""

from eqtp.kernels.channelwise.op import channelwise_tensor_product, supports

__all__ = ["channelwise_tensor_product", "supports"]
