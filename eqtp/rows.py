"""Rows gathered by an index and summed by it, in an order that is the same in every run.

    gather_rows(x, index)[e]            = x[index[e]]
    sum_rows(rows, index, num_rows)[n]  = sum of rows[e] where index[e] = n

Each is the other's derivative. On a CPU `index_select` and `index_add` go by the order of the rows.
On a GPU `index_add`, and with it the gradient of `index_select`, adds atomically, in any order, so
that a force changes from run to run; `index_put` sorts by the index first, and so does the gradient
of `x[index]`.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["add_rows", "gather_rows", "sum_rows"]


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], [len(index), ...]; differentiable to any order."""
    return x.index_select(0, index) if _adds_in_order(x) else x[index]


def sum_rows(rows: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """Sums of the rows that share an index, [num_rows, ...]; differentiable to any order."""
    sums = rows.new_zeros(num_rows, *rows.shape[1:])
    if _adds_in_order(rows):
        return sums.index_add(0, index, rows)
    return sums.index_put((index,), rows, accumulate=True)


def add_rows(sums: Tensor, index: Tensor, rows: Tensor) -> None:
    """Adds rows to those of `sums` that `index` names, in place."""
    if _adds_in_order(sums):
        sums.index_add_(0, index, rows)
    else:
        sums.index_put_((index,), rows, accumulate=True)


def _adds_in_order(x: Tensor) -> bool:
    """Whether `index_add` adds in the order of the rows on the device of x."""
    return x.device.type == "cpu"
