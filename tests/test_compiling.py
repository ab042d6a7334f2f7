"""What the compiler is told: properties that are constants to it, whoever asks for them first."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eqtp.compiling import constant_property


@dataclass(frozen=True)
class Scaled:
    size: int

    @constant_property
    def sizes(self) -> tuple[int, ...]:
        """All sizes."""
        return tuple(range(self.size))

    @constant_property
    def total(self) -> int:
        return sum(self.sizes)


def test_computed_once() -> None:
    scaled = Scaled(3)
    assert scaled.sizes is scaled.sizes == (0, 1, 2)
    assert Scaled.sizes.__doc__ == "All sizes."
    assert scaled == Scaled(3)


def test_cannot_be_set() -> None:
    with pytest.raises(AttributeError, match="total is computed"):
        object.__setattr__(Scaled(3), "total", 4)


@pytest.mark.parametrize("asked_before", [False, True])
def test_constant_to_the_compiler(asked_before: bool) -> None:
    import torch._dynamo

    torch._dynamo.reset()
    scaled = Scaled(4)
    if asked_before:
        assert scaled.total == 6
    compiled = torch.compile(
        lambda x: x * scaled.total + scaled.sizes[-1], fullgraph=True, backend="eager"
    )
    for _ in range(2):
        assert compiled(torch.ones(2)).tolist() == [9.0, 9.0]
