"""How a computation is swapped inside a module that stays what it is.

A swap puts itself into the module's own dictionary under the name `forward`, where PyTorch finds it
before the method of the class. The module object, its parameters, buffers, hooks, names and state
dict are untouched, and removing the entry is all that giving the original back takes. A swap knows
its module, not the other way round: copies of an accelerated model stay accelerated and whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["Swap", "inherits_forward", "swaps_in"]


class Swap:
    """A faster computation of what `module.forward` computes.

    Attributes:
        module: The module in whose place the computation stands.
        kind: What it computes, in the words of the report.
    """

    kind: str

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, *args: Any) -> Any:
        """The faster computation, with the signature of the module's forward."""
        raise NotImplementedError

    def original(self, *args: Any) -> Any:
        """The module's own computation."""
        return type(self.module).forward(self.module, *args)

    def compared(self, *args: Any) -> Tensor:
        """What the comparison calls: the computation as a tensor, on its fast path."""
        result: Tensor = self(*args)
        return result

    def definition(self, *args: Any) -> Tensor:
        """What the swap must give for `arguments`, by the module's own computation."""
        result: Tensor = self.original(*args)
        return result

    def arguments(self) -> tuple[Any, ...]:
        """Random arguments for a comparison with the definition, in the default dtype."""
        raise NotImplementedError

    def install(self) -> None:
        """Makes the module compute by the swap."""
        self.module.__dict__["forward"] = self

    def remove(self) -> None:
        """Gives the module its own computation back."""
        del self.module.__dict__["forward"]


def inherits_forward(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether the module computes what one of these classes does.

    A subclass that defines another forward does not, nor does an instance that carries its own.
    """
    return "forward" not in module.__dict__ and any(
        isinstance(module, cls) and type(module).forward is cls.forward for cls in classes
    )


def swaps_in(model: nn.Module) -> Iterator[tuple[str, Swap]]:
    """The swaps inside a model, with the names of their modules."""
    for name, module in model.named_modules():
        swap = module.__dict__.get("forward")
        if isinstance(swap, Swap):
            yield name, swap
