"""What `torch.compile` is told of functions that it need not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["constant_when_compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def constant_when_compiled(function: F) -> F:
    """Marks a function of descriptions (problems, irreps, names) whose result is plain data.

    The compiler calls it once and puts the result into the compiled program, which holds for the
    very same descriptions. It could not follow the function itself: e3nn's irreps are tuples that
    refuse to be measured. This is `torch.compiler.assume_constant_result` without its import of
    torch._dynamo, which takes longer than that of all of torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
