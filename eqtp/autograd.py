"""What the `backward` of a `torch.autograd.Function` needs: who asks, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_own_nodes", "wanted_gradients"]


def wanted_gradients(ctx: Any, operands: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """Whether the running backward pass needs the gradient of each operand of a Function.

    `ctx.needs_input_grad` only tells that an operand can have a gradient. In force training every
    operand can, but the pass that makes the forces asks for positions only and the pass that makes
    the parameters' gradients does not ask for positions: computing what is then thrown away costs a
    quarter of a training step. The engine knows what it will execute, and torch's own checkpointing
    asks it the same way; where it cannot tell, the answer is yes.

    Args:
        ctx: Context of the `torch.autograd.Function` whose `backward` is running.
        operands: Its tensor arguments in order, None where None was given.
    """
    edges = iter(ctx.next_functions)
    return tuple(operand is not None and _will_execute(next(edges)[0]) for operand in operands)


def _will_execute(node: Any) -> bool:
    if node is None:
        return False
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that `torch.autograd.grad` was asked for
        return True


def as_own_nodes(*tensors: Tensor) -> list[Tensor]:
    """The same tensors as nodes of their own, so that gradients in them are partial derivatives.

    A `backward` that differentiates a formula of its saved tensors must not follow the graph from
    one of them to another: an incoming gradient usually depends on the inputs.
    """
    return [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]
