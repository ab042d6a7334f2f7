"""Linear maps of MACE: `linear` and `fully_connected_tp`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.irreps import Irrep, Irreps
from eqtp.kernels.linear import linear
from eqtp.kernels.linear.op import LinearProblem
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import Layout, to_layout
from eqtp.models.acceleration.kept import elements_of
from eqtp.models.acceleration.mace_backend.conventions import (
    DTYPES,
    draw,
    layout_of,
    weights_are_raw,
)
from eqtp.problem import Path, TensorProductProblem

__all__ = ["ElementProduct", "LinearMap"]


class _Maps(nn.Module):
    """Weights of linear maps, one for each of several scalars, in eqtp's order."""

    canonical: Tensor
    draw_scale: Tensor

    def __init__(
        self, descriptor: Any, irreps_in: str, irreps_out: str, num_scalars: int = 1
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.layout: Layout = layout_of(descriptor)
        problem = LinearProblem.from_irreps(self.irreps_in, self.irreps_out, num_scalars)
        raw = weights_are_raw()
        paths = tuple(p if raw else p._replace(scale=1.0) for p in problem.paths)
        self.problem = dataclasses.replace(problem, paths=paths)
        dtype = DTYPES[descriptor.precision]
        self.weight = nn.Parameter(torch.zeros(problem.weight_numel, dtype=dtype))
        self.register_buffer("canonical", _canonical_order(problem), persistent=False)
        scale = torch.ones_like(self.weight.detach())
        if not raw:
            for path in problem.paths:
                numel = path.mul_in * num_scalars * path.mul_out
                scale[path.weight : path.weight + numel] = path.scale
        self.register_buffer("draw_scale", scale, persistent=False)

    def to_canonical(self) -> dict[str, Tensor]:
        """The weights in MACE's order."""
        return {"weight": self.weight.detach()[self.canonical]}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights in MACE's order."""
        given = state["weight"]
        if given.shape != self.canonical.shape:
            raise ValueError(
                f"weight must have shape {tuple(self.canonical.shape)}, got {tuple(given.shape)}"
            )
        self.weight[self.canonical] = given.to(self.weight)

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights at the scale of MACE's format."""
        self.weight.copy_(draw(self.weight, seed) * self.draw_scale)


def _canonical_order(problem: LinearProblem) -> Tensor:
    """Where MACE's weights [scalar, (copy of the result, copy of x)] are among eqtp's."""
    blocks: dict[int, list[Tensor]] = {}
    for path in problem.paths:
        shape = path.mul_in, problem.num_elements, path.mul_out
        index = path.weight + torch.arange(math.prod(shape)).view(shape)
        blocks.setdefault(path.out, []).append(index.permute(1, 2, 0))
    rows = [torch.cat(blocks[out], dim=2).flatten(1) for out in sorted(blocks)]
    return torch.cat(rows, 1) if rows else torch.zeros(problem.num_elements, 0, dtype=torch.long)


class LinearMap(_Maps):
    """`linear`: channels of equal irreps are mixed, and even scalars get a bias."""

    bias_columns: Tensor

    def __init__(self, descriptor: Any) -> None:
        super().__init__(descriptor, descriptor.irreps_in, descriptor.irreps_out)
        self.canonical = self.canonical[0]
        columns = [
            torch.arange(columns.start, columns.stop)
            for (_, ir), columns in zip(self.irreps_out, self.irreps_out.slices(), strict=True)
            if descriptor.has_bias and ir == Irrep("0e")
        ]
        index = torch.cat(columns) if columns else torch.zeros(0, dtype=torch.long)
        self.register_buffer("bias_columns", index, persistent=False)
        self.bias = nn.Parameter(self.weight.new_zeros(len(index))) if len(index) else None

    def forward(self, features: Tensor) -> Tensor:
        """The map of rows [N, dim]."""
        x = to_layout(features, self.irreps_in, self.layout, "ir_mul")
        out = linear(x, self.weight, self.problem)
        out = to_layout(out, self.irreps_out, "ir_mul", self.layout)
        if self.bias is None:
            return out
        return out.index_add(1, self.bias_columns, self.bias.expand(len(out), -1))

    def to_canonical(self) -> dict[str, Tensor]:
        """Weights and biases in MACE's order."""
        bias = self.weight.new_zeros(0) if self.bias is None else self.bias
        return super().to_canonical() | {"bias": bias.detach()}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights and biases in MACE's order."""
        super().load_canonical(state)
        if state["bias"].shape != self.bias_columns.shape:
            raise ValueError(
                f"bias must have one value for each of {len(self.bias_columns)} even scalars, "
                f"got shape {tuple(state['bias'].shape)}"
            )
        if self.bias is not None:
            self.bias.copy_(state["bias"])

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights; biases start at zero."""
        super().initialize_weights(seed)
        if self.bias is not None:
            self.bias.zero_()


class ElementProduct(_Maps):
    """`fully_connected_tp`: product with scalars, as a rule the one-hot element of every node.

    One-hot attributes choose a linear map by its index. Other attributes, those that a gradient is
    asked of and compiled programs take the general product.
    """

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        scalars = Irreps(descriptor.irreps_in2)
        super().__init__(descriptor, descriptor.irreps_in1, descriptor.irreps_out, scalars.dim)
        self.backend: Backend = backend
        columns_in = {rows.start: i for i, rows in enumerate(self.irreps_in.slices())}
        columns_out = {rows.start: i for i, rows in enumerate(self.irreps_out.slices())}
        paths = tuple(
            Path(
                i_in1=columns_in[path.x],
                i_in2=0,
                i_out=columns_out[path.out],
                mode="uvw",
                has_weight=True,
                path_weight=1.0,
                coefficient=path.scale * math.sqrt(path.dim),  # w3j(l, 0, l) = 1 / sqrt(2l + 1)
                weight_shape=(path.mul_in, scalars.dim, path.mul_out),
                weight_start=path.weight,
            )
            for path in self.problem.paths
        )
        self.product = TensorProductProblem(
            self.irreps_in, Irreps(f"{scalars.dim}x0e"), self.irreps_out, paths
        )

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """The product of rows [N, dim] and [N, scalars]."""
        x = to_layout(features, self.irreps_in, self.layout, "ir_mul")
        elements = None if torch.compiler.is_compiling() else elements_of(attributes)
        if elements is not None:
            out = linear(x, self.weight, self.problem, elements.element)
        else:
            out = tensor_product(
                x, attributes, self.weight, self.product, layout="ir_mul", backend=self.backend
            )
        return to_layout(out, self.irreps_out, "ir_mul", self.layout)
