"""The convolution of features with edge directions, reduced from SO(3) to SO(2)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eqtp.backend import Backend, check_backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.so2 import FrameLayout, so2_convolution
from eqtp.kernels.so2.weights import all_paths, from_path_weights, to_path_weights
from eqtp.layout import Layout, check_layout
from eqtp.problem import TensorProductProblem, parse_irreps

__all__ = ["Group", "SO2Convolution"]

Group = Literal["O3", "SO3"]


class SO2Convolution(nn.Module):
    """Equivariant messages from features and edge vectors, mixing channels and degrees.

        message[e] = D(R_e)^T S D(R_e) x[src(e)],    R_e r_e along +y
        S:  out_0 = x_0 A_0,  out_+m = x_+m A_m - x_-m B_m,  out_-m = x_+m B_m + x_-m A_m

    summed at the receivers. The free matrices A_m and B_m, m <= m_max, are all that commutes with
    turns about the edge. With every order they are, by an exact bijection, the weights of all paths
    of the tensor product of x with the component-normalised harmonics of the edges up to twice the
    largest degree (`effective_path_weights`), at the cost of matrix products alone. With fewer
    orders the map is still exactly equivariant. Differentiable to any order in every operand, edges
    along the poles included; a zero vector passes degree 0 only.

    Source: Passaro and Zitnick, "Reducing SO(3) convolutions to SO(2)", ICML 2023, sections 3-4.

    Args:
        irreps_in: Irreps of x.
        irreps_out: Irreps of the messages.
        m_max: Largest order that is kept; by default every order that both sides have.
        group: "O3" respects the parities of the irreps: from one block to another either A_m or
            B_m is zero, B_m between blocks of natural parity 0e, 1o, 2e. "SO3" leaves both free,
            as eSCN does; the result then has no parity.
        internal_weights: Whether the module owns its weights; otherwise `forward` takes them.
        backend: See `eqtp.backend`.
        layout: Memory order of x and the result.

    Attributes:
        weight: Flat A_0, A_1, B_1, A_2, ..., each [width of x, width of the result], without B_m
            where it is zero throughout; initially normal, so that results of features of variance
            one have variance one.
        frame_in: Where the rotated features stand; `forward`'s scale follows its orders m >= 0.
        frame_out: The same for the messages.

    Raises:
        ValueError: m_max is out of range, or a name is unknown.

    Example:
        >>> conv = SO2Convolution("8x0e+8x1o+8x2e", "8x0e+8x1o+8x2e")
        >>> graph = Graph(torch.tensor([0, 1]), torch.tensor([1, 0]), num_src=2)
        >>> conv(torch.randn(2, 72), torch.randn(2, 3), graph=graph).shape
        torch.Size([2, 72])
    """

    weight: nn.Parameter | None
    _mask: Tensor | None

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        m_max: int | None = None,
        *,
        group: Group = "O3",
        internal_weights: bool = True,
        backend: Backend = "auto",
        layout: Layout = "mul_ir",
    ) -> None:
        super().__init__()
        check_layout(layout)
        check_backend(backend)
        if group not in get_args(Group):
            raise ValueError(f"group must be one of {get_args(Group)}, got {group!r}")
        self.irreps_in, self.irreps_out = parse_irreps(irreps_in), parse_irreps(irreps_out)
        top = min(max((ir.l for _, ir in i), default=0) for i in (self.irreps_in, self.irreps_out))
        m_max = top if m_max is None else m_max
        if not 0 <= m_max <= top:
            raise ValueError(
                f"m_max must be from 0 to {top}, the largest order that irreps_in="
                f"'{self.irreps_in}' and irreps_out='{self.irreps_out}' both have, got {m_max}"
            )
        self.group: Group = group
        self.backend: Backend = backend
        self.layout: Layout = layout
        self.frame_in = FrameLayout(self.irreps_in, m_max)
        self.frame_out = FrameLayout(self.irreps_out, m_max)
        masks = [_mask(self.frame_in, self.frame_out, m, group) for m in range(m_max + 1)]
        self._shapes = [tuple(mask.shape) for mask in masks]
        self.weight_numel = sum(mask.numel() for mask in masks)
        flat = torch.cat([mask.flatten() for mask in masks])
        self.register_buffer("_mask", None if bool(flat.all()) else flat, persistent=False)
        self.register_parameter("weight", None)
        if internal_weights:
            fans = [mask.sum((0, 1)).clamp(min=1).rsqrt().expand_as(mask) for mask in masks]
            std = torch.cat([fan.flatten() for fan in fans]).to(torch.get_default_dtype())
            self.weight = nn.Parameter(torch.randn(self.weight_numel) * std)

    @property
    def m_max(self) -> int:
        """Largest order that is kept."""
        return self.frame_in.m_max

    @property
    def scale_numel(self) -> int:
        """Columns of `forward`'s scale."""
        return self.frame_in.scale_numel

    def forward(
        self,
        x: Float[Tensor, "num_src dim_in"],
        vectors: Float[Tensor, "num_edges 3"],
        weight: Float[Tensor, "*num_edges weight_numel"] | None = None,
        *,
        graph: Graph | None = None,
        scale: Float[Tensor, "num_edges scale_numel"] | None = None,
    ) -> Float[Tensor, "num_dst dim_out"]:
        """The messages, summed at the receivers.

        Args:
            x: Features of the senders; without a graph one row per row of vectors.
            vectors: Edge vectors; only their directions matter.
            weight: Flat weights, one set or one per edge; the module's own when None.
            graph: Edges; without a graph every row is a message of its own.
            scale: Factors of the rotated features, e.g. from a radial network: for m = 0, ...,
                m_max one per block with l >= m and channel, +m and -m alike.

        Raises:
            ValueError: A shape breaks the rules, or weights are missing.
            TypeError: Operands differ in dtype or device.
        """
        return so2_convolution(
            x,
            vectors,
            self.matrices(weight),
            self.frame_in,
            self.frame_out,
            graph=graph,
            scale=scale,
            layout=self.layout,
            backend=self.backend,
        )

    def matrices(self, weight: Tensor | None = None) -> list[Tensor]:
        """The matrices of every order m, [parts, width of x, width of the result]: A_m and B_m.

        Args:
            weight: Flat weights, one set or one per edge; the module's own when None.

        Raises:
            ValueError: There are no weights, or their number is wrong.
        """
        weight = self.weight if weight is None else weight
        if weight is None:
            raise ValueError(
                f"weight must be given: the module has no weights of its own; pass "
                f"[{self.weight_numel}]"
            )
        if weight.shape[-1:] != (self.weight_numel,):
            raise ValueError(
                f"weight must have {self.weight_numel} columns, got shape {tuple(weight.shape)}"
            )
        if self._mask is not None:
            weight = weight * self._mask
        parts = weight.split([math.prod(shape) for shape in self._shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self._shapes, strict=True)]

    @property
    def problem(self) -> TensorProductProblem:
        """The tensor product with the harmonics of the edges that has every path, coefficients 1.

        Its second operand is, for each block of irreps_in2, the component-normalised harmonics of
        that degree.
        """
        return all_paths(self.irreps_in, self.irreps_out)

    def effective_path_weights(
        self, weight: Float[Tensor, "*num_edges weight_numel"] | None = None
    ) -> Float[Tensor, "*num_edges path_weight_numel"]:
        """Path weights with which the "cg" product `problem` gives the same messages.

        Args:
            weight: Flat weights; the module's own when None.
        """
        return to_path_weights(self.problem, self.matrices(weight), self.m_max)

    def from_path_weights(
        self, weight: Float[Tensor, "*num_edges path_weight_numel"]
    ) -> Float[Tensor, "*num_edges weight_numel"]:
        """The inverse of `effective_path_weights`: flat native weights from weights of `problem`.

        Orders above m_max and parts that the group forbids are left out.
        """
        native = from_path_weights(self.problem, weight, self.m_max)
        pairs = zip(native, self._shapes, strict=True)
        flat = torch.cat([m[..., : shape[0], :, :].flatten(-3) for m, shape in pairs], -1)
        return flat if self._mask is None else flat * self._mask

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"{self.irreps_in} -> {self.irreps_out}, m_max={self.m_max}, group={self.group!r}, "
            f"{self.weight_numel} weights"
        )


def _mask(frame_in: FrameLayout, frame_out: FrameLayout, m: int, group: Group) -> Tensor:
    """Which numbers of A_m and B_m are free, [parts, width, width]; B_m only if there are any."""

    def naturalness(frame: FrameLayout) -> Tensor:
        signs = [[ir.p * (-1) ** ir.l] * mul for mul, ir in frame.irreps if ir.l >= m]
        return torch.tensor([sign for block in signs for sign in block])

    natural = naturalness(frame_in)[:, None] == naturalness(frame_out)
    if group == "SO3":
        parts = [torch.ones_like(natural)] * (2 if m else 1)
    else:
        parts = [natural, ~natural] if m and not bool(natural.all()) else [natural]
    return torch.stack(parts).to(torch.get_default_dtype())
