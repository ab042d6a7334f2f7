"""What the tests of several kernel families share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from triton_checks import INTERPRETED


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[int, ...]]]:
    """Launches for an H200 that is not there: all but the last step, running the binary.

    The kernels that were compiled or found in the process's cache, with their grids.
    """
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("Triton's interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    made: list[tuple[Any, tuple[int, ...]]] = []

    def launch(function: Any, grid: tuple[int, ...]) -> Any:
        def record(*args: Any, **options: Any) -> None:
            made.append((function.run(*args, grid=grid, warmup=True, **options), grid))

        return record

    monkeypatch.setattr(driver, "_active", device)
    monkeypatch.setattr(JITFunction, "__getitem__", launch)
    return made
