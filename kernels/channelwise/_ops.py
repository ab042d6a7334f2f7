"""The channelwise product as `torch.library` ops, closed under differentiation.

The product is one form, linear in every slot,

    T(slots; g) = sum(g * out(slots)),    slots = x, y, w   or   x, y, h, m   with w = h m,

and three ops compute all there is to differentiate:

    eqtp::channelwise                  out, the gradient of T in g
    eqtp::channelwise_backward         the gradients of T in the slots
    eqtp::channelwise_double_backward  the gradients of F(v; g, slots) = sum_s T(v_s in slot s; g)
                                       in g and the slots, for directions v

The derivative of the first gradients along v is F. That of F along d (of g and of the slots) is a
sum of such forms again, since T is linear in every slot:

    F(v; d_g, slots) + sum_s F(d without d_s; g, slots with v_s in slot s)

so derivatives of any order are calls of these three ops. Paths without weights are constant in w,
h and m: with a direction in the place of one of those, a form is of the weighted paths only.

A problem goes through its `text`; a graph as the tensors that its kernels read,
see `eqtp.kernels.codegen.edges`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen import triton_items  # noqa: F401  makes itself known to `edges`
from eqtp.kernels.codegen.edges import graph_of
from eqtp.operators import below_autograd, one_by_one, register
from eqtp.problem import TensorProductProblem

__all__ = ["product", "takes_radial"]

_NUM_SLOTS = 4  # x, y, w or h, m; the last two may be None


@cache
def _kernel(backend: str) -> ModuleType:
    """The module of a backend, imported when first needed."""
    return import_module(f"eqtp.kernels.channelwise._{backend}")


@constant_when_compiled
def takes_radial(backend: str) -> bool:
    """Whether a backend's kernels take weights as h m."""
    return backend in ("cpu", "triton")


@lru_cache(maxsize=1024)
def _weighted_only(problem: str) -> str:
    """The product of the paths that have a weight."""
    whole = TensorProductProblem.of_text(problem)
    return replace(whole, paths=tuple(path for path in whole.paths if path.has_weight)).text


def product(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
) -> Tensor:
    """The product in "ir_mul" layout, differentiable to any order.

    Args:
        x: Features, [num_src, dim1].
        y: Second operand, [rows, dim2].
        w: Weights, one row per row or one for all; hidden features h if `m` is given.
        m: Matrix of the radial network's last layer, [hidden, weight_numel].
        edges: See `edges_of`.
        num_dst: Rows of the result.
        problem: `TensorProductProblem.text`.
        backend: Who computes it.
    """
    out: Tensor = torch.ops.eqtp.channelwise.default(x, y, w, m, edges, num_dst, problem, backend)
    return out


def _backward(
    g: Tensor,
    slots: Sequence[Tensor | None],
    where: tuple[list[Tensor], str, str],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of T(slots; g) in the wanted slots."""
    if not any(wanted):
        return (None,) * _NUM_SLOTS
    op = torch.ops.eqtp.channelwise_backward.default
    return _spread(op(g, *slots, *where, wanted), wanted)


def _double_backward(
    v: Sequence[Tensor | None],
    g: Tensor,
    slots: Sequence[Tensor | None],
    where: tuple[list[Tensor], str, str],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of F(v; g, slots) in g and the slots, those that are wanted."""
    if not any(wanted) or all(direction is None for direction in v):
        return (None,) * (1 + _NUM_SLOTS)
    op = torch.ops.eqtp.channelwise_double_backward.default
    return _spread(op(*v, g, *slots, *where, wanted), wanted)


def _spread(values: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """One entry per slot, None where none was wanted."""
    remaining = iter(values)
    return tuple(next(remaining) if want else None for want in wanted)


class _Product(torch.autograd.Function):
    """eqtp::channelwise(x, y, w, m, edges, num_dst, text)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:_NUM_SLOTS])
        edges, _, *product = args[_NUM_SLOTS:]
        ctx.where = (edges, *product)
        out: Tensor = below_autograd(torch.ops.eqtp.channelwise.default, *args)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        slots = ctx.saved_tensors
        wanted = wanted_gradients(ctx, slots)
        return (*_backward(g, slots, ctx.where, wanted), *[None] * 4)


class _Gradient(torch.autograd.Function):
    """eqtp::channelwise_backward(g, x, y, w, m, edges, text, wanted)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *operands, edges, problem, backend, ctx.wanted = args
        ctx.where = edges, problem, backend
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        return tuple(below_autograd(torch.ops.eqtp.channelwise_backward.default, *args))

    @staticmethod
    def backward(ctx: Any, *directions: Any) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        v = _spread(directions, ctx.wanted)
        wanted = wanted_gradients(ctx, operands)
        g, *slots = operands
        return (*_double_backward(v, g, slots, ctx.where, wanted), *[None] * 4)


class _SecondGradient(torch.autograd.Function):
    """eqtp::channelwise_double_backward(v_x, ..., g, x, ..., edges, text, wanted)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *operands, edges, problem, backend, ctx.wanted = args
        ctx.where = edges, problem, backend
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        return tuple(below_autograd(torch.ops.eqtp.channelwise_double_backward.default, *args))

    @staticmethod
    def backward(ctx: Any, *directions: Any) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        edges, problem, backend = ctx.where
        wanted = wanted_gradients(ctx, operands)
        d_g, *d = _spread(directions, ctx.wanted)
        v, (g, *slots) = operands[:_NUM_SLOTS], operands[_NUM_SLOTS:]
        want_v, (want_g, *want) = wanted[:_NUM_SLOTS], wanted[_NUM_SLOTS:]
        sums: list[Tensor | None] = [None] * len(operands)

        def add(gradients: Sequence[Tensor | None], places: Sequence[int]) -> None:
            for gradient, place in zip(gradients, places, strict=True):
                if gradient is not None:
                    before = sums[place]
                    sums[place] = gradient if before is None else before + gradient

        places = range(_NUM_SLOTS, len(operands))  # of g and the slots
        if d_g is not None:
            add(_backward(d_g, slots, ctx.where, want_v), range(_NUM_SLOTS))
            add(_double_backward(v, d_g, slots, ctx.where, (False, *want)), places)
        for s, v_s in enumerate(v):
            if v_s is None:
                continue
            part = problem if s < 2 else _weighted_only(problem)
            add(
                _double_backward(
                    _replaced(d, s, None),
                    g,
                    _replaced(slots, s, v_s),
                    (edges, part, backend),
                    (want_g, *_replaced(want, s, want_v[s])),
                ),
                _replaced(places, 1 + s, s),
            )
        return (*sums, *[None] * 4)


def _replaced(values: Sequence[Any], index: int, value: Any) -> list[Any]:
    return [value if i == index else before for i, before in enumerate(values)]


def _compute(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
) -> Tensor:
    operands = dict(zip(_names(m), (x, y, w, m), strict=False))
    (out,) = _evaluate(operands, ["out"], edges, num_dst, problem, backend)
    return out


def _compute_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    problem: str,
    backend: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    names = _names(m)
    operands = {"g": g, **dict(zip(names, (x, y, w, m), strict=False))}
    results = [f"grad_{name}" for name, want in zip(names, wanted, strict=False) if want]
    return _evaluate(operands, results, edges, len(g), problem, backend)


def _compute_double_backward(
    v_x: Tensor | None,
    v_y: Tensor | None,
    v_w: Tensor | None,
    v_m: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    problem: str,
    backend: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    names = _names(m)
    operands = {"g": g, **dict(zip(names, (x, y, w, m), strict=False))}
    directions = zip(names, (v_x, v_y, v_w, v_m), strict=False)
    operands |= {f"v{name}": direction for name, direction in directions}
    pairs = zip(("g", *names), wanted, strict=False)
    results = [f"grad_{name}2" for name, want in pairs if want]
    return _evaluate(operands, results, edges, len(g), problem, backend)


def _names(m: Tensor | None) -> tuple[str, ...]:
    """Names of the slots; without m there are three."""
    return ("x", "y", "w") if m is None else ("x", "y", "h", "m")


def _evaluate(
    operands: Mapping[str, Tensor | None],
    results: Sequence[str],
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
) -> list[Tensor]:
    """Calls a backend's `run` with the operands that are given; it returns the wanted results.

    Names are those of `_program`: operands are slots, g, and directions v before a slot's name.
    """
    given = {name: t.contiguous() for name, t in operands.items() if t is not None}
    graph = graph_of(edges, len(given["x"]), num_dst, backend)
    found = _kernel(backend).run(TensorProductProblem.of_text(problem), graph, given, results)
    return [found[name] for name in results]


def _fake(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    problem: str,
    backend: str,
) -> Tensor:
    return y.new_empty(num_dst, TensorProductProblem.of_text(problem).irreps_out.dim)


def _fake_gradients(num_skipped: int) -> Callable[..., list[Tensor]]:
    """One gradient like every operand after the first `num_skipped` that is wanted."""

    def fake(*args: Any) -> list[Tensor]:
        *operands, _, _, _, wanted = args
        pairs = zip(operands[num_skipped:], wanted, strict=True)
        return [t.new_empty(t.shape) for t, want in pairs if want]

    return fake


def _more_rows(num_operands: int) -> Callable[..., tuple[Any, Any]]:
    """Rule for `torch.vmap`: more rows where every operand has them, else one by one."""

    def rule(op: Any, info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        operands, edges, rest = args[:num_operands], args[num_operands], args[num_operands + 1 :]
        dims = in_dims[:num_operands]
        lengths = {
            (t if dim is None else t.select(dim, 0)).shape[0]
            for t, dim in zip(operands, dims, strict=True)
            if t is not None
        }
        if edges or operands[-1] is not None or len(lengths) > 1:
            return one_by_one(op, info, in_dims, *args)
        (length,) = lengths
        batch: int = info.batch_size
        folded = [
            None if t is None else _folded(t, dim, batch)
            for t, dim in zip(operands, dims, strict=True)
        ]
        if isinstance(rest[0], str):
            results = [t.unflatten(0, (batch, length)) for t in op(*folded, edges, *rest)]
            return results, [0] * len(results)
        num_dst, *product = rest
        return op(*folded, edges, batch * num_dst, *product).unflatten(0, (batch, length)), 0

    return rule


def _folded(t: Tensor, dim: int | None, batch: int) -> Tensor:
    t = t.expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


def _recorded(function: Any) -> Callable[..., Any]:
    def record(apply: Callable[..., Any], *args: Any) -> Any:
        results = apply(function, *args)
        return list(results) if isinstance(results, tuple) else results

    return record


_SLOTS = "Tensor x, Tensor y, Tensor? w, Tensor? m"
_DIRECTIONS = "Tensor? v_x, Tensor? v_y, Tensor? v_w, Tensor? v_m"
_WHERE = "Tensor[] edges, str problem, str backend, bool[] wanted"

register(
    "channelwise",
    f"({_SLOTS}, Tensor[] edges, SymInt num_dst, str problem, str backend) -> Tensor",
    _compute,
    _fake,
    _recorded(_Product),
    _more_rows(_NUM_SLOTS),
)
register(
    "channelwise_backward",
    f"(Tensor g, {_SLOTS}, {_WHERE}) -> Tensor[]",
    _compute_backward,
    _fake_gradients(1),
    _recorded(_Gradient),
    _more_rows(1 + _NUM_SLOTS),
)
register(
    "channelwise_double_backward",
    f"({_DIRECTIONS}, Tensor g, {_SLOTS}, {_WHERE}) -> Tensor[]",
    _compute_double_backward,
    _fake_gradients(_NUM_SLOTS),
    _recorded(_SecondGradient),
    _more_rows(1 + 2 * _NUM_SLOTS),
)
