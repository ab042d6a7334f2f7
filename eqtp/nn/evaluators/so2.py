"""Products with edge vectors, in frames where the edge points along +y."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.compiling import constant_when_compiled
from eqtp.graph import Graph
from eqtp.kernels.so2 import FrameLayout, rotate_from_edge, rotate_to_edge, so2_convolution
from eqtp.kernels.so2 import op as so2
from eqtp.kernels.so2.weights import Pair, block_pairs, from_path_weights
from eqtp.layout import Layout
from eqtp.methods import Method, get_method
from eqtp.nn.explanation import Explanation
from eqtp.operands import check_alike
from eqtp.problem import TensorProductProblem

from .cg import path_weights

__all__ = ["SO2"]


@dataclass(frozen=True)
class SO2:
    """`method="so2"`; see `Evaluator` for the attributes and methods.

    x2 is an edge vector [rows, 3]. The result is that of "cg" with, for every block of irreps_in2,
    the component-normalised harmonics of the vector's direction. Only of a zero vector, which has
    no direction, the results differ: here degree 0 passes to degree 0 and nothing else.
    """

    problem: TensorProductProblem
    backend: Backend
    layout: Layout
    _frames: tuple[FrameLayout, FrameLayout] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        modes = {path.mode for path in self.problem.paths}
        if not modes <= {"uvw"} and not modes <= {"uvu"}:
            raise ValueError(
                f"method='so2' takes paths that are all 'uvw' or all 'uvu', got {sorted(modes)}; "
                "use method='cg' with the harmonics of the vectors"
            )
        m_max = self._m_max
        block_pairs(self.problem, m_max)
        ends = self.problem.irreps_in1, self.problem.irreps_out
        frames = FrameLayout(ends[0], m_max), FrameLayout(ends[1], m_max)
        object.__setattr__(self, "_frames", frames)

    @property
    def method(self) -> Method:
        return get_method("so2")

    @property
    def dim2(self) -> int:
        return 3

    @property
    def weight_numel(self) -> int:
        return self.problem.weight_numel

    @property
    def _m_max(self) -> int:
        degrees = [self.problem.degrees(path) for path in self.problem.paths]
        return max((min(l1, l3) for l1, _, l3 in degrees), default=0)

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        *,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        if radial is not None:
            weight = radial[0] @ radial[1]
        self._check(x2, weight, graph)
        frame_in, frame_out = self._frames
        if weight is not None and weight.ndim == 1 and self._mixes:
            return so2_convolution(
                x1,
                x2,
                from_path_weights(self.problem, weight, frame_in.m_max),
                frame_in,
                frame_out,
                graph=graph,
                layout=self.layout,
                backend=self.backend,
            )
        m_max = frame_in.m_max
        y = rotate_to_edge(
            x1,
            x2,
            frame_in.irreps,
            m_max=m_max,
            graph=graph,
            layout=self.layout,
            backend=self.backend,
        )
        return rotate_from_edge(
            self._per_edge(y, weight),
            x2,
            frame_out.irreps,
            m_max=m_max,
            graph=graph,
            layout=self.layout,
            backend=self.backend,
        )

    @property
    def _mixes(self) -> bool:
        return any(path.mode == "uvw" for path in self.problem.paths)

    def _check(self, x2: Tensor, weight: Tensor | None, graph: Graph | None) -> None:
        """The weights; the rest is checked by the rotations."""
        if weight is None:
            if self.weight_numel > 0:
                raise ValueError(
                    f"weight must be given: the product has {self.weight_numel} weights; pass "
                    f"[{self.weight_numel}] or [{len(x2)}, {self.weight_numel}]"
                )
            return
        check_alike(x2=x2, weight=weight)
        rows = len(x2) if graph is None else graph.num_edges
        if weight.shape not in ((self.weight_numel,), (rows, self.weight_numel)):
            raise ValueError(
                f"weight must have shape ({self.weight_numel},) or ({rows}, {self.weight_numel}), "
                f"got {tuple(weight.shape)}"
            )

    def _per_edge(self, y: Tensor, weight: Tensor | None) -> Tensor:
        """The product in the frames, pair by pair of blocks."""
        frame_in, frame_out = self._frames
        sums: dict[tuple[int, int], Tensor] = {}  # by block of the result and order
        starts = {(index, m): start for index, m, start, _ in _columns(frame_in)}
        for pair in block_pairs(self.problem, frame_in.m_max):
            columns = [starts[pair.i_in, m] for m in range(-pair.m_max, pair.m_max + 1)]
            rows = torch.stack([y[:, start : start + pair.mul_in] for start in columns], 1)
            product = self._pair_product(rows, weight, pair)
            for m, value in zip(range(-pair.m_max, pair.m_max + 1), product.unbind(1), strict=True):
                before = sums.get((pair.i_out, m))
                sums[pair.i_out, m] = value if before is None else before + value
        parts = []
        for index, m, _, mul in _columns(frame_out):
            found = sums.get((index, m))
            parts.append(y.new_zeros(len(y), mul) if found is None else found)
        return torch.cat(parts, 1)

    def _pair_product(self, rows: Tensor, weight: Tensor | None, pair: Pair) -> Tensor:
        """A_|m| y_m -+ B_|m| y_-m for the orders m of a pair, [E, 2 m_max + 1, mul_out]."""
        native = pair.to_native.to(rows)
        top = pair.m_max
        none, b = torch.zeros_like(native[:, :1]), native[:, :top]
        b = torch.cat([b, none, -b.flip(1)], 1)
        a = torch.cat([native[:, top + 1 :].flip(1), native[:, top:]], 1)
        weights = [
            weight[..., start : start + math.prod(shape)].unflatten(-1, shape)
            if weight is not None and shape
            else rows.new_ones(rows.shape[-1], 1)
            for start, shape in pair.weights
        ]
        stacked = torch.stack(torch.broadcast_tensors(*weights))  # [paths, (E,) u, 1(, w)]
        letters = "uvw" if self._mixes else "uv"
        a, b = (torch.einsum(f"pm,p...{letters}->...m{letters}", t, stacked) for t in (a, b))
        if not self._mixes:
            return a.squeeze(-1) * rows + b.squeeze(-1) * rows.flip(1)
        return torch.einsum("emu,emuvw->emw", rows, a) + torch.einsum(
            "emu,emuvw->emw", rows.flip(1), b
        )

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        return weight

    def prune(self, keep: Sequence[int]) -> SO2:
        return SO2(self.problem.prune(keep), self.backend, self.layout)

    def prune_weight(self, weight: Tensor, keep: Sequence[int]) -> Tensor:
        return path_weights(self.problem, weight, keep)

    def family(self, device: str) -> str:
        return "so2"

    def explain(self, title: str, like: Tensor | None) -> str:
        explanation = Explanation.of(self, title, like)
        frame_in, _ = self._frames
        chosen = explanation.resolve(
            "so2", so2.IMPLEMENTED, lambda name: so2.why_not(name, frame_in, explanation.dtype)
        )
        return explanation.text(
            "  kernel    so2: rotations from edge vectors, never stored; matrix products by order",
            f"  backend   {chosen.backend}: {chosen.reason}",
            f"  paths     {len(self.problem.paths)}, orders up to {frame_in.m_max}",
            f"  flops     {self._flops():,} per row, forward, without the rotations",
        )

    def _flops(self) -> int:
        total = 0
        for pair in block_pairs(self.problem, self._m_max):
            products = pair.mul_in * (pair.mul_out if self._mixes else 1)
            total += 2 * products * (1 + 4 * pair.m_max)
        return total


@constant_when_compiled
def _columns(frame: FrameLayout) -> tuple[tuple[int, int, int, int], ...]:
    """The frame's columns in their order: block of the irreps, order, first column, channels."""
    columns = []
    start = 0
    for m in range(frame.m_max + 1):
        for signed in (m, -m) if m else (0,):
            for index, (mul, ir) in enumerate(frame.irreps):
                if ir.l >= m:
                    columns.append((index, signed, start, int(mul)))
                    start += int(mul)
    return tuple(columns)
