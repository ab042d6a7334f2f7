"""Rows gathered and summed by an index: as `index_add` does, on either way there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqtp import rows
from eqtp.rows import add_rows, gather_rows, sum_rows


@pytest.fixture(params=["in order", "atomically"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the CPU does, and on the CPU what a device does that adds atomically."""
    monkeypatch.setattr(rows, "_adds_in_order", lambda x: request.param == "in order")


def expected_sums(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    sums = torch.zeros(num_rows, *x.shape[1:])
    for row, number in zip(x, index, strict=True):
        sums[number] += row
    return sums


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 3), (0, 3)])
def test_sums_and_gathers(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, index = torch.randn(shape), torch.tensor([3, 0, 3, 3, 1, 0])[: shape[0]].to(dtype)
    expected = expected_sums(x, index, 5)
    torch.testing.assert_close(sum_rows(x, index, 5), expected)
    sums = torch.ones(5, *shape[1:])
    add_rows(sums, index, x)
    torch.testing.assert_close(sums, 1 + expected)
    assert torch.equal(gather_rows(expected, index), expected[index.long()])


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("function", [gather_rows, lambda x, index: sum_rows(x, index, 4)])
def test_twice_differentiable(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    index = torch.tensor([3, 0, 3, 1])

    def cube(x: Tensor) -> Tensor:
        return function(x**3, index)

    x = torch.randn(4, 2, requires_grad=True)
    assert torch.autograd.gradcheck(cube, x)
    assert torch.autograd.gradgradcheck(cube, x)


def test_no_derivative_comes_to_index_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_adds_in_order", lambda x: False)
    x, index = torch.randn(4, 2, requires_grad=True), torch.tensor([3, 0, 3, 1])
    with torch.profiler.profile() as profile:
        y = sum_rows(gather_rows(x, index) ** 3, index, 4)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), x)
    names = {event.name for event in profile.events()}
    assert "aten::index_put" in names or "aten::_index_put_impl_" in names
    assert not names & {"aten::index_add", "aten::index_add_", "aten::scatter_add_"}
