"""Constants and representations of the rotation group, in e3nn's real basis.

Degree 1 is (x, y, z), y is the polar axis, order m of degree l stands at index l + m. All numbers
come from this package's own float64 algorithms; none depends on the installed e3nn.

`spherical_harmonics` is a kernel (`eqtp.kernels.spherical_harmonics`) and stands one floor above
this package, whose constants it imports. It is listed here because users look for it here, and
imported at its first use: an import at the top would close a circle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eqtp.so3.clebsch_gordan import wigner_3j
from eqtp.so3.conversion import convert
from eqtp.so3.expressivity import expressivity, interactability
from eqtp.so3.gaunt_coefficients import gaunt
from eqtp.so3.index_symmetry import (
    TensorSymmetry,
    irreps_to_tensor,
    tensor_irreps,
    tensor_symmetry,
    tensor_to_irreps,
)
from eqtp.so3.orbital_blocks import expand, reduce
from eqtp.so3.rotation import rand_matrix
from eqtp.so3.tensor_bases import matrix_basis, traceless_basis
from eqtp.so3.wigner_d import wigner_D

if TYPE_CHECKING:
    from eqtp.kernels.spherical_harmonics import spherical_harmonics

__all__ = [
    "TensorSymmetry",
    "convert",
    "expand",
    "expressivity",
    "gaunt",
    "interactability",
    "irreps_to_tensor",
    "matrix_basis",
    "rand_matrix",
    "reduce",
    "spherical_harmonics",
    "tensor_irreps",
    "tensor_symmetry",
    "tensor_to_irreps",
    "traceless_basis",
    "wigner_3j",
    "wigner_D",
]


def __getattr__(name: str) -> object:
    if name != "spherical_harmonics":
        raise AttributeError(f"eqtp.so3 has no {name!r} in this version, which has {__all__}")
    from eqtp.kernels.spherical_harmonics import spherical_harmonics

    globals()[name] = spherical_harmonics
    return spherical_harmonics
