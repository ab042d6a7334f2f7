"""Products with edge directions in frames where the edge points along +y (eSCN)."""

from eqtp.kernels.so2.convolution import so2_convolution
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.kernels.so2.op import rotate_from_edge, rotate_to_edge, scaled, so2_linear

__all__ = [
    "FrameLayout",
    "rotate_from_edge",
    "rotate_to_edge",
    "scaled",
    "so2_convolution",
    "so2_linear",
]
