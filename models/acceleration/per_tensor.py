"""What several modules of one forward pass make of the same tensor, made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")

__all__ = ["PerTensor"]


class PerTensor(Generic[T]):
    """Keeps the last result of a function of a tensor, and knows it by the tensor's identity.

    The result is kept on the tensor object, so that it lives as long as the tensor does; a tensor
    that was written to since is a new one.

    Args:
        name: Name of the attribute on the tensor.
        function: What is made of the tensor.
    """

    def __init__(self, name: str, function: Callable[..., T]) -> None:
        self.name = f"_eqtp_{name}"
        self.function = function

    def __call__(self, tensor: Tensor, *key: Any) -> T:
        """The function of the tensor and further arguments, which are compared by equality."""
        kept = tensor.__dict__.get(self.name)
        now = (tensor._version, *key)
        if kept is None or kept[0] != now:
            kept = (now, self.function(tensor, *key))
            tensor.__dict__[self.name] = kept
        result: T = kept[1]
        return result
