"""Settings every test shares: one thread, fixed seed, float64, and NaN-filled fresh tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Seeds torch, computes in float64, and fills `torch.empty` with NaN.

    With NaN in every freshly allocated tensor an output element that a kernel does not write
    makes the comparison fail instead of passing by luck.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(20261122)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(default)
