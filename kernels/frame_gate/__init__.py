"""What happens to numbers in frames of edges between linear maps: radial factors and gates."""

from eqtp.kernels.frame_gate.op import gate_orders, scale_orders
from eqtp.kernels.frame_gate.reference import FrameSizes

__all__ = ["FrameSizes", "gate_orders", "scale_orders"]
