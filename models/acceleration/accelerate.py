"""`eqtp.accelerate` and its inverse: faster computations inside models of other libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from eqtp.backend import Backend
from eqtp.models.acceleration import e3nn, mace, nequip
from eqtp.models.acceleration.check import check_models, check_modules
from eqtp.models.acceleration.report import Report
from eqtp.models.acceleration.swap import Swap, swaps_in

__all__ = ["accelerate", "accelerated", "restore"]


def accelerate(model: nn.Module, backend: Backend = "auto", check: bool = True) -> Report:
    """Swaps eqtp's kernels into a model of mace-torch, NequIP or e3nn, in place.

    The modules stay the objects they are: parameters, their names, optimizer groups, averages and
    the state dict are untouched, and training goes on. Models that are to be saved whole or turned
    into TorchScript are restored first; a state dict can be saved at any time.

    Args:
        model: A loaded model, e.g. a mace-torch `ScaleShiftMACE`, or any module with products,
            linear maps or spherical harmonics of e3nn inside.
        backend: Which kernels to use, see `eqtp.backend`.
        check: Compare every swapped module with its own computation, and energies, forces and
            stress of random structures where the model is of mace-torch or NequIP.

    Returns:
        What was swapped, what was left and why, and the differences; prints as a table.

    Raises:
        ValueError: Numbers differ; the module is named and the model is as it was.
        TypeError: `model` is not a module.

    Example:
        >>> import torch
        >>> from e3nn import o3
        >>> model = torch.nn.Sequential(o3.Linear("4x0e+4x1o", "8x0e+8x1o"))
        >>> print(accelerate(model, check=False))
        swapped: 1, left as they were: 0
          0  linear map
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    restore(model)
    swaps, left = _plan(model, backend)
    for swap in swaps.values():
        swap.install()
    kinds = {name: swap.kind for name, swap in swaps.items()}
    if not check:
        return Report(kinds, left)
    try:
        modules = check_modules(model)
        differences = check_models(model, (mace.observe, nequip.observe))
    except BaseException:
        restore(model)
        raise
    return Report(kinds, left, modules, differences)


def restore(model: nn.Module) -> nn.Module:
    """Gives a model its own computations back; the very modules, for saving or comparison.

    Args:
        model: An accelerated model, or one that is not.

    Returns:
        The same model.
    """
    for _, swap in list(swaps_in(model)):
        swap.remove()
    return model


@contextlib.contextmanager
def accelerated(
    model: nn.Module, backend: Backend = "auto", check: bool = True
) -> Iterator[nn.Module]:
    """A model that is accelerated inside a `with` block; arguments as for `accelerate`.

    Example:
        >>> import torch
        >>> from e3nn import o3
        >>> model = o3.Linear("4x0e+4x1o", "8x0e+8x1o")
        >>> with accelerated(model):
        ...     model(torch.randn(2, 16)).shape
        torch.Size([2, 32])
    """
    accelerate(model, backend, check)
    try:
        yield model
    finally:
        restore(model)


def _plan(model: nn.Module, backend: Backend) -> tuple[dict[str, Swap], dict[str, str]]:
    """The swaps by module name, and why the other known modules have none."""
    found: dict[str, Swap | str] = {}
    for host in (mace, nequip):
        found.update(host.swaps_for(model, backend))
    claimed = tuple(f"{name}." for name, swap in found.items() if isinstance(swap, Swap))
    for name, module in model.named_modules():
        if name in found or name.startswith(claimed):
            continue
        swap = e3nn.swap_for(module, backend)
        if swap is not None:
            found[name] = swap
    swaps = {name: swap for name, swap in found.items() if isinstance(swap, Swap)}
    return swaps, {name: reason for name, reason in found.items() if isinstance(reason, str)}
