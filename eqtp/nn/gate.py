"""Gated nonlinearity: scalars are activated, other features are multiplied by activated gates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.irreps import Irrep, Irreps
from eqtp.layout import Layout, check_layout
from eqtp.problem import parse_irreps

from .activation import NormalizedActivation
from .standard_products import cut_to_common_blocks

__all__ = ["Gate"]

Activation = Callable[[Tensor], Tensor]


class Gate(nn.Module):
    """Gated nonlinearity, as `e3nn.nn.Gate`.

        out = (phi_i(scalar_i)) + (phi_j(gate_j) * gated_j)        + : direct sum

    Activations are scaled to unit second moment with e3nn's constants. `irreps_in` are the three
    inputs' irreps, sorted and simplified together; a Linear before the gate produces them.

    Args:
        irreps_scalars: Scalars that become scalars.
        act_scalars: One activation (or None) per block of irreps_scalars.
        irreps_gates: Scalars that become gates, one per channel of irreps_gated.
        act_gates: One activation (or None) per block of irreps_gates.
        irreps_gated: What the gates multiply.
        layout: Memory order of the input and the result.

    Raises:
        ValueError: Scalars are not scalars, numbers do not match, or an activation of odd scalars
            is neither even nor odd.

    Example:
        >>> gate = Gate("16x0o", [torch.tanh], "32x0o", [torch.tanh], "16x1e+16x1o")
        >>> str(gate.irreps_in), str(gate.irreps_out)
        ('48x0o+16x1o+16x1e', '16x0o+16x1o+16x1e')
    """

    def __init__(
        self,
        irreps_scalars: Irreps | str,
        act_scalars: Sequence[Activation | None],
        irreps_gates: Irreps | str,
        act_gates: Sequence[Activation | None],
        irreps_gated: Irreps | str,
        *,
        layout: Layout = "mul_ir",
    ) -> None:
        super().__init__()
        check_layout(layout)
        scalars, gates, gated = map(parse_irreps, (irreps_scalars, irreps_gates, irreps_gated))
        _check_scalars("irreps_scalars", scalars, act_scalars)
        _check_scalars("irreps_gates", gates, act_gates)
        if gates.num_irreps != gated.num_irreps:
            raise ValueError(
                "irreps_gates must have one scalar per channel of irreps_gated "
                f"('{gated}': {gated.num_irreps}), got '{gates}': {gates.num_irreps}"
            )
        self.layout: Layout = layout
        self.irreps_scalars, self.irreps_gates, self.irreps_gated = scalars, gates, gated
        self.acts_scalars = nn.ModuleList(map(_normalize, act_scalars))
        self.acts_gates = nn.ModuleList(map(_normalize, act_gates))
        scalars_out = _activated(scalars, self.acts_scalars)
        gates_out = _activated(gates, self.acts_gates)

        self.irreps_in, starts = _sort_inputs(scalars, gates, gated)
        self._scalar_columns = _block_columns(scalars, starts[0])
        self._gate_columns = _block_columns(gates, starts[1])
        self._gated_blocks, gated_out = _gated_blocks(gated, gates_out, starts[2], self.irreps_in)
        self.irreps_out = scalars_out + gated_out
        self._dims: tuple[int, int] = self.irreps_in.dim, self.irreps_out.dim
        self._starts, self._sizes = _partition(
            [(c.start, c.stop - c.start) for c in self._scalar_columns + self._gate_columns]
            + [(block.start, block.dim * block.block_mul) for block in self._gated_blocks]
        )

    def forward(self, x: Float[Tensor, "*rows dim_in"]) -> Float[Tensor, "*rows dim_out"]:
        """The gated features.

        Raises:
            ValueError: x has not `irreps_in.dim` columns.
        """
        dim_in, dim_out = self._dims
        if x.shape[-1:] != (dim_in,):
            raise ValueError(
                f"x must have {dim_in} columns (irreps_in='{self.irreps_in}'), "
                f"got shape {tuple(x.shape)}"
            )
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        parts = dict(zip(self._starts, rows.split(self._sizes, dim=1), strict=True))
        pieces = _activate(parts, self._scalar_columns, self.acts_scalars)
        if self._gated_blocks:
            gates = torch.cat(_activate(parts, self._gate_columns, self.acts_gates), dim=1)
            pieces += [
                self._multiply(parts[block.start], gates, block) for block in self._gated_blocks
            ]
        return torch.cat([*pieces, rows[:, :0]], dim=1).reshape(*x.shape[:-1], dim_out)

    def _multiply(self, x: Tensor, gates: Tensor, block: _GatedBlock) -> Tensor:
        """Some channels of one gated block times their gates."""
        gate = gates.narrow(1, block.gate, block.mul)
        if self.layout == "ir_mul":
            channels = x.view(x.shape[0], block.dim, block.block_mul)
            return (channels.narrow(2, block.channel, block.mul) * gate.unsqueeze(1)).flatten(1)
        channels = x.view(x.shape[0], block.block_mul, block.dim)
        return (channels.narrow(1, block.channel, block.mul) * gate.unsqueeze(2)).flatten(1)

    def __repr__(self) -> str:
        return f"Gate({self.irreps_in} -> {self.irreps_out})"


@dataclass(frozen=True)
class _GatedBlock:
    """Channels [channel, channel + mul) of one input block and the gates that multiply them."""

    start: int  # first column of the input block
    block_mul: int
    dim: int
    channel: int
    mul: int
    gate: int


def _normalize(activation: Activation | None) -> nn.Module:
    return nn.Identity() if activation is None else NormalizedActivation(activation)


def _activate(
    parts: dict[int, Tensor], columns: list[slice], activations: nn.ModuleList
) -> list[Tensor]:
    return [
        activation(parts[block.start])
        for block, activation in zip(columns, activations, strict=True)
        if block.stop > block.start
    ]


def _partition(parts: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Starts and sizes of the columns that are used together, in the order of the columns."""
    sizes = {start: size for start, size in sorted(parts) if size > 0}
    return list(sizes), list(sizes.values())


def _activated(irreps: Irreps, activations: nn.ModuleList) -> Irreps:
    """Irreps of activated scalars: odd ones take the parity of the activation."""
    blocks = []
    for (mul, ir), activation in zip(irreps, activations, strict=True):
        blocks.append((mul, ir))
        if ir.p == 1 or isinstance(activation, nn.Identity):
            continue
        points = torch.linspace(0, 10, 256, dtype=torch.float64)
        right, left = activation(points), activation(-points)
        even, odd = ((right - s * left).abs().max() < 1e-5 for s in (1, -1))
        if not (even or odd):
            raise ValueError(
                f"the activation of the odd scalars {mul}x{ir} must be even or odd, "
                "else parity is violated; use e.g. torch.tanh or torch.abs"
            )
        blocks[-1] = (mul, Irrep(0, 1 if even else -1))
    return Irreps(blocks)


def _check_scalars(name: str, irreps: Irreps, acts: Sequence[Activation | None]) -> None:
    if any(ir.l > 0 for _, ir in irreps):
        raise ValueError(f"{name} must be scalars (l = 0), got '{irreps}'")
    if len(acts) != len(irreps):
        raise ValueError(
            f"{name}='{irreps}' needs one activation or None per block ({len(irreps)}), "
            f"got {len(acts)}"
        )


def _sort_inputs(*parts: Irreps) -> tuple[Irreps, list[list[int]]]:
    """The common input's irreps, and the first column of each part's simplified blocks."""
    simplified = [part.simplify() for part in parts]
    joined = Irreps([block for part in simplified for block in part])
    order = joined.sort()
    slices = order.irreps.slices()
    positions = iter(order.p)
    starts = [[slices[next(positions)].start for _ in part] for part in simplified]
    return order.irreps.simplify(), starts


def _block_columns(scalars: Irreps, starts: list[int]) -> list[slice]:
    """Columns of every block of scalars, given where the simplified blocks start."""
    columns: list[slice] = []
    remaining = [(start, mul) for start, (mul, _) in zip(starts, scalars.simplify(), strict=True)]
    for mul, _ in scalars:
        if mul == 0:
            columns.append(slice(0, 0))
            continue
        start, left = remaining[0]
        columns.append(slice(start, start + mul))
        remaining[0] = (start + mul, left - mul)
        if left == mul:
            remaining.pop(0)
    return columns


def _gated_blocks(
    gated: Irreps, gates: Irreps, starts: list[int], irreps_in: Irreps
) -> tuple[list[_GatedBlock], Irreps]:
    """The products of gated channels and gates, cut where either's blocks end, as in e3nn."""
    simplified = gated.simplify()
    cut_gated, cut_gates = cut_to_common_blocks(simplified, gates.simplify())
    blocks: list[_GatedBlock] = []
    out = []
    index = used = gate = 0
    for (mul, ir), (_, ir_gate) in zip(cut_gated, cut_gates, strict=True):
        start = starts[index] + used * ir.dim
        block_mul, channel = mul, 0
        if ir.dim > 1:  # channels may be strided in their block of irreps_in: keep it whole
            column = start
            start, block_mul = next(
                (columns.start, block.mul)
                for block, columns in zip(irreps_in, irreps_in.slices(), strict=True)
                if columns.start <= column < columns.stop
            )
            channel = (column - start) // ir.dim
        blocks.append(_GatedBlock(start, block_mul, ir.dim, channel, mul, gate))
        out.append((mul, Irrep(ir.l, ir.p * ir_gate.p)))
        gate += mul
        used += mul
        if used == simplified[index].mul:
            index, used = index + 1, 0
    return blocks, Irreps(out)
