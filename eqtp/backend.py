"""Which implementation runs a product, convolution or contraction: decided here.

    triton     Triton kernels, for tensors on a GPU
    cpu        generated C++, for tensors on a CPU
    torch      plain PyTorch in cache-sized chunks, any device
    reference  the definition: readable, any device, float64-able, slow

`"auto"` takes the first of this list that the operation has for the device. An explicit backend
that cannot serve raises. Spherical harmonics, linear maps, radial networks, norms and gates take no
backend: C++ where it can run, else plain torch (harmonics on a GPU: Triton).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Backend", "Resolution", "check_backend", "resolve"]

Backend = Literal["auto", "triton", "cpu", "torch", "reference"]

_DEVICES: dict[str, tuple[str, ...]] = {"triton": ("cuda",), "cpu": ("cpu",)}


@dataclass(frozen=True)
class Resolution:
    """The backend that was chosen, and why."""

    backend: Backend
    reason: str


def check_backend(backend: str) -> None:
    """Refuses names that are no backend's.

    Raises:
        ValueError: `backend` is not one of `Backend`.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")


def resolve(
    requested: Backend,
    *,
    family: str,
    implemented: Collection[str],
    device: str = "cpu",
    why_not: Callable[[str], str | None] = lambda backend: None,
) -> Resolution:
    """Chooses the backend of an operation.

    Args:
        requested: What the caller asked for.
        family: Name of the kernel family, for the messages.
        implemented: The backends that the family has.
        device: Device type of the operands, e.g. "cpu" or "cuda".
        why_not: Tells of a backend's name why it cannot run this call, None where it can.

    Raises:
        ValueError: `requested` is not a backend's name.
        NotImplementedError: The backend was asked for by name and cannot serve here.

    Example:
        >>> resolve("auto", family="channelwise", implemented=("torch", "reference")).backend
        'torch'
    """
    check_backend(requested)
    remedy = f"use backend='auto' or one of {sorted(implemented)}"
    if requested != "auto":
        if requested not in implemented:
            raise NotImplementedError(
                f"backend {requested!r} has no kernel for {family!r} in this version; {remedy}"
            )
        if not _serves(requested, device):
            raise NotImplementedError(
                f"backend {requested!r} runs on {' or '.join(_DEVICES[requested])} tensors, "
                f"got tensors on {device!r}; {remedy}"
            )
        obstacle = why_not(requested)
        if obstacle is not None:
            raise NotImplementedError(
                f"backend {requested!r} cannot run {family!r} here: {obstacle}; {remedy}"
            )
        return Resolution(requested, "asked for by name")
    skipped = []
    for name in (name for name in get_args(Backend) if name != "auto" and _serves(name, device)):
        obstacle = "no kernel for this family in this version"
        if name in implemented:
            obstacle = why_not(name)
            if obstacle is None:
                break
        skipped.append(f"{name}: {obstacle}")
    reason = f"the fastest that {family!r} has on {device!r}"
    if skipped:
        reason += f" ({'; '.join(skipped)})"
    return Resolution(name, reason)


def _serves(backend: str, device: str) -> bool:
    return device in _DEVICES.get(backend, (device,))
