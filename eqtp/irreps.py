"""The one place where e3nn is imported.

e3nn 0.4.4, which mace-torch pins, loads its constants with a pickled `slice`; torch >= 2.6
refuses that unless `slice` is registered first. Nothing else in eqtp imports e3nn, and no number
of eqtp depends on the installed version: only the `Irreps` classes are used.
"""

from __future__ import annotations

import torch

torch.serialization.add_safe_globals([slice])

from e3nn.o3 import Irrep, Irreps  # noqa: E402  (must follow the registration above)

__all__ = ["Irrep", "Irreps"]
