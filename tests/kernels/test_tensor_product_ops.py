"""The general product's op in the hands of torch: compile, export, torch.func, autocast."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.codegen.edges import edges_of
from eqtp.kernels.tensor_product import tensor_product
from eqtp.problem import TensorProductProblem

TOLERANCE = 1e-12
"""float64; sums of at most a few hundred terms of size one, gradients of size ten."""

NUM_NODES, NUM_ROWS = 5, 11
BACKENDS: list[Backend] = ["cpu", "torch"]
FORMS = ["rows", "shared", "graph"]
PROBLEM = TensorProductProblem.from_instructions(
    "3x0e+2x1o",
    "2x0e+2x1o",
    "4x1o+2x0e+3x0e",
    [
        (0, 1, 0, "uvw", True),
        (1, 1, 1, "uuu", False),
        (1, 1, 1, "uvv", True),
        (0, 0, 2, "uvu", True),
    ],
)


def make_graph() -> Graph:
    src, dst = torch.randint(NUM_NODES, (2, NUM_ROWS))
    return Graph(src, dst, NUM_NODES)


def make_operands(form: str, rows: int = NUM_ROWS) -> tuple[Tensor, Tensor, Tensor]:
    numel = PROBLEM.weight_numel
    return (
        torch.randn(
            NUM_NODES if form == "graph" else rows, PROBLEM.irreps_in1.dim
        ).requires_grad_(),
        torch.randn(rows, PROBLEM.irreps_in2.dim).requires_grad_(),
        torch.randn((numel,) if form == "shared" else (rows, numel)).requires_grad_(),
    )


def make_product(form: str, backend: Backend) -> Callable[..., Tensor]:
    graph = make_graph() if form == "graph" else None

    def product(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        return tensor_product(x1, x2, weight, PROBLEM, graph=graph, backend=backend)

    return product


def value_and_gradients(
    function: Callable[..., Tensor], operands: tuple[Tensor, ...]
) -> list[Tensor]:
    out = function(*operands)
    return [out, *torch.autograd.grad((out.sin() * out).sum(), operands)]


def close(ours: Any, expected: Any) -> None:
    scale = max(float(t.detach().abs().max()) for t in expected if t.numel())
    torch.testing.assert_close(list(ours), list(expected), rtol=0, atol=TOLERANCE * max(scale, 1.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str, backend: Backend) -> None:
    graph = make_graph() if form == "graph" else None
    num_dst = NUM_NODES if form == "graph" else NUM_ROWS
    operands = [*make_operands(form)]
    direction = torch.randn(num_dst, PROBLEM.irreps_out.dim, requires_grad=True)
    where = edges_of(graph, backend), num_dst, PROBLEM.text, backend, "ir_mul"
    op = torch.ops.eqtp.tensor_product.default
    value = json.dumps([[[0, 1, 2, None], [None, None, None, 0]]])
    torch.library.opcheck(op, (operands, *where, value))
    gradients = json.dumps([[[0, 1, 2, 3], [0, None, 2, None]]])
    torch.library.opcheck(op, ([*operands, direction], *where, gradients))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_compiles_as_one_graph(form: str, backend: Backend) -> None:
    product, operands = make_product(form, backend), make_operands(form)
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    close(value_and_gradients(compiled, operands), value_and_gradients(product, operands))


def test_one_program_for_any_number_of_rows() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    product = make_product("rows", "cpu")
    compiled = torch.compile(product, fullgraph=True, backend=counter)
    for rows in (11, 30, 3, 5000):
        operands = make_operands("rows", rows)
        for tensor in operands:
            torch._dynamo.mark_dynamic(tensor, 0)
        close(value_and_gradients(compiled, operands), value_and_gradients(product, operands))
    assert counter.frame_count == 1


class Layer(nn.Module):
    def forward(self, x1: Tensor, x2: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        graph = Graph(src, dst, x1.shape[0])
        return tensor_product(x1, x2, weight, PROBLEM, graph=graph)


def test_exports_for_any_number_of_edges() -> None:
    rows = torch.export.Dim("rows", min=2)
    graph, operands = make_graph(), [t.detach() for t in make_operands("graph")]
    given = (*operands, graph.edge_src, graph.edge_dst)
    shapes: Any = ({}, {0: rows}, {0: rows}, {0: rows}, {0: rows})
    program = torch.export.export(Layer(), given, dynamic_shapes=shapes)
    fewer = (given[0], *(t[:4] for t in given[1:]))
    close([program.module()(*fewer)], [Layer()(*fewer)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_func_grad_of_grad(form: str, backend: Backend) -> None:
    product, operands = make_product(form, backend), make_operands(form)
    plain = tuple(t.detach() for t in operands)

    def value(*t: Tensor) -> Tensor:
        return product(*t).sin().sum()

    def loss(*t: Tensor) -> Tensor:
        grads = torch.func.grad(value, (0, 1, 2))(*t)
        return torch.stack([g.pow(3).sum() for g in grads]).sum()

    grads = torch.autograd.grad(value(*operands), operands, create_graph=True)
    expected = torch.autograd.grad(torch.stack([g.pow(3).sum() for g in grads]).sum(), operands)
    close(torch.func.grad(loss, (0, 1, 2))(*plain), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_vmap(form: str, backend: Backend) -> None:
    product, batch = make_product(form, backend), 3
    x1, x2, weight = (t.detach() for t in make_operands(form))
    x2 = torch.randn(NUM_ROWS, batch, x2.shape[1])

    def gradients(*t: Tensor) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.func.grad(lambda *t: product(*t).sin().sum(), (0, 1, 2))(
            *t
        )
        return grads

    each = [(x1, x2[:, i], weight) for i in range(batch)]
    close(torch.vmap(product, (None, 1, None))(x1, x2, weight), [product(*t) for t in each])
    ours = torch.vmap(gradients, (None, 1, None))(x1, x2, weight)
    expected = [torch.stack(t) for t in zip(*(gradients(*t) for t in each), strict=True)]
    close(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_float32(backend: Backend) -> None:
    product = make_product("graph", backend)
    x1, x2, weight = (t.detach().float().requires_grad_() for t in make_operands("graph"))
    half = x2.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        ours = product(x1, half, weight)
        (ours_grad,) = torch.autograd.grad(ours.pow(2).sum(), x1)
    exact = product(x1, half.float(), weight)
    (exact_grad,) = torch.autograd.grad(exact.pow(2).sum(), x1)
    assert ours.dtype == ours_grad.dtype == torch.float32
    assert torch.equal(ours, exact)
    assert torch.equal(ours_grad, exact_grad)
