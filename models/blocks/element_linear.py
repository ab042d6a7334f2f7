"""Linear map with one set of weights per chemical element."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.kernels.linear import LinearProblem, linear
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
        self.problem = LinearProblem.from_irreps(self.irreps_in, self.irreps_out, num_elements)
        self.weight = nn.Parameter(torch.randn(self.problem.weight_numel))

    def forward(
        self, x: Float[Tensor, "nodes dim_in"], element: Int[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes dim_out"]:
        """Applies each node's own weights."""
        return linear(x, self.weight, self.problem, element)
