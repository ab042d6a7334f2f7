"""Presets of `eqtp train`, one YAML file each."""
