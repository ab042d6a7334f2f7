"""Equivariant linear maps in layout "ir_mul", with one set of weights or one per element."""

from eqtp.kernels.linear.op import LinearPath, LinearProblem, linear, serves

__all__ = ["LinearPath", "LinearProblem", "linear", "serves"]
