"""What several modules of one forward pass make of the same tensor, made once.

It is kept on the tensor object and lives as long as the tensor does. A tensor that was written to
since counts as a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from eqtp.graph import Graph

__all__ = ["Elements", "elements_of", "graph_of"]

T = TypeVar("T")


def _kept(tensor: Tensor, key: tuple[object, ...], make: Callable[[], T]) -> T:
    """What `make` gives, from the tensor where it has been kept under this key."""
    if torch.compiler.is_compiling():
        return make()
    store: dict[object, T] = tensor.__dict__.setdefault("_eqtp", {})
    key = (tensor._version, *key)
    if key not in store:
        if any(other[0] != tensor._version for other in store):  # type: ignore[index]
            store.clear()
        store[key] = make()
    return store[key]


def graph_of(src: Tensor, dst: Tensor, num_nodes: int) -> Graph:
    """The graph of these senders and receivers, which may be rows of one edge_index."""

    def make() -> Graph:
        return Graph(src, dst, num_nodes)

    base = src._base
    if base is None or dst._base is not base:
        return make()
    rows = tuple((row.storage_offset(), row.stride(), row.shape) for row in (src, dst))
    return _kept(base, ("graph", *rows, num_nodes), make)


class Elements(NamedTuple):
    """What one-hot rows say.

    Attributes:
        element: The element of every row.
        present: The elements that there are, ascending.
        position: Where every row's element is in `present`.
    """

    element: Tensor
    present: Tensor
    position: Tensor


def elements_of(one_hot: Tensor) -> Elements | None:
    """The elements of one-hot rows [N, num_elements]; None where they are anything else."""

    def make() -> Elements | None:
        if not one_hot.shape[0]:
            return None
        index = one_hot.argmax(dim=-1)
        is_one = one_hot.gather(-1, index[:, None]).eq(1).all()
        if not bool(is_one & (one_hot.count_nonzero() == len(one_hot))):
            return None
        return Elements(index, *index.unique(return_inverse=True))

    return None if one_hot.requires_grad else _kept(one_hot, ("elements",), make)
