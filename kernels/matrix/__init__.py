"""Operations on 3x3 matrices, one per channel, stored as their irreducible parts."""

from eqtp.kernels.matrix.op import Kind, matrix_normalize, matrix_product

__all__ = ["Kind", "matrix_normalize", "matrix_product"]
