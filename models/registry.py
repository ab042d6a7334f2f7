"""The potentials that files, configs and `eqtp.models` may name, in one place.

A new model adds one line here, and one class to `eqtp.models.training.model_config`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODEL_MODULES", "model_class"]

MODEL_MODULES = {
    "ESCN": "eqtp.models.escn",
    "MACE": "eqtp.models.mace",
    "TensorNet": "eqtp.models.tensornet",
}
"""Where each class is defined; imported only when it is asked for."""


def model_class(name: str) -> type[nn.Module]:
    """The class of a potential.

    Raises:
        ValueError: There is no such model.

    Example:
        >>> model_class("MACE").__module__
        'eqtp.models.mace'
    """
    if name not in MODEL_MODULES:
        raise ValueError(f"a model must be one of {', '.join(MODEL_MODULES)}, got {name!r}")
    found: type[nn.Module] = getattr(importlib.import_module(MODEL_MODULES[name]), name)
    return found
