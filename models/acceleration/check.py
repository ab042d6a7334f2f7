"""Comparison of swapped modules and whole models with the originals."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.models.acceleration.swap import Swap, swaps_in

__all__ = ["TOLERANCES", "check_models", "check_modules"]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest accepted difference, relative to the largest value, by the dtype of the computation. Two
orders of summation differ by 1e-13 in float64; in float32 by 1e-6, and by 1e-5 where large terms
cancel (the stress of 89 elements with pair repulsion, where mace-torch's own is 1.2e-5 from float64
and the accelerated one 1.0e-5). A wrong sign or factor of one path changes results by 1e-2 or
more."""

ROUNDED_CONSTANTS = 1e-5
"""The same in float64 for a model that was made in float32: its constants are right to 1e-7."""

Observe = Callable[[nn.Module], "list[dict[str, Tensor]] | None"]
"""Energies, forces and stress of random structures; None for models that it does not know."""


def check_modules(model: nn.Module) -> dict[str, float]:
    """Values and gradients of every swap against its module's own, in float64.

    Returns:
        The largest relative difference of every module.

    Raises:
        ValueError: A module differs; it is named.
    """
    return {name: _check_module(name, swap) for name, swap in swaps_in(model)}


def _check_module(name: str, swap: Swap) -> float:
    tolerance = _tolerance(swap.module)
    swap = deepcopy(swap)
    swap.module.double()
    with _default_dtype(torch.float64), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        found = _values_and_gradients(swap, swap.compared)
        torch.manual_seed(0)
        expected = _values_and_gradients(swap, swap.definition)
    difference = max(_relative(a, b) for a, b in zip(found, expected, strict=True))
    if not difference < tolerance:
        raise ValueError(
            f"module '{name}' ({swap.kind}) must give the numbers of "
            f"{type(swap.module).__qualname__} to {tolerance:g}, got a relative difference of "
            f"{difference:.1e}; the model is as it was, please report its configuration"
        )
    return difference


def _values_and_gradients(swap: Swap, function: Callable[..., Tensor]) -> list[Tensor]:
    device = next((t.device for t in (*swap.module.parameters(), *swap.module.buffers())), None)
    arguments = [
        argument.to(device) if isinstance(argument, Tensor) else argument
        for argument in swap.arguments()
    ]
    operands = [arguments[0].requires_grad_(), *swap.module.parameters()]
    out = function(*arguments)
    wanted = [operand for operand in operands if operand.requires_grad]
    slope = torch.linspace(0.5, 1.5, out.numel(), device=out.device).view_as(out)
    loss = (slope * out.square()).sum()  # harmonics have a constant sum of squares
    gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
    return [out.detach(), *gradients]


def check_models(model: nn.Module, observers: Sequence[Observe]) -> dict[str, float]:
    """Energies, forces and stress with the swaps and without, in float64 and the model's dtype.

    Args:
        model: The accelerated model.
        observers: Of every library; the first that knows the model is asked.

    Returns:
        The largest relative difference of every quantity and dtype; empty where the model's input
        is not known.

    Raises:
        ValueError: They differ; the module that is to blame is named.
    """
    copy = deepcopy(model).eval()
    found: dict[str, float] = {}

    def observe(model: nn.Module) -> list[dict[str, Tensor]]:
        return next((seen for o in observers if (seen := o(model)) is not None), [])

    own = _dtype(model)
    for dtype in dict.fromkeys((own, torch.float64)):
        if dtype not in TOLERANCES:
            continue
        tolerance = max(TOLERANCES[dtype], _tolerance(model))
        copy.to(dtype)
        differences = _differences(copy, observe, dtype)
        for key, value in differences.items():
            found[f"{key} {str(dtype).removeprefix('torch.')}"] = value
        if any(not value < tolerance for value in differences.values()):
            culprit = _culprit(copy, observe, dtype)
            worst = max(differences, key=differences.__getitem__)
            raise ValueError(
                f"{worst} of the accelerated model must equal the original's to {tolerance:g}, "
                f"got a relative difference of {differences[worst]:.1e} from module '{culprit}'; "
                "the model is as it was, please report its configuration"
            )
    return found


def _differences(
    model: nn.Module, observe: Callable[[nn.Module], list[dict[str, Tensor]]], dtype: torch.dtype
) -> dict[str, float]:
    """Differences of a model with its swaps to itself without them."""
    swaps = [swap for _, swap in swaps_in(model)]
    with _default_dtype(dtype), torch.enable_grad():
        found = observe(model)
        with _removed(swaps):
            expected = observe(model)
    result: dict[str, float] = {}
    for mine, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            result[key] = max(result.get(key, 0.0), _relative(mine[key], value))
    return result


def _culprit(
    model: nn.Module, observe: Callable[[nn.Module], list[dict[str, Tensor]]], dtype: torch.dtype
) -> str:
    """The module whose swap alone makes the largest difference."""
    names = dict(swaps_in(model))
    blame = {}
    for name in names:
        others = [swap for other, swap in names.items() if other != name]
        with _removed(others):
            blame[name] = max(_differences(model, observe, dtype).values(), default=0.0)
    return max(blame, key=blame.__getitem__)


@contextlib.contextmanager
def _removed(swaps: list[Swap]) -> Iterator[None]:
    for swap in swaps:
        swap.remove()
    try:
        yield
    finally:
        for swap in swaps:
            swap.install()


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _relative(value: Any, reference: Tensor) -> float:
    if reference.numel() == 0:
        return 0.0
    scale = max(float(reference.abs().max()), 1e-6)  # forces of atoms without neighbours are zero
    difference = float((value - reference).abs().max()) / scale
    return difference if difference == difference else float("inf")


def _dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters, the default where it has none."""
    tensors = (*module.parameters(), *module.buffers())
    found = (tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.numel())
    return next(found, torch.get_default_dtype())


def _tolerance(module: nn.Module) -> float:
    """What the module's stored constants allow."""
    return TOLERANCES[torch.float64] if _dtype(module) == torch.float64 else ROUNDED_CONSTANTS
