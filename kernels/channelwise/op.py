"""Channelwise tensor product. Definition: reference.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.autograd import wanted_gradients
from eqtp.backend import Backend, resolve
from eqtp.graph import Graph
from eqtp.kernels.channelwise import _cpu, _torch, reference
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.tensor_product.op import validate
from eqtp.layout import Layout, to_layout
from eqtp.problem import TensorProductProblem

__all__ = ["IMPLEMENTED", "channelwise_tensor_product", "supports", "why_not"]

IMPLEMENTED = ("cpu", "torch", "reference")
_KERNELS = {"cpu": _cpu, "torch": _torch}


def supports(problem: TensorProductProblem) -> bool:
    """Whether every path is "uvu" with one channel in x2, as in MACE, NequIP and SevenNet."""
    return len(problem.paths) > 0 and all(
        path.mode == "uvu" and problem.irreps_in2[path.i_in2].mul == 1 for path in problem.paths
    )


def channelwise_tensor_product(
    x1: Float[Tensor, "num_src dim1"],
    x2: Float[Tensor, "rows dim2"],
    weight: Float[Tensor, "*rows weight_numel"] | None,
    problem: TensorProductProblem,
    *,
    radial: tuple[Float[Tensor, "rows hidden"], Float[Tensor, "hidden weight_numel"]] | None = None,
    graph: Graph | None = None,
    layout: Layout = "mul_ir",
    backend: Backend = "auto",
) -> Float[Tensor, "num_dst dim_out"]:
    """Channelwise ("uvu") tensor product of two equivariant features.

        out[e, u, k] = sum_path c_path weight[e, path, u] sum_ij w3j[i, j, k] x1[e, u, i] x2[e, j]

    O(3)-equivariant; linear in x1, x2 and weight; differentiable to any order. With a graph the
    edges' results are summed at their receivers in a fixed order: equal from run to run.

    Args:
        x1: Features of the rows, or of the senders when a graph is given.
        x2: One channel per irrep, e.g. the spherical harmonics of each edge.
        weight: Flat weights per row, or one set [weight_numel] for all; None without weights.
        problem: The paths; `supports(problem)` must hold.
        radial: Pair (hidden, matrix) that stands for weight = hidden @ matrix.
        graph: Edges for gather - product - sum; None for row by row.
        layout: Layout of x1, x2 and the result.
        backend: See `eqtp.backend`.

    Returns:
        Blocks of problem.irreps_out.

    Raises:
        ValueError: Shapes disagree with the problem or the graph, or a path is not channelwise.
        TypeError: The dtypes differ.

    Example:
        >>> problem = TensorProductProblem.from_instructions(
        ...     "4x0e", "0e+1o", "4x1o", [(0, 1, 0, "uvu", True)])
        >>> x1, x2, weight = torch.ones(2, 4), torch.ones(2, 4), torch.ones(2, 4)
        >>> channelwise_tensor_product(x1, x2, weight, problem).shape
        torch.Size([2, 12])
    """
    if not supports(problem):
        raise ValueError(
            "a channelwise product takes 'uvu' paths with mul 1 in irreps_in2, got "
            f"irreps_in2='{problem.irreps_in2}' and modes "
            f"{sorted({path.mode for path in problem.paths})}; use tensor_product"
        )
    kernel = resolve(
        backend,
        family="channelwise",
        implemented=IMPLEMENTED,
        device=x2.device.type,
        why_not=lambda name: why_not(name, problem, x2.dtype),
    ).backend
    if radial is not None:
        weight = radial[0] @ radial[1]
    validate(x1, x2, weight, problem, graph)
    if kernel == "reference":
        return reference.channelwise_tensor_product(
            x1, x2, weight, problem, graph=graph, layout=layout
        )
    x = to_layout(x1, problem.irreps_in1, layout, "ir_mul").contiguous()
    rows = None if weight is None else (weight[None] if weight.ndim == 1 else weight).contiguous()
    out: Tensor = _Product.apply(x, x2.contiguous(), rows, _KERNELS[kernel], graph, problem)  # type: ignore[no-untyped-call]
    return to_layout(out, problem.irreps_out, "ir_mul", layout)


def why_not(backend: str, problem: TensorProductProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a channelwise product; None where it can."""
    if backend == "cpu" and dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, got {dtype}"
    return why_unavailable(backend)


class _Product(torch.autograd.Function):
    """out(x, y, w)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, w: Tensor | None, *where: Any) -> Tensor:
        ctx.save_for_backward(x, y, w)
        ctx.where = where
        kernel, graph, problem = where
        return kernel.forward(x, y, w, problem, graph)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        needs = wanted_gradients(ctx, ctx.saved_tensors)
        grads = _Gradient.apply(  # type: ignore[no-untyped-call]
            g.contiguous(), *ctx.saved_tensors, needs, *ctx.where
        )
        return (*grads, None, None, None)


class _Gradient(torch.autograd.Function):
    """Gradients of sum(g out(x, y, w)) in x, y and w."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, y: Tensor, w: Tensor | None, needs: Any, *where: Any
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(g, x, y, w)
        ctx.where = where
        ctx.set_materialize_grads(False)
        kernel, graph, problem = where
        return kernel.backward(g, x, y, w, problem, graph, needs)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        v = [None if d is None else d.contiguous() for d in directions]
        grads = _SecondGradient.apply(  # type: ignore[no-untyped-call]
            *v, *ctx.saved_tensors, wanted_gradients(ctx, ctx.saved_tensors), *ctx.where
        )
        return (*grads, None, None, None, None)


class _SecondGradient(torch.autograd.Function):
    """Gradients of sum_a v_a d/da sum(g out(x, y, w)) in g, x, y and w."""

    @staticmethod
    def forward(
        ctx: Any,
        v_x: Tensor | None,
        v_y: Tensor | None,
        v_w: Tensor | None,
        g: Tensor,
        x: Tensor,
        y: Tensor,
        w: Tensor | None,
        needs: Any,
        *where: Any,
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(v_x, v_y, v_w, g, x, y, w)
        ctx.where = where
        ctx.set_materialize_grads(False)
        kernel, graph, problem = where
        return kernel.double_backward(v_x, v_y, v_w, g, x, y, w, problem, graph, needs)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        """Third order and beyond: the definition, differentiated by torch."""
        *_, graph, problem = ctx.where
        with torch.enable_grad():
            inputs: list[Any] = [_branch(t) for t in ctx.saved_tensors]
            outputs = _second_gradient_by_definition(problem, graph, *inputs)
            pairs = [(o, d) for o, d in zip(outputs, directions, strict=True) if d is not None]
            grads = torch.autograd.grad(
                [output for output, _ in pairs],
                [t for t in inputs if t is not None],
                [direction for _, direction in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        remaining = iter(grads)
        return (*(None if t is None else next(remaining) for t in inputs), *[None] * 4)


def _branch(t: Tensor | None) -> Tensor | None:
    """The same values as a node of its own, so that equal operands keep separate gradients."""
    if t is None:
        return None
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _second_gradient_by_definition(
    problem: TensorProductProblem,
    graph: Graph | None,
    v_x: Tensor | None,
    v_y: Tensor | None,
    v_w: Tensor | None,
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor | None,
) -> tuple[Tensor, ...]:
    """What `_SecondGradient` computes, as a differentiable expression of the definition."""
    weighted = replace(problem, paths=tuple(path for path in problem.paths if path.has_weight))
    total = g.new_zeros(())
    for a, b, c, paths in ((v_x, y, w, problem), (x, v_y, w, problem), (x, y, v_w, weighted)):
        if a is None or b is None or (c is None and paths is weighted):
            continue
        shared = c[0] if c is not None and c.shape[0] == 1 else c
        out = reference.channelwise_tensor_product(
            a, b, shared, paths, graph=graph, layout="ir_mul"
        )
        total = total + (out * g).sum()
    wanted = [g, x, y] if w is None else [g, x, y, w]
    grads = torch.autograd.grad(total, wanted, create_graph=True, materialize_grads=True)
    return (*grads, *[torch.zeros(())] * (4 - len(wanted)))
