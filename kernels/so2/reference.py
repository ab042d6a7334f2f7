"""Definition of the rotations to and from the frame of an edge: a Wigner matrix per edge.

    rotate_to_edge:    y[e] = D(R_e) x[src(e)],  R_e a rotation with R_e r_e / |r_e| = +y
    rotate_from_edge:  x[n] = sum over edges e with dst(e) = n of D(R_e)^T y[e]

and of the linear maps between, y_+m = A_m x_+m - B_m x_-m, y_-m = B_m x_+m + A_m x_-m. Slow, and
memory that grows with the fourth power of the degree. Its numbers agree with the kernels'; its
derivatives in the vectors are those of this very rotation, roll included, and not finite at poles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.so2.frames import FrameLayout
from eqtp.layout import Layout, to_layout
from eqtp.so3 import wigner_D

__all__ = ["alignment", "rotate_from_edge", "rotate_to_edge"]


def alignment(vectors: Tensor) -> Tensor:
    """Rotations [E, 3, 3] that take vectors to +y: a turn about y, then one about x."""
    x, y, z = vectors.unbind(-1)
    across, zero = torch.hypot(x, z), torch.zeros_like(x)
    length, at_pole = torch.hypot(across, y), across == 0
    divisor = torch.where(at_pole, 1, across)
    sin, cos = x / divisor, torch.where(at_pole, 1, z / divisor)
    about_y = torch.stack([cos, zero, -sin, zero, zero + 1, zero, sin, zero, cos], -1)
    sin, cos = across / length, y / length
    about_x = torch.stack([zero + 1, zero, zero, zero, cos, sin, zero, -sin, cos], -1)
    rotation: Tensor = about_x.unflatten(-1, (3, 3)) @ about_y.unflatten(-1, (3, 3))
    return rotation


def _matrices(vectors: Tensor, frame: FrameLayout) -> Tensor:
    """D of every edge, [E, frame.dim, dim], for features in layout "ir_mul"."""
    rotation = alignment(vectors)
    matrix = vectors.new_zeros(len(vectors), frame.dim, frame.irreps.dim)
    for block in frame.blocks:
        wigner = wigner_D(block.l, rotation)
        for m, column in zip(range(-block.m_max, block.m_max + 1), block.columns, strict=True):
            for n in range(2 * block.l + 1):
                for u in range(block.mul):
                    at = block.start + n * block.mul + u
                    matrix[:, column + u, at] = wigner[:, block.l + m, n]
    return matrix


def rotate_to_edge(
    x: Tensor, vectors: Tensor, frame: FrameLayout, *, graph: Graph | None, layout: Layout
) -> Tensor:
    """The formula above; arguments as in `op.rotate_to_edge`."""
    x = to_layout(x, frame.irreps, layout, "ir_mul")
    rows = x if graph is None else x[graph.edge_src]
    return torch.einsum("eyx,ex->ey", _matrices(vectors, frame), rows)


def rotate_from_edge(
    y: Tensor, vectors: Tensor, frame: FrameLayout, *, graph: Graph | None, layout: Layout
) -> Tensor:
    """The formula above; arguments as in `op.rotate_from_edge`."""
    rows = torch.einsum("eyx,ey->ex", _matrices(vectors, frame), y)
    if graph is not None:
        rows = rows.new_zeros(graph.num_dst, rows.shape[1]).index_add(0, graph.edge_dst, rows)
    return to_layout(rows, frame.irreps, "ir_mul", layout)
