"""Linear map with one set of weights per chemical element."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.problem import parse_irreps

__all__ = ["ElementLinear"]


class ElementLinear(nn.Module):
    """Equivariant linear map whose weights depend on the element of the node.

        out[n, w, i] = sum_u x[n, u, i] W[u, element(n), w] / sqrt(fan_in num_elements)

    The same function and weight order as e3nn's `FullyConnectedTensorProduct` of x with the
    one-hot element, at the cost of one matrix product per element that is there. Input and result
    are in layout "ir_mul". Blocks of the result that no input block feeds are zero.

    Args:
        irreps_in: Irreps of x.
        irreps_out: Irreps of the result.
        num_elements: Number of elements.
    """

    def __init__(
        self, irreps_in: Irreps | str, irreps_out: Irreps | str, num_elements: int
    ) -> None:
        super().__init__()
        self.irreps_in = parse_irreps(irreps_in)
        self.irreps_out = parse_irreps(irreps_out)
        self.num_elements = num_elements
        self._paths = [
            (i_in, i_out, block_in.mul * num_elements * block_out.mul)
            for i_in, block_in in enumerate(self.irreps_in)
            for i_out, block_out in enumerate(self.irreps_out)
            if block_in.ir == block_out.ir
        ]
        self.weight = nn.Parameter(torch.randn(sum(numel for _, _, numel in self._paths)))

    def forward(
        self, x: Float[Tensor, "nodes dim_in"], element: Int[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes dim_out"]:
        """Applies each node's own weights."""
        order = torch.argsort(element, stable=True)
        counts = torch.bincount(element, minlength=self.num_elements).tolist()
        blocks: list[Tensor | None] = [None] * len(self.irreps_out)
        x = x.index_select(0, order)
        weights = self.weight.split([numel for *_, numel in self._paths])
        for (i_in, i_out, _), weight in zip(self._paths, weights, strict=True):
            block_in, block_out = self.irreps_in[i_in], self.irreps_out[i_out]
            fan_in = self.num_elements * sum(
                self.irreps_in[i].mul for i, j, _ in self._paths if j == i_out
            )
            matrices = weight.view(block_in.mul, self.num_elements, block_out.mul)
            columns = x[:, self.irreps_in.slices()[i_in]]
            parts = [
                rows.reshape(-1, block_in.mul) @ matrices[:, z]
                for z, rows in enumerate(columns.split(counts))
                if len(rows) > 0
            ]
            result = torch.cat(parts) if parts else x.new_zeros(0, block_out.mul)
            result = result.view(-1, block_out.dim) / math.sqrt(fan_in)
            previous = blocks[i_out]
            blocks[i_out] = result if previous is None else previous + result
        out = torch.cat(
            [
                x.new_zeros(len(x), self.irreps_out[i].dim) if block is None else block
                for i, block in enumerate(blocks)
            ],
            dim=1,
        )
        return out.index_select(0, torch.argsort(order))
