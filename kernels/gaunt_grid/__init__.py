"""Products of functions on the sphere, on grids of the smallest exact size."""

from eqtp.kernels.gaunt_grid.op import sphere_product
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["SphereProductProblem", "sphere_product"]
