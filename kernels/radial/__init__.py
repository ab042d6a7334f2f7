"""Hidden features of radial networks: functions of the edge length alone."""

from eqtp.kernels.radial.op import RadialBasis, hidden_features

__all__ = ["RadialBasis", "hidden_features"]
