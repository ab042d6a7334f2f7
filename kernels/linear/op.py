"""Equivariant linear maps in layout "ir_mul". Definition: reference.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.irreps import Irreps
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.linear import _cpu, reference

__all__ = ["LinearProblem", "linear", "serves"]


class LinearPath(NamedTuple):
    """A block of x that feeds a block of the result.

    Attributes:
        x: Column where the block of x starts.
        out: Column where the block of the result starts.
        weight: Where its weights [mul_in, num_elements, mul_out] start.
        mul_in: Channels of x.
        mul_out: Channels of the result.
        dim: Components, 2l+1.
        scale: 1 / sqrt(fan_in).
    """

    x: int
    out: int
    weight: int
    mul_in: int
    mul_out: int
    dim: int
    scale: float


@dataclass(frozen=True)
class LinearProblem:
    """All paths between equal irreps."""

    paths: tuple[LinearPath, ...]
    dim_in: int
    dim_out: int
    weight_numel: int
    num_elements: int = 1

    @classmethod
    def from_irreps(
        cls, irreps_in: Irreps, irreps_out: Irreps, num_elements: int = 1
    ) -> LinearProblem:
        """Weights in the order of (block of x, block of the result), as in e3nn."""
        paths = []
        numel = 0
        for (mul_in, ir), x in zip(irreps_in, irreps_in.slices(), strict=True):
            for (mul_out, ir_out), out in zip(irreps_out, irreps_out.slices(), strict=True):
                if ir != ir_out or mul_in * mul_out == 0:
                    continue
                fan_in = num_elements * sum(mul for mul, other in irreps_in if other == ir)
                paths.append(
                    LinearPath(x.start, out.start, numel, mul_in, mul_out, ir.dim, fan_in**-0.5)
                )
                numel += mul_in * num_elements * mul_out
        return cls(tuple(paths), irreps_in.dim, irreps_out.dim, numel, num_elements)


def linear(
    x: Float[Tensor, "nodes dim_in"],
    weight: Float[Tensor, " weight_numel"],
    problem: LinearProblem,
    element: Int[Tensor, " nodes"] | None = None,
) -> Float[Tensor, "nodes dim_out"]:
    """Mixes the channels of equal irreps; differentiable to any order.

    Args:
        x: Features in layout "ir_mul".
        weight: Flat weights.
        problem: The paths.
        element: Index of each node's set of weights; None where there is one set.
    """
    if not serves(x, weight):
        return reference.linear(x, weight, problem, element)
    if element is not None:
        element = element.long().contiguous()
    out: Tensor = _Form.apply(problem, element, x.contiguous(), weight.contiguous(), None)  # type: ignore[no-untyped-call]
    return out


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the C++ kernel takes these tensors; otherwise the computation is plain torch."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and why_unavailable("cpu") is None
    )


class _Form(torch.autograd.Function):
    """The trilinear form <g, out(x, weight)>, contracted with two of its three operands.

    None stands in the place of the operand that is left open, and the result belongs there: out
    for g, the gradients for x and weight. The gradients are the same form left open elsewhere, so
    it is differentiable to any order.
    """

    @staticmethod
    def forward(
        ctx: Any,
        problem: LinearProblem,
        element: Tensor | None,
        x: Tensor | None,
        weight: Tensor | None,
        g: Tensor | None,
    ) -> Tensor:
        ctx.problem, ctx.element = problem, element
        ctx.save_for_backward(x, weight, g)
        if g is None:
            assert x is not None
            assert weight is not None
            return _cpu.forward(x, weight, problem, element)
        if x is None:
            assert weight is not None
            return _cpu.gradient(g, weight, problem, element)
        return _cpu.weight_gradient(x, g, problem, element)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _, *wanted = wanted_gradients(ctx, (ctx.element, *ctx.saved_tensors))
        grad = grad.contiguous()
        operands = [grad if operand is None else operand for operand in ctx.saved_tensors]
        grads: list[Tensor | None] = [None] * 5
        for slot in range(3):
            if wanted[slot]:
                opened = [*operands[:slot], None, *operands[slot + 1 :]]
                grads[2 + slot] = _Form.apply(ctx.problem, ctx.element, *opened)  # type: ignore[no-untyped-call]
        return tuple(grads)
