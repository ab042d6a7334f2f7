"""Radial networks: functions of the edge length alone."""

from eqtp.kernels.radial.op import Activation, RadialBasis, radial_network

__all__ = ["Activation", "RadialBasis", "radial_network"]
