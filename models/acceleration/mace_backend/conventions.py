"""What MACE's descriptors mean: dtypes, layouts, the scale of weights, the axes of features."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from eqtp.layout import Layout

__all__ = [
    "DTYPES",
    "channels_first",
    "components_first",
    "draw",
    "layout_of",
    "weights_are_raw",
]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def weights_are_raw() -> bool:
    """Whether sqrt(fan in) is divided by in the forward pass, not folded into weights."""
    canonical = importlib.import_module("mace_core.kernels.canonical")
    return hasattr(canonical, "linear_path_normalization")


def draw(weight: Tensor, seed: int) -> Tensor:
    """Standard normal numbers that depend on the seed alone, not on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)


def layout_of(descriptor: Any) -> Layout:
    """The layout that a descriptor asks for; the older form has none and means "mul_ir"."""
    layout: Layout = getattr(descriptor, "layout", "mul_ir")
    return layout


def components_first(x: Tensor) -> Tensor:
    """[N, C, dim] as rows in layout "ir_mul"."""
    return x.transpose(1, 2).reshape(x.shape[0], -1)


def channels_first(x: Tensor, channels: int) -> Tensor:
    """Rows in layout "ir_mul" as [N, C, dim]."""
    return x.view(x.shape[0], -1, channels).transpose(1, 2)
