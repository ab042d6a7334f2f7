"""Whose code is measured beside eqtp's: what is installed, and in which version."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

__all__ = ["PROVIDERS", "Provider", "require", "versions"]


@dataclass(frozen=True)
class Provider:
    """A package that the benchmarks know.

    Attributes:
        module: Name to import.
        distribution: Name to install.
        device: The device that it needs; None: any.
    """

    module: str
    distribution: str
    device: str | None = None

    def why_absent(self) -> str | None:
        """Why it cannot be used here; None where it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.distribution} is not installed"
        if self.device == "cuda" and not torch.cuda.is_available():
            return f"{self.distribution} needs a CUDA device"
        return None


PROVIDERS = {
    "e3nn": Provider("e3nn", "e3nn"),
    "cuequivariance": Provider("cuequivariance_torch", "cuequivariance-torch"),
    "openequivariance": Provider("openequivariance", "openequivariance", "cuda"),
    "mace-torch": Provider("mace", "mace-torch"),
    "torchmd-net": Provider("torchmdnet", "torchmd-net"),
}
"""By the name that reports use."""


def require(name: str, module: str = "") -> Any:
    """Imports a provider's module.

    Raises:
        NotImplementedError: It cannot be used here; the message says why.
    """
    provider = PROVIDERS[name]
    reason = provider.why_absent()
    if reason is not None:
        raise NotImplementedError(reason)
    return importlib.import_module(module or provider.module)


def versions() -> dict[str, str]:
    """The version of each provider, or why it is absent."""
    found = {}
    for name, provider in PROVIDERS.items():
        reason = provider.why_absent()
        if reason is None:
            try:
                reason = metadata.version(provider.distribution)
            except metadata.PackageNotFoundError:
                reason = "installed, version unknown"
            if (
                name == "cuequivariance"
                and importlib.util.find_spec("cuequivariance_ops_torch") is None
            ):
                reason += " without its kernels (cuequivariance-ops): its plain torch path"
        found[name] = reason
    return found
