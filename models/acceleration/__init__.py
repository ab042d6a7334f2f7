"""Faster computations inside models of mace-torch and e3nn, in place and checked."""

from __future__ import annotations

from eqtp.models.acceleration.accelerate import accelerate, accelerated, restore
from eqtp.models.acceleration.report import Report

__all__ = ["Report", "accelerate", "accelerated", "restore"]
