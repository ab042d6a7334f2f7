"""What was swapped in a model and what was not, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """What `eqtp.accelerate` has done; prints as a table.

    Attributes:
        swapped: What each swapped module computes, by the module's name.
        left: Why a module of a known library was left as it was, by the module's name.
        modules: Largest relative difference of each module's values and gradients to its own, in
            float64; empty without check.
        differences: Largest relative differences of energies, forces and stress by dtype; empty
            without check, and for models whose input is not known.
    """

    swapped: dict[str, str]
    left: dict[str, str]
    modules: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max((len(name) for name in (*self.swapped, *self.left)), default=0)
        lines = [f"swapped: {len(self.swapped)}, left as they were: {len(self.left)}"]
        for name, kind in self.swapped.items():
            difference = f"  {self.modules[name]:.1e}" if name in self.modules else ""
            lines.append(f"  {name:{width}}  {kind:24}{difference}".rstrip())
        lines += [f"  {name:{width}}  left: {reason}" for name, reason in self.left.items()]
        if self.differences:
            lines.append("relative differences of random structures:")
            lines += [f"  {name:20}{value:.1e}" for name, value in self.differences.items()]
        return "\n".join(lines)
