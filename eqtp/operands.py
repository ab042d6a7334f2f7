"""What the operands of one call must have in common."""

from __future__ import annotations

from torch import Tensor

from eqtp.operators import is_autocast

__all__ = ["check_alike"]


def check_alike(**operands: Tensor | None) -> None:
    """Refuses operands of another dtype or device than the first; None passes.

    Autocast settles the dtypes of what it reaches by itself; there only devices count.

    Raises:
        TypeError: Two operands differ.

    Example:
        >>> import torch
        >>> check_alike(x=torch.zeros(1), weight=torch.zeros(1))
    """
    given = ((name, operand) for name, operand in operands.items() if operand is not None)
    first, like = next(given)
    for name, operand in given:
        is_elsewhere = operand.device != like.device
        if is_elsewhere or (operand.dtype != like.dtype and not is_autocast(operand)):
            raise TypeError(
                f"{first} and {name} must share dtype and device, got {like.dtype} on "
                f"{like.device} and {operand.dtype} on {operand.device}; convert one with .to()"
            )
