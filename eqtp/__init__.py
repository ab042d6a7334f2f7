"""Equivariant tensor products for molecular machine learning: exact, fast, differentiable.

The public names are loaded when first used, so that `import eqtp` stays quick and a GNN that
needs one product does not pay for training, plotting or file formats.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eqtp.irreps import Irrep, Irreps

if TYPE_CHECKING:
    from eqtp import kernels, models, so3
    from eqtp.graph import Graph
    from eqtp.models.acceleration import accelerate, accelerated, restore
    from eqtp.models.calculator import Calculator
    from eqtp.nn import (
        ChannelwiseTensorProduct,
        ElementwiseTensorProduct,
        FullTensorProduct,
        FullyConnectedTensorProduct,
        Gate,
        Linear,
        SphericalHarmonics,
        SymmetricContraction,
        TensorProduct,
        TensorReadout,
    )

__version__ = "0.1.0"

__all__ = [
    "Calculator",
    "ChannelwiseTensorProduct",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "Gate",
    "Graph",
    "Irrep",
    "Irreps",
    "Linear",
    "SphericalHarmonics",
    "SymmetricContraction",
    "TensorProduct",
    "TensorReadout",
    "__version__",
    "accelerate",
    "accelerated",
    "kernels",
    "models",
    "restore",
    "so3",
]

_PACKAGES = ("kernels", "models", "so3")
_LATER = {
    "PathGate": "learned sparse paths",
    "SO2Convolution": "SO(2)-reduced convolutions",
}
_MODULES = {
    "Calculator": "eqtp.models.calculator",
    "Graph": "eqtp.graph",
    "accelerate": "eqtp.models.acceleration",
    "accelerated": "eqtp.models.acceleration",
    "restore": "eqtp.models.acceleration",
}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"eqtp.{name}")
    if name in __all__:
        return getattr(importlib.import_module(_MODULES.get(name, "eqtp.nn")), name)
    if name in _LATER:
        raise AttributeError(
            f"eqtp.{name} is not in version {__version__}: {_LATER[name]} come later"
        )
    raise AttributeError(f"module 'eqtp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
