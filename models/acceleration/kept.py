"""What several modules of one forward pass make of the same tensor, made once.

It is kept as long as the tensor lives, and does not keep the tensor alive. A tensor that was
written to since counts as a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from eqtp.graph import Graph

__all__ = ["Elements", "elements_of", "graph_of"]

T = TypeVar("T")


_STORE = WeakTensorKeyDictionary()


def _kept(tensor: Tensor, key: tuple[object, ...], make: Callable[[], T]) -> T:
    """What `make` gives, made once for this tensor and key; it must not refer to the tensor."""
    if torch.compiler.is_compiling() or tensor.is_inference():
        return make()
    kept: tuple[Any, dict[Any, Any]] = _STORE.get(tensor) or (None, {})
    version, store = kept
    if version != tensor._version:
        store = {}
        _STORE[tensor] = tensor._version, store
    if key not in store:
        store[key] = make()
    result: T = store[key]
    return result


def graph_of(src: Tensor, dst: Tensor, num_nodes: int) -> Graph:
    """The graph of these senders and receivers, which may be rows of one edge_index."""
    base = None if torch.compiler.is_compiling() else src._base
    if base is None or dst._base is not base:
        return Graph(src, dst, num_nodes)

    def make() -> Graph:
        return Graph(src.clone(), dst.clone(), num_nodes)

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
