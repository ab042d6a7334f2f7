"""Irreps and blocks of orbitals: the two forms of what couples degree l1 with degree l2.

A matrix of (2 l1 + 1) x (2 l2 + 1) numbers, such as the block of a Hamiltonian between a shell l1
of one atom and a shell l2 of another, turns as M -> D^l1 M D^l2^T. It is the direct sum of the
degrees |l1 - l2| ... l1 + l2, and the change between both forms is orthogonal.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = ["expand", "reduce"]


def expand(
    x: Float[Tensor, "*batch {(2*l1+1)*(2*l2+1)}"], l1: int, l2: int
) -> Float[Tensor, "*batch {2*l1+1} {2*l2+1}"]:
    """Makes the l1 x l2 block of orbitals from irreps.

        M[i, j] = sum_{L = |l1-l2|}^{l1+l2} sqrt(2L+1) sum_k w3j(l1, l2, L)[i, j, k] x_L[k]

    Orthogonal: the sum of squares is kept and `reduce` is the inverse. Equivariant: rotating x by
    D^L in each degree rotates M as D^l1 M D^l2^T. The parity of every degree is that of the two
    shells together, (-1)^(l1+l2).

    Source: the inverse product of SPHNet (arXiv 2502.01171, section 4.3) and QHNet.

    Args:
        x: The degrees |l1-l2|, ..., l1+l2, one after the other, each once; leading dimensions,
            channels among them, are kept.
        l1: Degree of the rows.
        l2: Degree of the columns.

    Returns:
        The blocks, in the dtype and on the device of x.

    Raises:
        ValueError: A degree is negative or x has not (2 l1 + 1)(2 l2 + 1) columns.

    Example:
        >>> p_with_d = expand(torch.randn(7, 15), 1, 2)
        >>> p_with_d.shape, torch.allclose(reduce(p_with_d, 1, 2).norm(), p_with_d.norm())
        (torch.Size([7, 3, 5]), True)
    """
    rows, columns = _shape(l1, l2)
    if x.shape[-1:] != (rows * columns,):
        raise ValueError(
            f"x must have {rows * columns} columns, the degrees {abs(l1 - l2)} to {l1 + l2} of a "
            f"block l1={l1} x l2={l2}, got shape {tuple(x.shape)}"
        )
    return (x @ _basis(l1, l2).to(x)).view(*x.shape[:-1], rows, columns)


def reduce(
    m: Float[Tensor, "*batch {2*l1+1} {2*l2+1}"], l1: int, l2: int
) -> Float[Tensor, "*batch {(2*l1+1)*(2*l2+1)}"]:
    """Takes an l1 x l2 block of orbitals apart into irreps: the inverse of `expand`.

        x_L[k] = sqrt(2L+1) sum_ij w3j(l1, l2, L)[i, j, k] M[i, j],   L = |l1-l2| ... l1+l2

    Args:
        m: Blocks of 2 l1 + 1 rows and 2 l2 + 1 columns.
        l1: Degree of the rows.
        l2: Degree of the columns.

    Returns:
        The degrees |l1-l2|, ..., l1+l2, one after the other.

    Raises:
        ValueError: A degree is negative or m has another shape.

    Example:
        >>> reduce(torch.eye(3), 1, 1)[:4].square().round().tolist()  # sqrt(3) in degree 0
        [3.0, 0.0, 0.0, 0.0]
    """
    rows, columns = _shape(l1, l2)
    if m.shape[-2:] != (rows, columns):
        raise ValueError(
            f"m must have shape [..., {rows}, {columns}] (l1={l1}, l2={l2}), got {tuple(m.shape)}"
        )
    return m.flatten(-2) @ _basis(l1, l2).to(m).T


def _shape(l1: int, l2: int) -> tuple[int, int]:
    if min(l1, l2) < 0:
        raise ValueError(f"l1 and l2 must be degrees >= 0, got l1={l1}, l2={l2}")
    return 2 * l1 + 1, 2 * l2 + 1


@functools.cache
@torch.inference_mode(False)  # the cached tensor must serve later calls that record gradients
def _basis(l1: int, l2: int) -> Tensor:
    """Orthogonal matrix [components of all degrees, entries of the block]."""
    degrees = range(abs(l1 - l2), l1 + l2 + 1)
    parts = [wigner_3j(l1, l2, degree).mul((2 * degree + 1) ** 0.5) for degree in degrees]
    return torch.cat([part.flatten(0, 1).T for part in parts])
