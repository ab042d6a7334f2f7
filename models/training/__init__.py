"""Training on labelled structures: data, configuration, loop, checkpoints, evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqtp.models.training import data

__all__ = ["data"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"eqtp.models.training.{name}")
    raise AttributeError(f"module 'eqtp.models.training' has no attribute {name!r}")
