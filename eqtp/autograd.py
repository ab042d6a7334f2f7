"""Which gradients a backward pass will really use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["wanted_gradients"]


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
