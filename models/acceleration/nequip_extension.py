"""Loaded by NequIP when it is imported (entry point group `nequip.extension`): adds `enable_eqtp`.

Versions of NequIP without model modifiers are left as they are.
"""

from __future__ import annotations

import contextlib

from eqtp.models.acceleration.nequip import register

with contextlib.suppress(ModuleNotFoundError, AttributeError):
    register()
