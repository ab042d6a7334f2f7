"""Products of functions on the sphere as convolutions of Fourier series."""

from eqtp.kernels.gaunt_fourier.op import fourier_product

__all__ = ["fourier_product"]
