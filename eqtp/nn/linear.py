"""Equivariant linear map: channels of equal irreps mix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.compiling import constant_when_compiled
from eqtp.irreps import Irrep, Irreps
from eqtp.kernels.linear import LinearProblem, linear, serves
from eqtp.layout import Layout, check_layout
from eqtp.operands import check_alike
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
        self._problem = LinearProblem.from_irreps(self.irreps_in, self.irreps_out)
        self._runs = _runs(self.irreps_in)
        self._blocks, self._segments = _output_blocks(self._runs, self.irreps_out)
        scalars = [mul for mul, ir in self.irreps_out if ir.is_scalar()] if biases else []
        self.bias_numel = sum(scalars)
        self._columns = [(mul * ir.dim, ir.is_scalar()) for mul, ir in self.irreps_out]
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
            TypeError: x and the weights differ in dtype or device.
        """
        weight = self.weight if weight is None else weight
        if x.shape[-1:] != (self._problem.dim_in,):
            raise ValueError(
                f"x must have {self._problem.dim_in} columns (irreps_in='{self.irreps_in}'), "
                f"got shape {tuple(x.shape)}"
            )
        if weight is None or weight.shape != (self.weight_numel,):
            got = "None" if weight is None else f"shape {tuple(weight.shape)}"
            raise ValueError(f"weight must have shape [{self.weight_numel}], got {got}")
        check_alike(x=x, weight=weight)
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        if self.layout == "ir_mul" and serves(rows, weight):
            out = linear(rows, weight, self._problem)
        else:
            out = self._matrix_products(rows, weight)
        if self.bias is not None:
            out = out + self._bias_columns(self.bias)
        return out.reshape(*x.shape[:-1], self._problem.dim_out)

    def prune(self, keep: Sequence[int]) -> Linear:
        """The map of only the blocks `keep` of x; equals this one with the others' weights zero.

        Args:
            keep: Indices of the blocks of irreps_in that stay, ascending.

        Returns:
            A map that reads only these blocks. Its own weights, if this one has any, are
            `prune_weight` of them.
        """
        pruned = Linear(
            Irreps([self.irreps_in[block] for block in keep]),
            self.irreps_out,
            internal_weights=self.internal_weights,
            biases=self.bias is not None,
            layout=self.layout,
        )
        if self.weight is not None:
            pruned.weight = nn.Parameter(self.prune_weight(self.weight, keep).detach().clone())
        if self.bias is not None:
            pruned.bias = nn.Parameter(self.bias.detach().clone())
        return pruned

    def prune_weight(
        self, weight: Float[Tensor, " weight_numel"], keep: Sequence[int]
    ) -> Float[Tensor, " pruned_numel"]:
        """The weights of `prune(keep)`: those of the blocks, for the fewer channels summed over."""
        blocks = list(self.irreps_in)
        parts = weight.split([mul * self._channels_fed[ir] for mul, ir in blocks])
        everything: Counter[Irrep] = Counter()
        kept: Counter[Irrep] = Counter()
        for mul, ir in blocks:
            everything[ir] += mul
        for block in keep:
            kept[blocks[block].ir] += blocks[block].mul
        scales = {ir: (count / everything[ir]) ** 0.5 for ir, count in kept.items()}
        return torch.cat([*(parts[b] * scales[blocks[b].ir] for b in keep), weight[:0]])

    @cached_property
    def _channels_fed(self) -> dict[Irrep, int]:
        """Channels of the result of each irrep of x."""
        return {
            irrep: sum(mul for mul, ir in self.irreps_out if ir == irrep)
            for irrep in {ir for _, ir in self.irreps_in}
        }

    def _matrix_products(self, x: Tensor, weight: Tensor) -> Tensor:
        """The map as one matrix product per irrep in plain torch."""
        channels = self._channels(x)
        matrices = weight.split(self._segments)
        pieces = [self._output(x, channels, matrices, block) for block in self._blocks]
        return pieces[0] if len(pieces) == 1 else torch.cat([*pieces, x[:, :0]], dim=1)

    def _channels(self, x: Tensor) -> list[Tensor]:
        """The channels of every run as rows of a matrix product, [rows * dim, channels].

        One split, not a slice per run: the gradient of a slice is as large as x.
        """
        channels = []
        columns = x.split([run.channels * run.dim for run in self._runs], dim=1)
        for run, part in zip(self._runs, columns, strict=True):
            if self.layout == "ir_mul":
                blocks = part.view(x.shape[0], run.count, run.dim, run.mul).transpose(1, 2)
            else:
                blocks = part.view(x.shape[0], run.count, run.mul, run.dim).permute(0, 3, 1, 2)
            channels.append(blocks.reshape(x.shape[0] * run.dim, run.channels))
        return channels

    def _output(
        self, x: Tensor, channels: list[Tensor], weights: Sequence[Tensor], block: _OutputBlock
    ) -> Tensor:
        """One block of the result, flat: one matrix product over all channels that feed it."""
        if not block.sources:
            return x.new_zeros(x.shape[0], block.dim * block.mul)
        inputs = _join([channels[source.run] for source in block.sources], 1)
        matrix = _join([weights[i] for source in block.sources for i in source.segments], 0)
        out = inputs @ (matrix.view(inputs.shape[1], block.mul) * block.scale)
        if self.layout == "ir_mul" or block.dim == 1:
            return out.view(x.shape[0], block.dim * block.mul)
        return out.view(x.shape[0], block.dim, block.mul).transpose(1, 2).flatten(1)

    def _bias_columns(self, bias: Tensor) -> Tensor:
        """The bias as a full row of the result."""
        pieces = []
        start = 0
        for columns, is_scalar in self._columns:
            if is_scalar:
                pieces.append(bias[start : start + columns])
                start += columns
            else:
                pieces.append(bias.new_zeros(columns))
        return torch.cat(pieces)

    def __repr__(self) -> str:
        return (
            f"Linear({self.irreps_in} -> {self.irreps_out} | {self.weight_numel} weights"
            f"{f' | {self.bias_numel} biases' if self.bias_numel else ''})"
        )


@dataclass(frozen=True)
class _Run:
    """Neighbouring blocks of x with one irrep and multiplicity."""

    ir: Irrep
    count: int
    mul: int

    @property
    @constant_when_compiled
    def dim(self) -> int:
        return int(self.ir.dim)

    @property
    def channels(self) -> int:
        return self.count * self.mul


@dataclass(frozen=True)
class _Source:
    """A run that feeds a block of the result, and the pieces of the weight for it, in order."""

    run: int
    segments: tuple[int, ...]


@dataclass(frozen=True)
class _OutputBlock:
    """A block of the result and what feeds it."""

    dim: int
    mul: int
    sources: tuple[_Source, ...]
    scale: float


def _runs(irreps: Irreps) -> tuple[_Run, ...]:
    runs: list[_Run] = []
    for mul, ir in irreps:
        if runs and (runs[-1].mul, runs[-1].ir) == (mul, ir):
            runs[-1] = _Run(ir, runs[-1].count + 1, mul)
        else:
            runs.append(_Run(ir, 1, mul))
    return tuple(runs)


def _output_blocks(
    runs: tuple[_Run, ...], irreps_out: Irreps
) -> tuple[tuple[_OutputBlock, ...], list[int]]:
    """The blocks of the result, and the sizes of the pieces that the flat weight is cut into.

    Weights of a run are in the order (block of the run, block of the result): one piece where a
    single block of the result takes them, otherwise one piece for every pair.
    """
    sources: list[list[_Source]] = [[] for _ in irreps_out]
    sizes: list[int] = []
    for index, run in enumerate(runs):
        fed = [i_out for i_out, (_, ir) in enumerate(irreps_out) if ir == run.ir]
        joined = run.count if len(fed) == 1 else 1
        pieces: dict[int, list[int]] = {i_out: [] for i_out in fed}
        for _ in range(run.count // joined):
            for i_out in fed:
                pieces[i_out].append(len(sizes))
                sizes.append(joined * run.mul * irreps_out[i_out].mul)
        for i_out, segments in pieces.items():
            sources[i_out].append(_Source(index, tuple(segments)))
    blocks = []
    for found, (mul, ir) in zip(sources, irreps_out, strict=True):
        fan_in = sum(runs[source.run].channels for source in found)
        blocks.append(_OutputBlock(ir.dim, mul, tuple(found), max(fan_in, 1) ** -0.5))
    return tuple(blocks), sizes


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
