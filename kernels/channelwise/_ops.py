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

What is no tensor goes through a string, `Product`; a graph as the tensors that its kernels read,
see `_edges`. Schemas, autograd and the rules for autocast and `vmap` are registered on the
dispatcher directly: `torch.library.register_autograd` takes 40 us more per call with a gradient
and 90 with its backward (torch 2.13, AMD EPYC), as long as a product of a few hundred edges.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, reduce
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function

from eqtp.autograd import wanted_gradients
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.channelwise import _cpu, _torch
from eqtp.kernels.channelwise._edges import edge_tensors, fake_edge_tensors, graph_of
from eqtp.problem import Path, TensorProductProblem

__all__ = ["Product", "edges_of", "product", "takes_radial"]

_KERNELS: dict[str, ModuleType] = {"cpu": _cpu, "torch": _torch}
_NUM_SLOTS = 4  # x, y, w or h, m; the last two may be None


def takes_radial(backend: str) -> bool:
    """Whether a backend's kernels take weights as h m."""
    return backend in _KERNELS and hasattr(_KERNELS[backend], "radial_forward")


@dataclass(frozen=True)
class Product:
    """What an op computes and who does it.

    Attributes:
        problem: The paths.
        backend: Name of the backend.
    """

    problem: TensorProductProblem
    backend: str

    @property
    def kernel(self) -> ModuleType:
        """The backend's module."""
        return _KERNELS[self.backend]

    def encode(self) -> str:
        """The same as a string."""
        problem = self.problem
        irreps = [str(i) for i in (problem.irreps_in1, problem.irreps_in2, problem.irreps_out)]
        return json.dumps([self.backend, irreps, [astuple(path) for path in problem.paths]])

    @staticmethod
    @lru_cache(maxsize=1024)
    def decode(text: str) -> Product:
        """Inverse of `encode`."""
        backend, irreps, rows = json.loads(text)
        paths = (Path(*row[:7], weight_shape=tuple(row[7]), weight_start=row[8]) for row in rows)
        in1, in2, out = (Irreps(i) for i in irreps)
        return Product(TensorProductProblem(in1, in2, out, tuple(paths)), backend)

    @staticmethod
    @lru_cache(maxsize=1024)
    def weighted_only(text: str) -> str:
        """The product of the paths that have a weight."""
        whole = Product.decode(text)
        paths = tuple(path for path in whole.problem.paths if path.has_weight)
        return replace(whole, problem=replace(whole.problem, paths=paths)).encode()


def edges_of(graph: Graph | None, backend: str) -> list[Tensor]:
    """What the ops take as `edges`: made once per graph; nothing for rows."""
    if graph is None:
        return []
    if backend in graph.kept:
        return graph.kept[backend]
    if not torch.compiler.is_compiling():
        with torch._C._DisableFuncTorch():  # they outlive the transform that is running
            graph.kept[backend] = edge_tensors(graph, backend)
        return graph.kept[backend]
    made: list[Tensor] = torch.ops.eqtp.channelwise_edges.default(
        graph.edge_src, graph.edge_dst, graph.num_src, graph.num_dst, backend
    )
    if not torch._C._are_functorch_transforms_active():
        graph.kept[backend] = made
    return made


def product(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    text: str,
) -> Tensor:
    """The product in "ir_mul" layout, differentiable to any order.

    Args:
        x: Features, [num_src, dim1].
        y: Second operand, [rows, dim2].
        w: Weights, one row per row or one for all; hidden features h if `m` is given.
        m: Matrix of the radial network's last layer, [hidden, weight_numel].
        edges: See `edges_of`.
        num_dst: Rows of the result.
        text: A `Product`, encoded.
    """
    out: Tensor = torch.ops.eqtp.channelwise.default(x, y, w, m, edges, num_dst, text)
    return out


def _backward(
    g: Tensor,
    slots: Sequence[Tensor | None],
    edges: Sequence[Tensor],
    text: str,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of T(slots; g) in the wanted slots."""
    if not any(wanted):
        return (None,) * _NUM_SLOTS
    op = torch.ops.eqtp.channelwise_backward.default
    return _spread(op(g, *slots, edges, text, wanted), wanted)


def _double_backward(
    v: Sequence[Tensor | None],
    g: Tensor,
    slots: Sequence[Tensor | None],
    edges: Sequence[Tensor],
    text: str,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of F(v; g, slots) in g and the slots, those that are wanted."""
    if not any(wanted) or all(direction is None for direction in v):
        return (None,) * (1 + _NUM_SLOTS)
    op = torch.ops.eqtp.channelwise_double_backward.default
    return _spread(op(*v, g, *slots, edges, text, wanted), wanted)


def _spread(values: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """One entry per slot, None where none was wanted."""
    remaining = iter(values)
    return tuple(next(remaining) if want else None for want in wanted)


class _Product(torch.autograd.Function):
    """eqtp::channelwise(x, y, w, m, edges, num_dst, text)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        ctx.save_for_backward(*args[:_NUM_SLOTS])
        ctx.edges, _, ctx.text = args[_NUM_SLOTS:]
        out: Tensor = _below_autograd(torch.ops.eqtp.channelwise.default, args)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        slots = ctx.saved_tensors
        wanted = wanted_gradients(ctx, slots)
        return (*_backward(g, slots, ctx.edges, ctx.text, wanted), None, None, None)


class _Gradient(torch.autograd.Function):
    """eqtp::channelwise_backward(g, x, y, w, m, edges, text, wanted)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *operands, ctx.edges, ctx.text, ctx.wanted = args
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        return tuple(_below_autograd(torch.ops.eqtp.channelwise_backward.default, args))

    @staticmethod
    def backward(ctx: Any, *directions: Any) -> tuple[Tensor | None, ...]:
        operands = ctx.saved_tensors
        v = _spread(directions, ctx.wanted)
        wanted = wanted_gradients(ctx, operands)
        g, *slots = operands
        return (*_double_backward(v, g, slots, ctx.edges, ctx.text, wanted), None, None, None)


class _SecondGradient(torch.autograd.Function):
    """eqtp::channelwise_double_backward(v_x, ..., g, x, ..., edges, text, wanted)."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *operands, ctx.edges, ctx.text, ctx.wanted = args
        ctx.save_for_backward(*operands)
        ctx.set_materialize_grads(False)
        return tuple(_below_autograd(torch.ops.eqtp.channelwise_double_backward.default, args))

    @staticmethod
    def backward(ctx: Any, *directions: Any) -> tuple[Tensor | None, ...]:
        operands, edges = ctx.saved_tensors, ctx.edges
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
            add(_backward(d_g, slots, edges, ctx.text, want_v), range(_NUM_SLOTS))
            add(_double_backward(v, d_g, slots, edges, ctx.text, (False, *want)), places)
        for s, v_s in enumerate(v):
            if v_s is None:
                continue
            text = ctx.text if s < 2 else Product.weighted_only(ctx.text)
            add(
                _double_backward(
                    _replaced(d, s, None),
                    g,
                    _replaced(slots, s, v_s),
                    edges,
                    text,
                    (want_g, *_replaced(want, s, want_v[s])),
                ),
                _replaced(places, 1 + s, s),
            )
        return (*sums, None, None, None)


def _replaced(values: Sequence[Any], index: int, value: Any) -> list[Any]:
    return [value if i == index else before for i, before in enumerate(values)]


def _compute(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    text: str,
) -> Tensor:
    decoded = Product.decode(text)
    where = decoded.problem, graph_of(edges, len(x), num_dst, decoded.backend)
    slots = _contiguous(x, y, w, m)
    out: Tensor = (
        decoded.kernel.forward(*slots[:3], *where)
        if m is None
        else decoded.kernel.radial_forward(*slots, *where)
    )
    return out


def _compute_backward(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    text: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    decoded = Product.decode(text)
    where = decoded.problem, graph_of(edges, len(x), len(g), decoded.backend)
    operands = _contiguous(g, x, y, w, m)
    grads = (
        decoded.kernel.backward(*operands[:4], *where, tuple(wanted[:3]))
        if m is None
        else decoded.kernel.radial_backward(*operands, *where, tuple(wanted))
    )
    return [grad for grad in grads if grad is not None]


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
    text: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    decoded = Product.decode(text)
    where = decoded.problem, graph_of(edges, len(x), len(g), decoded.backend)
    v, operands = _contiguous(v_x, v_y, v_w, v_m), _contiguous(g, x, y, w, m)
    grads = (
        decoded.kernel.double_backward(*v[:3], *operands[:4], *where, tuple(wanted[:4]))
        if m is None
        else decoded.kernel.radial_double_backward(*v, *operands, *where, tuple(wanted))
    )
    return [grad for grad in grads if grad is not None]


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _compute_edges(
    edge_src: Tensor, edge_dst: Tensor, num_src: int, num_dst: int, backend: str
) -> list[Tensor]:
    """Checks the edges of a graph that was made while compiling; `edge_tensors` of their own."""
    tensors = edge_tensors(Graph(edge_src, edge_dst, num_src, num_dst), backend)
    given = {edge_src.data_ptr(), edge_dst.data_ptr()}
    return [t.clone() if t.data_ptr() in given else t for t in tensors]


def _fake(
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
    m: Tensor | None,
    edges: list[Tensor],
    num_dst: int,
    text: str,
) -> Tensor:
    return y.new_empty(num_dst, Product.decode(text).problem.irreps_out.dim)


def _fake_gradients(num_skipped: int) -> Callable[..., list[Tensor]]:
    """One gradient like every operand after the first `num_skipped` that is wanted."""

    def fake(*args: Any) -> list[Tensor]:
        *operands, _, _, wanted = args
        pairs = zip(operands[num_skipped:], wanted, strict=True)
        return [t.new_empty(t.shape) for t, want in pairs if want]

    return fake


def _with_autograd(op: Any, function: Any) -> Callable[..., Any]:
    """Kernel that records `function` where a gradient may be asked for."""

    def kernel(*args: Any) -> Any:
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        if torch._C._are_functorch_transforms_active():
            # The dispatcher has peeled one transform off and comes here for autograd proper.
            # `Function.apply` would ask for that transform again, and does not expect to.
            with enable_single_level_autograd_function():
                result = super(torch.autograd.Function, function).apply(*args)
        else:
            result = function.apply(*args)
        return list(result) if isinstance(result, tuple) else result

    return kernel


def _below_autograd(op: Any, args: Sequence[Any]) -> Any:
    """What a Function's `forward` does, where torch has switched recording off."""
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._are_functorch_transforms_active():
            with torch.enable_grad():  # for the transforms around this one
                return op(*args)
        return op(*args)


def _without_autocast(op: Any, key: str) -> Callable[..., Any]:
    """Kernel that computes in the widest dtype of the operands, at least float32.

    Half precision would lose what equivariance and forces need; nothing inside is autocast.
    """
    autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*widest(args))

    return kernel


def widest(args: Sequence[Any]) -> list[Any]:
    """The arguments, floating-point tensors in the widest of their dtypes and float32."""
    floats = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = reduce(torch.promote_types, (a.dtype for a in floats), torch.float32)
    return [
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    ]


def _batched(op: Any, num_operands: int) -> Callable[..., tuple[Any, Any]]:
    """Rule for `torch.vmap`: more rows where every operand has them, else one by one."""

    def rule(info: Any, in_dims: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        operands, edges, rest = args[:num_operands], args[num_operands], args[num_operands + 1 :]
        is_radial = operands[-1] is not None
        lengths = {
            t.select(dim, 0).shape[0] if dim is not None else t.shape[0]
            for t, dim in zip(operands, in_dims, strict=False)
            if t is not None
        }
        if edges or is_radial or len(lengths) > 1:
            results = [
                op(*_selected(args, in_dims, index)) for index in range(info.batch_size)
            ]
            if isinstance(results[0], Tensor):
                return torch.stack(results), 0
            stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
            return stacked, [0] * len(stacked)
        (length,) = lengths
        folded = [
            None if t is None else _folded(t, dim, info.batch_size)
            for t, dim in zip(operands, in_dims, strict=False)
        ]
        if isinstance(rest[0], str):
            results = op(*folded, edges, *rest)
            unfolded = [t.unflatten(0, (info.batch_size, length)) for t in results]
            return unfolded, [0] * len(unfolded)
        num_dst, text = rest
        out = op(*folded, edges, num_dst * info.batch_size, text)
        return out.unflatten(0, (info.batch_size, length)), 0

    return rule


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


def _folded(t: Tensor, dim: int | None, batch_size: int) -> Tensor:
    t = t.expand(batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.flatten(0, 1)


_SLOTS = "Tensor x, Tensor y, Tensor? w, Tensor? m"
_DIRECTIONS = "Tensor? v_x, Tensor? v_y, Tensor? v_w, Tensor? v_m"
_LIBRARY = torch.library.Library("eqtp", "FRAGMENT")


def _register() -> None:
    ops: list[tuple[str, str, Any, Any, type[torch.autograd.Function], int]] = [
        (
            "channelwise",
            f"({_SLOTS}, Tensor[] edges, SymInt num_dst, str product) -> Tensor",
            _compute,
            _fake,
            _Product,
            _NUM_SLOTS,
        ),
        (
            "channelwise_backward",
            f"(Tensor g, {_SLOTS}, Tensor[] edges, str product, bool[] wanted) -> Tensor[]",
            _compute_backward,
            _fake_gradients(1),
            _Gradient,
            1 + _NUM_SLOTS,
        ),
        (
            "channelwise_double_backward",
            f"({_DIRECTIONS}, Tensor g, {_SLOTS}, Tensor[] edges, str product, bool[] wanted)"
            " -> Tensor[]",
            _compute_double_backward,
            _fake_gradients(_NUM_SLOTS),
            _SecondGradient,
            1 + 2 * _NUM_SLOTS,
        ),
    ]
    for name, schema, compute, fake, function, num_operands in ops:
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        op = getattr(torch.ops.eqtp, name).default
        _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, _with_autograd(op, function), "Autograd")
        for key in ("AutocastCPU", "AutocastCUDA"):
            _LIBRARY.impl(name, _without_autocast(op, key), key)
        torch.library.register_fake(f"eqtp::{name}", fake, lib=_LIBRARY)
        torch.library.register_vmap(f"eqtp::{name}", _batched(op, num_operands), lib=_LIBRARY)
    _LIBRARY.define(
        "channelwise_edges(Tensor edge_src, Tensor edge_dst, SymInt num_src, SymInt num_dst,"
        " str backend) -> Tensor[]",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    _LIBRARY.impl("channelwise_edges", _compute_edges, "CompositeExplicitAutograd")
    torch.library.register_fake("eqtp::channelwise_edges", fake_edge_tensors, lib=_LIBRARY)


_register()
