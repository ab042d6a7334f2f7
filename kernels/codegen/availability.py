"""Whether generated kernels can run: in this process, on these tensors."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen import compiler

__all__ = ["cpu_serves", "why_unavailable"]


@constant_when_compiled
def why_unavailable(backend: str) -> str | None:
    """Why the backend "cpu" or "triton" cannot run here; None where it can, and for others."""
    if backend == "cpu":
        return compiler.why_unavailable()
    if backend == "triton" and find_spec("triton") is None:
        return "triton is not installed: pip install 'eqtp[triton]'"
    return None


def cpu_serves(*tensors: Tensor) -> bool:
    """Whether C++ kernels without an operator of their own take these tensors: called as they are.

    Inside of `torch.compile`, `torch.func` and autocast the computation is plain torch.
    """
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(t.dtype == first.dtype and t.device == first.device for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and why_unavailable("cpu") is None
    )
