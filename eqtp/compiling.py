"""What `torch.compile` is told of functions that it need not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar, overload

__all__ = ["constant_property", "constant_when_compiled"]

T = TypeVar("T")
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


class constant_property(Generic[T]):
    """A property of plain data that is computed once, and by the compiler taken as a constant.

    In place of `functools.cached_property`, which the compiler cannot follow: it takes a lock
    before Python 3.12, and a program that first found it empty would not fit the filled one.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self._name = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> constant_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> T: ...
    @constant_when_compiled
    def __get__(
        self, instance: object | None, owner: type | None = None
    ) -> constant_property[T] | T:
        if instance is None:
            return self
        values = instance.__dict__
        if self._name not in values:
            values[self._name] = self._function(instance)
        value: T = values[self._name]
        return value

    def __set__(self, instance: object, value: T) -> NoReturn:
        # With it Python, and so the compiler, asks `__get__` and not the object's __dict__.
        raise AttributeError(f"{self._name} is computed and cannot be set")
