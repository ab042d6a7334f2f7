"""The interface: modules that a graph neural network is built from."""

from __future__ import annotations

from .gate import Gate
from .linear import Linear
from .path_gate import PathGate
from .so2_convolution import SO2Convolution
from .spherical_harmonics import SphericalHarmonics
from .standard_products import (
    ChannelwiseTensorProduct,
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
)
from .symmetric_contraction import SymmetricContraction
from .tensor_product import TensorProduct
from .tensor_readout import TensorReadout

__all__ = [
    "ChannelwiseTensorProduct",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Gate",
    "Linear",
    "PathGate",
    "SO2Convolution",
    "SphericalHarmonics",
    "SymmetricContraction",
    "TensorProduct",
    "TensorReadout",
]
