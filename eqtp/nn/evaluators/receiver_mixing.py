"""Channels mixed with weights that all edges share: once per receiver, not once per edge.

For "uvw" paths with one channel in irreps_in2 the weights can follow the sum over edges,

    out[n, w, k]     = sum_paths sum_u weight[u, w] messages[n, path, u, k]
    messages[n, ...] = coefficient sum_{e to n} sum_ij w3j[i, j, k] x1[sender(e), u, i] x2[e, j]

so the messages are a channelwise product without weights, which C++ kernels sum at the receivers,
and the rest is a linear map of the nodes. Both are differentiable to any order. Forward, forward
and backward, second gradients, ms of one thread (Zen 4, float32; features, harmonics to degree l):

                                               edge by edge       here
    l = 1, 16 channels, iron, 2,992 edges      0.5  1.7  3.1      0.3  1.0  1.7
    l = 2, 64 channels, iron                  11.7 36.7 47.9      1.8  4.7  7.0
    l = 3, 64 channels, iron                    38  114  148      4.4   13   21
    l = 4, 16 channels, iron                   8.6   32   36      2.2  8.5   11
    l = 2, 32 channels, water, 10,562 edges   14.5   39   62      2.8  8.4   12

Beyond the constants of unrolled code, l = 5, 20,000 edges at 800 nodes, 64 channels, CPU time on
an Intel Xeon (Emerald Rapids): 683 and 2,428 ms forward and with gradients become 417 and 1,007, as
fast as method "so2" (411 and 1,062). With five edges per node, 4,000 edges, there is less to save:
144 and 497 become 202 and 348.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.linear import LinearPath, LinearProblem, linear, serves
from eqtp.kernels.tensor_product import tensor_product
from eqtp.kernels.tensor_product.op import validate
from eqtp.kernels.tensor_product.pairs import is_empty, pairs_of
from eqtp.layout import Layout, to_layout
from eqtp.nn.family import FamilyChoice
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
        family: Who computes the messages, see `eqtp.nn.family`.
        mixing: The linear map from the messages to the result.
    """

    problem: TensorProductProblem
    messages: TensorProductProblem
    family: str
    mixing: LinearProblem

    @classmethod
    def of(cls, problem: TensorProductProblem, backend: Backend) -> ReceiverMixing | None:
        """How to compute a product this way; None where it cannot be."""
        if backend not in ("auto", "cpu") or not _is_mixing(problem):
            return None
        pairs, mixings = pairs_of(problem)
        if not mixings:
            return None
        paths = tuple(replace(path, mode="uvu") for path in pairs.paths)  # one channel in x2
        messages = replace(pairs, paths=paths)
        family, _ = FamilyChoice.of(messages, "cpu")(on_graph=True, device="cpu")
        maps = (
            LinearPath(
                x=mixing.pairs.start,
                out=step.out.start,
                weight=step.weight.start,
                mul_in=math.prod(step.pair_shape),
                mul_out=step.out_shape[0],
                dim=step.dim,
                scale=1.0,
            )
            for mixing in mixings
            if (step := mixing.step).weight is not None
        )
        *_, weight_numel, dim_out = problem.dims
        mixing = LinearProblem(tuple(maps), pairs.irreps_out.dim, dim_out, weight_numel)
        return cls(problem, messages, family, mixing)

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
        product = channelwise_tensor_product if self.family == "channelwise" else tensor_product
        messages = product(
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


def _is_mixing(problem: TensorProductProblem) -> bool:
    """Whether every path that has channels is "uvw" with one channel in x2."""
    return all(
        path.mode == "uvw" and problem.irreps_in2[path.i_in2].mul == 1
        for path in problem.paths
        if not is_empty(problem, path)
    )
