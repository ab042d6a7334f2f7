"""Ops of `torch.library` whose derivatives are ops: how kernel families register their own.

An op is a kernel, a fake kernel (shapes only), a `torch.autograd.Function` that records it, and
rules for autocast and `torch.vmap`. They are registered on the dispatcher directly:
`torch.library.register_autograd` takes 40 us more per call with a gradient and 90 with its backward
(torch 2.13, AMD EPYC), as long as a product of a few hundred edges, and does not work under
`torch.func.grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.utils import enable_single_level_autograd_function

__all__ = ["below_autograd", "is_autocast", "is_direct", "one_by_one", "register", "widest"]

_LIBRARY = torch.library.Library("eqtp", "FRAGMENT")


def register(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    record: Callable[..., Any] | None = None,
    batch: Callable[..., tuple[Any, Any]] | None = None,
) -> None:
    """Registers `eqtp::name`.

    Args:
        name: Name of the op.
        schema: Its arguments and results, "(Tensor x, ...) -> Tensor"; a list of tensors that may
            have gradients comes first.
        compute: Kernel for tensors of numbers; its results are tensors of their own.
        fake: The same for tensors without numbers.
        record: Called as record(apply, *args) where a gradient may be asked for: applies a
            Function, whose `forward` is `below_autograd`, by `apply(function, *inputs)`. None for
            an op without derivatives.
        batch: Rule for `torch.vmap`, `torch.library.register_vmap`'s with the op as a first
            argument; `one_by_one` when None.
    """
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.eqtp, name).default
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"eqtp::{name}", fake, lib=_LIBRARY)
    if record is None:
        return
    _LIBRARY.impl(name, _with_autograd(op, record), "Autograd")
    for key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl(name, _without_autocast(op, key), key)
    torch.library.register_vmap(f"eqtp::{name}", partial(batch or one_by_one, op), lib=_LIBRARY)


def _with_autograd(op: Any, record: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        # A list that has a None in it is not looked into, so it is spread out.
        spread = args[0] if isinstance(args[0], list) else ()
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args, *spread):
            return record(_apply, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def _apply(function: Any, *args: Any) -> Any:
    """`function.apply(*args)`, called by the dispatcher.

    Under `torch.func.grad` the dispatcher has peeled one transform off and comes here for autograd
    proper. `Function.apply` would ask for that transform again: it expects to come first.
    """
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    with enable_single_level_autograd_function():
        beyond: Any = super(torch.autograd.Function, function)
        return beyond.apply(*args)


def below_autograd(op: Any, *args: Any) -> Any:
    """What a Function's `forward` does: the op, which other transforms may record."""
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._are_functorch_transforms_active():
            with torch.enable_grad():  # switched off in `forward`
                return op(*args)
        return op(*args)


def is_direct(*tensors: Tensor | None) -> bool:
    """Whether kernels and Functions may be called without the dispatcher, which takes 10 us a time.

    So it is where nobody looks at operations: no compiler, no transform of `torch.func`, no
    dispatch mode, no autocast, no tensor of a kind of its own.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack():
        return False
    return all(
        type(t) in (Tensor, nn.Parameter) and not is_autocast(t) for t in tensors if t is not None
    )


def _without_autocast(op: Any, key: str) -> Callable[..., Any]:
    """Kernel that computes in the widest dtype of the operands, at least float32.

    Half precision would lose what equivariance and forces need; nothing inside is autocast.
    """
    autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*widest(args))

    return kernel


def is_autocast(x: object) -> bool:
    """Whether operations on x are autocast."""
    return isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type)


def widest(args: Sequence[Any]) -> list[Any]:
    """The arguments, floating-point tensors in the widest of their dtypes and float32."""
    dtype = reduce(torch.promote_types, (t.dtype for t in _floats(args)), torch.float32)
    return _cast(args, dtype)


def _floats(args: Sequence[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, (list, tuple)):
            yield from _floats(arg)
        elif isinstance(arg, Tensor) and arg.is_floating_point():
            yield arg


def _cast(args: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    return [
        _cast(arg, dtype)
        if isinstance(arg, (list, tuple))
        else arg.to(dtype)
        if isinstance(arg, Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    ]


def one_by_one(op: Any, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
    """Rule for `torch.vmap` of an op that returns a tensor or a list: a call per element."""
    results = [op(*_selected(args, in_dims, index)) for index in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
    return stacked, [0] * len(stacked)


def _selected(values: Sequence[Any], dims: Sequence[Any], index: int) -> list[Any]:
    """One element of a batch; nested as the arguments are."""
    return [
        _selected(value, dim, index)
        if isinstance(dim, (list, tuple))
        else value
        if dim is None
        else value.select(dim, index)
        for value, dim in zip(values, dims, strict=True)
    ]
