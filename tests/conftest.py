"""What every test shares: one thread, a fixed seed, float64, and NaN in fresh tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("contraction_checks", "potential_checks", "triton_checks")
torch.set_num_threads(1)  # the suite runs side by side with itself; two threads would only wait


@pytest.fixture(autouse=True)
def _float64_and_seed() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(20261122)
    yield
    torch.set_default_dtype(default)


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An output element that a kernel does not write makes its test fail, never pass by luck.

    `torch.utils.deterministic.fill_uninitialized_memory` would do the same, but needs the
    deterministic mode, which swaps the very kernels that are to be tested.
    """

    def filled(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocate_filled(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() and tensor.device.type != "meta":
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return allocate_filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, filled(getattr(owner, name)))
