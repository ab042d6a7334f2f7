"""Equivariant tensor products for molecular machine learning: exact, fast, differentiable.

The public names are loaded when first used, so that `import eqtp` stays quick and a GNN that
needs one product does not pay for training, plotting or file formats.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eqtp.irreps import Irrep, Irreps

if TYPE_CHECKING:
    from eqtp import kernels, models, nn, so3
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
        PathGate,
        SO2Convolution,
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
    "PathGate",
    "SO2Convolution",
    "SphericalHarmonics",
    "SymmetricContraction",
    "TensorProduct",
    "TensorReadout",
    "__version__",
    "accelerate",
    "accelerated",
    "kernels",
    "models",
    "nn",
    "restore",
    "so3",
]

_PACKAGES = ("kernels", "models", "nn", "so3")
_REFUSED = {
    "PairGate": "SPHNet's gate on pairs of atoms drops those below a quantile over the batch: "
    "energies would jump as atoms move and depend on what else is in the batch, so it is not for "
    "force fields; use eqtp.PathGate, whose paths are fixed once it is frozen",
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
    if name in _REFUSED:
        raise AttributeError(f"eqtp has no {name}, on purpose: {_REFUSED[name]}")
    raise AttributeError(f"module 'eqtp' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
