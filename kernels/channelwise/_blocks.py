"""What one block of x1 contributes to a chunk of rows: forward, gradient, second gradient.

With rows (p, k) = (path, component of the result), p running over the paths that read the block:

    M(y)[(p, k), i] = sum_j C[i, j, (p, k)] y[j]
    out[(p, k), u] = w[p, u] sum_i M(y)[(p, k), i] x[i, u]

The form T(x, y, w; g) = sum out[(p, k), u] g[(p, k), u] is linear in each operand; its gradients
are the same sums with roles exchanged. Two orders of the same sums, each the faster one in its
place (2,242 edges, 32 channels, chunks of 400, one thread):

    scalar input   z[p, u] = w[p, u] x[u] first, then one product with A[(p, k), q] =
                   M[(p, k)] d_pq, mostly zeros but without a copy of w per component: forward
                   1.3 ms where the other order takes 2.9 ms, gradients 2.1 ms where it takes
                   5.3 ms (4 paths)
    tensor input   t = M x first, then times w, copied to one row per (p, k): forward 1.5 ms where
                   the first order takes 2.0 ms, gradients 4.5 ms where it takes 7.5 ms (6 paths)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Block", "Gradients", "ScalarBlock", "TensorBlock"]


class Gradients(NamedTuple):
    """Gradients of T for a chunk of rows; None where not asked for or zero."""

    g: Tensor | None
    x: Tensor | None
    y: Tensor | None
    w: Tensor | None


@dataclass(frozen=True)
class Block:
    """One block of x1 and the paths that read it.

    Attributes:
        columns: Of the flat x1.
        dim: 2 l1 + 1.
        mul: Number of channels.
        out: Columns of the flat result, path after path.
        weight_units: Which units of the flat weight are this block's, path after path; a slice
            where they are side by side, which spares a copy.
        row_path: The path p of every row (p, k).
        coupling: C, [dim2, rows * dim], or for a scalar block spread out as [dim2, rows * paths].
        path_sum: [paths, rows], one where a row belongs to a path.
    """

    columns: slice
    dim: int
    mul: int
    out: tuple[slice, ...]
    weight_units: slice | Tensor
    row_path: Tensor
    coupling: Tensor
    path_sum: Tensor

    @property
    def num_paths(self) -> int:
        """Number of paths p."""
        return self.path_sum.shape[0]

    @property
    def num_rows(self) -> int:
        """Number of rows (p, k)."""
        return self.path_sum.shape[1]

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Computes out from x [rows, i, u], y [rows, j] and w [rows or 1, p, u]."""
        raise NotImplementedError

    def backward(
        self, g: Tensor, x: Tensor, y: Tensor, w: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        """Gradients of T in x, y and w."""
        raise NotImplementedError

    def double_backward(
        self,
        v: tuple[Tensor | None, Tensor | None, Tensor | None],
        g: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        needs: tuple[bool, bool, bool, bool],
    ) -> Gradients:
        """Gradients of T(v_x, y, w; g) + T(x, v_y, w; g) + T(x, y, v_w; g) in g, x, y and w."""
        raise NotImplementedError

    def _matrices(self, y: Tensor) -> Tensor:
        return (y @ self.coupling).view(len(y), self.num_rows, -1)

    def _grad_y(self, grad_matrices: Tensor | None) -> Tensor | None:
        """Adjoint of `_matrices`."""
        return None if grad_matrices is None else grad_matrices.flatten(1) @ self.coupling.T


class ScalarBlock(Block):
    """A block of scalars: weights and channels first, then the components."""

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """A(y) z."""
        return torch.bmm(self._matrices(y), x * w)

    def backward(
        self, g: Tensor, x: Tensor, y: Tensor, w: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        """With r = A^T g: r w summed over paths, g z^T, and r x."""
        need_x, need_y, need_w = needs
        grad_y = self._grad_y(torch.bmm(g, (x * w).mT)) if need_y else None
        if not (need_x or need_w):
            return Gradients(None, None, grad_y, None)
        r = torch.bmm(self._matrices(y).mT, g)
        grad_x = (r * w).sum(1, keepdim=True) if need_x else None
        return Gradients(None, grad_x, grad_y, r * x if need_w else None)

    def double_backward(
        self,
        v: tuple[Tensor | None, Tensor | None, Tensor | None],
        g: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        needs: tuple[bool, bool, bool, bool],
    ) -> Gradients:
        """The directions enter as v_z = v_w x + w v_x and v_A = A(v_y)."""
        v_x, v_y, v_w = v
        need_g, need_x, need_y, need_w = needs
        matrices = self._matrices(y)
        v_matrices = None if v_y is None else self._matrices(v_y)
        v_z = _sum_of_products((v_x, w), (v_w, x))
        r = torch.bmm(matrices.mT, g) if need_x or need_w else None
        v_r = None if v_matrices is None else torch.bmm(v_matrices.mT, g)
        grad_x = _sum_of_products((r, v_w), (v_r, w)) if need_x else None
        z = x * w if need_g and v_matrices is not None else None
        return Gradients(
            _sum_of_batched((matrices, v_z), (v_matrices, z)) if need_g else None,
            None if grad_x is None else grad_x.sum(1, keepdim=True),
            self._grad_y(torch.bmm(g, v_z.mT)) if need_y and v_z is not None else None,
            _sum_of_products((r, v_x), (v_r, x)) if need_w else None,
        )


class TensorBlock(Block):
    """A block of degree l1 > 0: components first, then the weights."""

    def forward(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """(M(y) x) w."""
        return torch.bmm(self._matrices(y), x).mul_(self._rows(w))

    def backward(
        self, g: Tensor, x: Tensor, y: Tensor, w: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        """With q = g w: M^T q, q x^T, and (M x) g summed over components."""
        need_x, need_y, need_w = needs
        matrices = self._matrices(y) if need_x or need_w else None
        q = g * self._rows(w) if need_x or need_y else None
        grad_x = grad_y = grad_w = None
        if need_x and matrices is not None and q is not None:
            grad_x = torch.bmm(matrices.mT, q)
        if need_y and q is not None:
            grad_y = self._grad_y(torch.bmm(q, x.mT))
        if need_w and matrices is not None:
            grad_w = self._sum_components(torch.bmm(matrices, x).mul_(g))
        return Gradients(None, grad_x, grad_y, grad_w)

    def double_backward(
        self,
        v: tuple[Tensor | None, Tensor | None, Tensor | None],
        g: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor,
        needs: tuple[bool, bool, bool, bool],
    ) -> Gradients:
        """The directions enter as v_t = M(y) v_x + M(v_y) x and v_q = g v_w."""
        v_x, v_y, v_w = v
        need_g, need_x, need_y, need_w = needs
        matrices = self._matrices(y)
        v_matrices = None if v_y is None else self._matrices(v_y)
        v_t = _sum_of_batched((matrices, v_x), (v_matrices, x))
        w_rows = self._rows(w)
        v_rows = None if v_w is None else self._rows(v_w)
        t = torch.bmm(matrices, x) if need_g and v_rows is not None else None
        q = g * w_rows if need_x or need_y else None
        v_q = None if v_rows is None or q is None else g * v_rows
        grad_x = grad_matrices = None
        if need_x:
            v_mt = None if v_matrices is None else v_matrices.mT
            grad_x = _sum_of_batched((matrices.mT, v_q), (v_mt, q))
        if need_y:
            v_xt = None if v_x is None else v_x.mT
            grad_matrices = _sum_of_batched((q, v_xt), (v_q, x.mT))
        return Gradients(
            _sum_of_products((v_t, w_rows), (t, v_rows)) if need_g else None,
            grad_x,
            self._grad_y(grad_matrices),
            self._sum_components(v_t * g) if need_w and v_t is not None else None,
        )

    def _rows(self, w: Tensor) -> Tensor:
        """One row per (p, k)."""
        return w.index_select(1, self.row_path)

    def _sum_components(self, product: Tensor) -> Tensor:
        """Sum over k of rows (p, k)."""
        return torch.bmm(self.path_sum.expand(len(product), -1, -1), product)


def _sum_of_products(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    """Sum of a * b over the pairs whose factors are both there; None if none is."""
    total: Tensor | None = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = a * b if total is None else total.addcmul_(a, b)
    return total


def _sum_of_batched(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor | None:
    """Sum of batched a @ b over the pairs whose factors are both there; None if none is."""
    total: Tensor | None = None
    for a, b in pairs:
        if a is not None and b is not None:
            total = torch.bmm(a, b) if total is None else total.baddbmm_(a, b)
    return total
