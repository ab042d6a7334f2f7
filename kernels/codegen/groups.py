"""How work is shared out among kernels that may only take on so much."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["balanced"]

Group = TypeVar("Group")


def balanced(fill: Callable[[float], list[Group]]) -> list[Group]:
    """As few groups as the limits allow, of similar size.

    Args:
        fill: Makes groups, filled one after the other up to a share of the limits.
    """
    fewest = fill(1.0)
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        groups = fill(share)
        if len(groups) == len(fewest):
            return groups
    return fewest
