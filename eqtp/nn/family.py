"""Which kernel family computes a product: decided here and nowhere else.

    channelwise       code made for the product: "uvu" with one channel in irreps_in2
    tensor_product    any product; in C++ one kernel that reads tables

On graphs the channelwise kernels sum a receiver's messages in registers. For rows there is nothing
to sum, and the general C++ kernel, which reads both layouts as they are, is faster. Forward,
forward and backward, second gradients, ms of one thread (Zen 4, float32):

                                        channelwise            tensor_product
    nequip-benzene, 2000 rows, mul_ir   337   622  6324        52   131   189
    the same, ir_mul                    107   178   222        60   139   184
    mace-large, 2000 rows, ir_mul        46    64    85        28    53    77
    64 channels, l <= 2 and 3, graph     25    77   103        57   176   254
    7 channels, the same graph          4.7    16    17       4.2    12    12
"""

from __future__ import annotations

from dataclasses import dataclass

from eqtp.backend import Backend
from eqtp.kernels.channelwise import supports
from eqtp.kernels.channelwise.config import MAX_CONSTANTS
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.problem import TensorProductProblem

__all__ = ["FamilyChoice"]


@dataclass(frozen=True)
class FamilyChoice:
    """The choice for one product and backend.

    Attributes:
        channelwise: Whether the channelwise family can serve.
        constants: Number of constants of the product.
        backend: What the caller asked for.
    """

    channelwise: bool
    constants: int
    backend: Backend

    @classmethod
    def of(cls, problem: TensorProductProblem, backend: Backend) -> FamilyChoice:
        """What the choice depends on."""
        return cls(supports(problem), problem.num_constants, backend)

    def __call__(self, *, on_graph: bool, device: str) -> tuple[str, str]:
        """The family, and why, for operands on a device, with or without a graph."""
        if not self.channelwise:
            return "tensor_product", "serves all modes and multiplicities"
        compiled = device == "cpu" and self.backend in ("auto", "cpu")
        if compiled and why_unavailable("cpu") is None:
            if self.constants > MAX_CONSTANTS:
                return "tensor_product", f"{self.constants} constants: tables instead of code"
            if not on_graph:
                return "tensor_product", "reads rows of either layout as they are"
        return "channelwise", "every path is 'uvu' with one channel in irreps_in2"
