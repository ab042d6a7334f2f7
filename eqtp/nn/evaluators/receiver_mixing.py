"""Channels mixed with weights that all edges share: once per receiver, not once per edge.

For "uvw" paths with one channel in irreps_in2 the weights can follow the sum over edges,

    out[n, w, k]     = sum_paths sum_u weight[u, w] messages[n, path, u, k]
    messages[n, ...] = coefficient sum_{e to n} sum_ij w3j[i, j, k] x1[sender(e), u, i] x2[e, j]

so the messages are a channelwise product without weights, which C++ kernels sum in registers, and
the rest is a linear map of the nodes. Both are differentiable to any order. Forward, forward and
backward, second gradients, ms of one thread (Zen 4, float32; features and harmonics to degree l):

                                               edge by edge       here
    l = 1, 16 channels, iron, 2,992 edges      0.5  1.7  3.1      0.3  1.0  1.7
    l = 2, 64 channels, iron                  11.7 36.7 47.9      1.8  4.7  7.0
    l = 3, 64 channels, iron                    38  114  148      4.4   13   21
    l = 4, 16 channels, iron                   8.6   32   36      2.2  8.5   11
    l = 2, 32 channels, water, 10,562 edges   14.5   39   62      2.8  8.4   12
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.channelwise.config import MAX_CONSTANTS
from eqtp.kernels.linear import LinearPath, LinearProblem, linear, serves
from eqtp.kernels.tensor_product.op import validate
from eqtp.layout import Layout, to_layout
from eqtp.problem import TensorProductProblem

__all__ = ["ReceiverMixing"]

MAX_MESSAGES = 1 << 26
"""Numbers of the messages of all nodes, which are stored; 256 MiB in float32. Beyond, the weights
are applied edge by edge, where nothing but operands and result is."""


@dataclass(frozen=True)
class ReceiverMixing:
    """A product on graphs, in C++, with one set of weights.

    Attributes:
        problem: The product.
        messages: The sums at the receivers, a block for each path.
        mixing: The linear map from the messages to the result.
    """

    problem: TensorProductProblem
    messages: TensorProductProblem
    mixing: LinearProblem

    @classmethod
    def of(cls, problem: TensorProductProblem, backend: Backend) -> ReceiverMixing | None:
        """How to compute a product this way; None where it cannot be."""
        paths = [path for path in problem.paths if 0 not in path.weight_shape]
        is_mixing = all(
            path.mode == "uvw" and problem.irreps_in2[path.i_in2].mul == 1 for path in paths
        )
        few = problem.num_constants <= MAX_CONSTANTS
        if backend not in ("auto", "cpu") or not paths or not is_mixing or not few:
            return None
        sums, maps = [], []
        blocks = [(problem.multiplicities(p)[0], problem.irreps_out[p.i_out].ir) for p in paths]
        irreps, out = Irreps(blocks), problem.irreps_out.slices()
        for number, (path, columns) in enumerate(zip(paths, irreps.slices(), strict=True)):
            sums.append(path.without_weights("uvu", number))
            mul1, _, mul3 = path.weight_shape
            dim = problem.irreps_out[path.i_out].ir.dim
            where = columns.start, out[path.i_out].start, path.weight_start
            maps.append(LinearPath(*where, mul1, mul3, dim, 1.0))
        messages = replace(problem, irreps_out=irreps, paths=tuple(sums))
        mixing = LinearProblem(
            tuple(maps), irreps.dim, problem.irreps_out.dim, problem.weight_numel
        )
        return cls(problem, messages, mixing)

    def serves(self, x1: Tensor, weight: Tensor, graph: Graph) -> bool:
        """Whether these operands are computed this way."""
        return (
            weight.ndim == 1
            and graph.num_dst * self.mixing.dim_in <= MAX_MESSAGES
            and serves(x1, weight)
        )

    def __call__(
        self, x1: Tensor, x2: Tensor, weight: Tensor, graph: Graph, layout: Layout
    ) -> Tensor:
        """The product; operands as those of `tensor_product`."""
        validate(x1, x2, weight, self.problem, graph)
        messages = channelwise_tensor_product(
            to_layout(x1, self.problem.irreps_in1, layout, "ir_mul"),
            x2,
            None,
            self.messages,
            graph=graph,
            layout="ir_mul",
            backend="cpu",
        )
        out = linear(messages, weight, self.mixing)
        return to_layout(out, self.problem.irreps_out, "ir_mul", layout)
