"""Radial networks: functions of the edge length alone."""

from eqtp.kernels.radial.op import RadialBasis, radial_network

__all__ = ["RadialBasis", "radial_network"]
