"""Interatomic potentials built on the public tensor products; imported as `eqtp.models`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "eqtp.models":
    raise ImportError("import this package as eqtp.models")

from eqtp.models.registry import MODEL_MODULES

if TYPE_CHECKING:
    from eqtp.models.blocks.path_gates import gate_paths, prune_paths
    from eqtp.models.escn import ESCN
    from eqtp.models.io import load, save
    from eqtp.models.mace import MACE
    from eqtp.models.tensornet import TensorNet

__all__ = ["ESCN", "MACE", "TensorNet", "gate_paths", "load", "prune_paths", "save"]

_MODULES = MODEL_MODULES | {
    "gate_paths": "eqtp.models.blocks.path_gates",
    "load": "eqtp.models.io",
    "prune_paths": "eqtp.models.blocks.path_gates",
    "save": "eqtp.models.io",
}
_PACKAGES = ("acceleration", "training")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"eqtp.models.{name}")
    raise AttributeError(f"module 'eqtp.models' has no attribute {name!r}; it has {__all__}")
