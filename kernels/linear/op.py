"""Equivariant linear maps in layout "ir_mul". Definition: reference.py.

The kernel is an op of `torch.library`, the trilinear form <g, out(x, weight)> contracted with two
of its three operands: eqtp::linear(x, weight, g, element, problem). None stands in the place of the
operand that is left open, and the result belongs there: out for g, the gradients for x and weight.
Its gradients are the same form left open elsewhere, so it is differentiable to any order.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.compiling import constant_when_compiled
from eqtp.irreps import Irreps
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.linear import _cpu, reference
from eqtp.operators import below_autograd, is_direct, register

__all__ = ["LinearPath", "LinearProblem", "linear", "serves"]


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

    @cached_property
    def text(self) -> str:
        """The problem as a string; `of_text` is the inverse."""
        return json.dumps(astuple(self))

    @staticmethod
    @lru_cache(maxsize=1024)
    def of_text(text: str) -> LinearProblem:
        """The problem of a `text`; the same object for the same text."""
        paths, *sizes = json.loads(text)
        return LinearProblem(tuple(LinearPath(*path) for path in paths), *sizes)


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
    return _contract(_text(problem), x, weight, None, element)


@constant_when_compiled
def _text(problem: LinearProblem) -> str:
    return problem.text


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the C++ kernel takes these tensors; otherwise the computation is plain torch."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
        and not torch.is_autocast_enabled("cpu")
        and why_unavailable("cpu") is None
    )


def _contract(text: str, *operands: Tensor | None) -> Tensor:
    """The form with x, weight or g left open; the last operand is the element."""
    if is_direct(*operands):
        direct: Tensor = _Form.apply(*operands, text)  # type: ignore[no-untyped-call]
        return direct
    out: Tensor = torch.ops.eqtp.linear.default(*operands, text)
    return out


class _Form(torch.autograd.Function):
    """eqtp::linear(x, weight, g, element, problem)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:4])
        ctx.problem = args[4]
        if is_direct(*args[:4]):
            return _compute(*args)
        out: Tensor = below_autograd(torch.ops.eqtp.linear.default, *args)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        *operands, element = ctx.saved_tensors
        wanted = wanted_gradients(ctx, operands)
        operands = [grad if operand is None else operand for operand in operands]
        grads: list[Tensor | None] = [None] * 5
        for slot in range(3):
            if wanted[slot]:
                opened = [*operands[:slot], None, *operands[slot + 1 :]]
                grads[slot] = _contract(ctx.problem, *opened, element)
        return tuple(grads)


def _compute(
    x: Tensor | None, weight: Tensor | None, g: Tensor | None, element: Tensor | None, text: str
) -> Tensor:
    problem = LinearProblem.of_text(text)
    element = None if element is None else element.long().contiguous()
    x, weight, g = (None if t is None else t.contiguous() for t in (x, weight, g))
    if x is not None and weight is not None:
        return _cpu.forward(x, weight, problem, element)
    if g is not None and weight is not None:
        return _cpu.gradient(g, weight, problem, element)
    assert x is not None
    assert g is not None
    return _cpu.weight_gradient(x, g, problem, element)


def _fake(
    x: Tensor | None, weight: Tensor | None, g: Tensor | None, element: Tensor | None, text: str
) -> Tensor:
    problem = LinearProblem.of_text(text)
    if g is None:
        assert x is not None
        return x.new_empty(x.shape[0], problem.dim_out)
    return (
        g.new_empty(problem.weight_numel)
        if x is not None
        else g.new_empty(g.shape[0], problem.dim_in)
    )


def _record(apply: Any, *args: Any) -> Any:
    return apply(_Form, *args)


register(
    "linear",
    "(Tensor? x, Tensor? weight, Tensor? g, Tensor? element, str problem) -> Tensor",
    _compute,
    _fake,
    _record,
)
