"""Equivariant linear map: channels of equal irreps mix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.layout import Layout, check_layout
from eqtp.problem import parse_irreps

__all__ = ["Linear"]


class Linear(nn.Module):
    """Equivariant linear map, as `e3nn.o3.Linear`.

        out[i_out, w] = sum_{i_in with the same irrep} sum_u x[i_in, u] W[i_in, i_out, u, w]
                        / sqrt(number of channels summed over) + bias

    The flat `weight` holds W in the order of (i_in, i_out), as in e3nn 0.6. All blocks of one
    irrep are one matrix product.

    Args:
        irreps_in: Irreps of x.
        irreps_out: Irreps of the result; blocks without a partner in irreps_in are zero.
        internal_weights: Whether the module owns its weights; otherwise `forward` takes them.
        biases: Adds a bias to the even scalars (0e).
        layout: Memory order of x and the result.

    Example:
        >>> linear = Linear("4x0e+16x1o", "8x0e+8x1o")
        >>> linear.weight_numel, linear(torch.randn(3, 52)).shape
        (160, torch.Size([3, 32]))
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        *,
        internal_weights: bool = True,
        biases: bool = False,
        layout: Layout = "mul_ir",
    ) -> None:
        super().__init__()
        check_layout(layout)
        self.irreps_in = parse_irreps(irreps_in)
        self.irreps_out = parse_irreps(irreps_out)
        self.internal_weights = internal_weights
        self.layout: Layout = layout
        self.weight_numel = sum(
            mul_in * mul_out
            for mul_in, ir_in in self.irreps_in
            for mul_out, ir_out in self.irreps_out
            if ir_in == ir_out
        )
        self._blocks = _output_blocks(self.irreps_in, self.irreps_out)
        scalars = [mul for mul, ir in self.irreps_out if ir.is_scalar()] if biases else []
        self.bias_numel = sum(scalars)
        weight = nn.Parameter(torch.randn(self.weight_numel)) if internal_weights else None
        self.register_parameter("weight", weight)
        bias = nn.Parameter(torch.zeros(self.bias_numel)) if self.bias_numel > 0 else None
        self.register_parameter("bias", bias)

    def forward(
        self,
        x: Float[Tensor, "*rows dim_in"],
        weight: Float[Tensor, " weight_numel"] | None = None,
    ) -> Float[Tensor, "*rows dim_out"]:
        """The linear map.

        Args:
            x: Features.
            weight: Flat weights in place of the module's own.

        Raises:
            ValueError: Columns or weights do not fit, or weights are missing.
        """
        weight = self.weight if weight is None else weight
        if x.shape[-1:] != (self.irreps_in.dim,):
            raise ValueError(
                f"x must have {self.irreps_in.dim} columns (irreps_in='{self.irreps_in}'), "
                f"got shape {tuple(x.shape)}"
            )
        if weight is None or weight.shape != (self.weight_numel,):
            got = "None" if weight is None else f"shape {tuple(weight.shape)}"
            raise ValueError(f"weight must have shape [{self.weight_numel}], got {got}")
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        pieces = [self._output(rows, weight, block) for block in self._blocks]
        out = pieces[0] if len(pieces) == 1 else torch.cat([*pieces, rows[:, :0]], dim=1)
        if self.bias is not None:
            out = out + self._bias_columns(self.bias)
        return out.reshape(*x.shape[:-1], self.irreps_out.dim)

    def _output(self, x: Tensor, weight: Tensor, block: _OutputBlock) -> Tensor:
        """One block of the result, flat: one matrix product over all channels that feed it."""
        if not block.sources:
            return x.new_zeros(x.shape[0], block.dim * block.mul)
        channels = [self._channels(x, source, block.dim) for source in block.sources]
        matrices = [
            weight.narrow(0, source.weight_start, source.channels * block.mul).view(
                source.channels, block.mul
            )
            for source in block.sources
        ]
        out = _join(channels, 1) @ (_join(matrices, 0) * block.scale)
        if self.layout == "ir_mul" or block.dim == 1:
            return out.view(x.shape[0], block.dim * block.mul)
        return out.view(x.shape[0], block.dim, block.mul).transpose(1, 2).flatten(1)

    def _channels(self, x: Tensor, source: _Source, dim: int) -> Tensor:
        """The channels of one source as rows of the matrix product, [rows * dim, channels]."""
        columns = x.narrow(1, source.start, source.channels * dim)
        if self.layout == "ir_mul":
            blocks = columns.view(x.shape[0], source.count, dim, source.mul).transpose(1, 2)
        else:
            blocks = columns.view(x.shape[0], source.count, source.mul, dim).permute(0, 3, 1, 2)
        return blocks.reshape(x.shape[0] * dim, source.channels)

    def _bias_columns(self, bias: Tensor) -> Tensor:
        """The bias as a full row of the result."""
        pieces = []
        start = 0
        for mul, ir in self.irreps_out:
            if ir.is_scalar():
                pieces.append(bias[start : start + mul])
                start += mul
            else:
                pieces.append(bias.new_zeros(mul * ir.dim))
        return torch.cat(pieces)

    def __repr__(self) -> str:
        return (
            f"Linear({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights"
            f"{f' | {self.bias_numel} biases' if self.bias_numel else ''})"
        )


@dataclass(frozen=True)
class _Source:
    """Neighbouring blocks of x with one irrep and multiplicity whose weights follow each other."""

    start: int  # first column of x
    count: int
    mul: int
    weight_start: int

    @property
    def channels(self) -> int:
        return self.count * self.mul


@dataclass(frozen=True)
class _OutputBlock:
    """A block of the result and what feeds it."""

    dim: int
    mul: int
    sources: tuple[_Source, ...]
    scale: float


def _output_blocks(irreps_in: Irreps, irreps_out: Irreps) -> tuple[_OutputBlock, ...]:
    """The blocks of the result, sources joined where columns and weights are contiguous."""
    sources: list[list[_Source]] = [[] for _ in irreps_out]
    weight_start = 0
    for (mul_in, ir_in), columns in zip(irreps_in, irreps_in.slices(), strict=True):
        for found, (mul_out, ir_out) in zip(sources, irreps_out, strict=True):
            if ir_in != ir_out:
                continue
            if mul_in * mul_out > 0:
                _add_source(found, columns.start, mul_in, weight_start, ir_in.dim, mul_out)
            weight_start += mul_in * mul_out
    blocks = []
    for found, (mul, ir) in zip(sources, irreps_out, strict=True):
        fan_in = sum(source.channels for source in found)
        blocks.append(_OutputBlock(ir.dim, mul, tuple(found), max(fan_in, 1) ** -0.5))
    return tuple(blocks)


def _add_source(
    found: list[_Source], start: int, mul: int, weight_start: int, dim: int, mul_out: int
) -> None:
    if found:
        last = found[-1]
        follows = (
            last.mul == mul
            and last.start + last.channels * dim == start
            and last.weight_start + last.channels * mul_out == weight_start
        )
        if follows:
            found[-1] = _Source(last.start, last.count + 1, mul, last.weight_start)
            return
    found.append(_Source(start, 1, mul, weight_start))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
