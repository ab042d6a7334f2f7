"""Kernel families, one folder per operation; imported as `eqtp.kernels`."""

if __name__ != "eqtp.kernels":
    raise ImportError("import this package as eqtp.kernels")
