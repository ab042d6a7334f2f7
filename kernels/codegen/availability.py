"""Whether generated kernels can run in this process, for `eqtp.backend.resolve`."""

from __future__ import annotations

from importlib.util import find_spec

from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen import compiler

__all__ = ["why_unavailable"]


@constant_when_compiled
def why_unavailable(backend: str) -> str | None:
    """Why the backend "cpu" or "triton" cannot run here; None where it can, and for others."""
    if backend == "cpu":
        return compiler.why_unavailable()
    if backend == "triton" and find_spec("triton") is None:
        return "triton is not installed: pip install 'eqtp[triton]'"
    return None
