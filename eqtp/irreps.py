"""The one place where e3nn is imported.

e3nn 0.4.4, which mace-torch pins, loads its constants with a pickled `slice`; torch >= 2.6
refuses that unless `slice` is registered first. Nothing else in eqtp imports e3nn, and no number
of eqtp depends on the installed version: only the `Irreps` classes are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._compile import _disable_dynamo


@contextmanager
def _lazy_dynamo() -> Iterator[None]:
    """Keeps e3nn 0.6 from importing the compiler, which takes longer than all of torch.

    It decorates one function with `torch.compiler.disable`, which imports torch._dynamo at once:
    1.5 of the 1.9 s of CPU time of `import e3nn.o3`. torch's own lazy form of the decorator does
    so when that function is first called.
    """
    disable = torch.compiler.disable

    def disable_when_called(fn: Any = None, recursive: Any = True, *, reason: Any = None) -> Any:
        return _disable_dynamo(fn, recursive)

    torch.compiler.disable = disable_when_called
    try:
        yield
    finally:
        torch.compiler.disable = disable


torch.serialization.add_safe_globals([slice])
with _lazy_dynamo():
    from e3nn.o3 import Irrep, Irreps

__all__ = ["Irrep", "Irreps"]
