"""Checks of hyperparameters that several models share, made before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_at_least", "check_elements", "check_positive"]


def check_elements(hyperparameters: Mapping[str, Any]) -> None:
    """Refuses lists of elements and energies that do not go together.

    Raises:
        ValueError: An element is listed twice or is none, or the numbers of energies and elements
            differ.
    """
    numbers, energies = hyperparameters["atomic_numbers"], hyperparameters["atomic_energies"]
    if len(numbers) == 0 or len(set(numbers)) != len(numbers) or min(numbers) < 1:
        raise ValueError(
            f"atomic_numbers must list each element once, from 1 (H) on, got {numbers}"
        )
    if len(energies) != len(numbers):
        raise ValueError(
            f"atomic_energies must have one energy per element ({len(numbers)}), "
            f"got {len(energies)}"
        )


def check_at_least(hyperparameters: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    """Refuses values below their limits; None stands for a default and passes.

    Raises:
        ValueError: A value is too small.
    """
    for name, low in limits.items():
        value = hyperparameters[name]
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def check_positive(hyperparameters: Mapping[str, Any], *names: str) -> None:
    """Refuses values that are not positive.

    Raises:
        ValueError: A value is zero, negative or not a number.
    """
    for name in names:
        if not hyperparameters[name] > 0:
            raise ValueError(f"{name} must be positive, got {hyperparameters[name]}")
