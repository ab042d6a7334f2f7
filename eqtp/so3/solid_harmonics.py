"""Constants of the real spherical harmonics: one bilinear step from degree to degree.

A solid harmonic ``Y_l(v) = |v|^l Y_l(v / |v|)`` is a homogeneous polynomial of x, y, z. Both its
recursion and its gradient are the one equivariant map from (degree l-1) x (vector) to degree l:

    Y_l[n]          =     sum_ia step[i, a, n] Y_(l-1)[i] v[a]
    d Y_l[n] / dv[a] = l * sum_i  step[i, a, n] Y_(l-1)[i]

The second line holds because each partial derivative of a harmonic polynomial is a harmonic
polynomial of one degree less; the factor l is Euler's theorem, ``v . grad Y_l = l Y_l``. Since it
is closed in the harmonics themselves, so are all higher derivatives.

The recursion is stable: for a unit vector the step maps an error in the order m (about that
vector) to the degree l with the factor ``sqrt(1 - (m / l)^2) <= 1``.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j

Normalization = Literal["component", "norm", "integral"]


def pole_value(l: int, normalization: Normalization) -> float:
    """Returns the value of ``Y_l0`` at +y, which sets the scale and the sign of degree ``l``.

    Example:
        >>> pole_value(4, "component")
        3.0
    """
    if normalization == "component":
        return math.sqrt(2 * l + 1)
    if normalization == "norm":
        return 1.0
    return math.sqrt((2 * l + 1) / (4 * math.pi))


def recursion_step(l: int, normalization: Normalization) -> Float64[Tensor, "{2*l-1} 3 {2*l+1}"]:
    """Returns ``step[i, a, n]`` of the module's docstring for degree ``l >= 1``.

    Example:
        >>> recursion_step(1, "norm")[0].diagonal().tolist()
        [1.0, 1.0, 1.0]
    """
    w3j = wigner_3j(l - 1, 1, l)
    ratio = pole_value(l, normalization) / pole_value(l - 1, normalization)
    return w3j * (ratio / w3j[l - 1, 1, l])  # at +y only the orders 0 of Y_(l-1), v and Y_l remain


def gradient_form(
    lmax: int, normalization: Normalization
) -> Float64[Tensor, "{lmax**2} 3 {(lmax+1)**2-1}"]:
    """Returns ``form[k, a, m]`` with ``d Y[1 + m] / dv[a] = sum_k form[k, a, m] Y[k]``.

    ``Y`` stacks the degrees 0 to ``lmax``; the last degree never appears on the right, degree 0
    has no gradient. Block diagonal in the degree: degree l-1 on the right for l on the left.
    """
    form = torch.zeros(lmax**2, 3, (lmax + 1) ** 2 - 1, dtype=torch.float64, device="cpu")
    for l in range(1, lmax + 1):
        lower, upper = slice((l - 1) ** 2, l**2), slice(l**2 - 1, (l + 1) ** 2 - 1)
        form[lower, :, upper] = l * recursion_step(l, normalization)
    return form
