"""The channelwise product against the one definition of all tensor products."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.channelwise import _torch, channelwise_tensor_product, supports
from eqtp.kernels.tensor_product import reference as definition
from eqtp.layout import Layout
from eqtp.problem import TensorProductProblem
from eqtp.so3 import rand_matrix, wigner_D

Product = Callable[..., Tensor]  # called with unpacked operands, which no signature can follow

DEFINITION: Product = definition.tensor_product
KERNEL: Product = channelwise_tensor_product
REFERENCE: Product = functools.partial(channelwise_tensor_product, backend="reference")

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few hundred terms of size one
    torch.float32: 5e-6,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A product and a graph."""

    in1: str
    in2: str
    out: str
    instructions: tuple[tuple[object, ...], ...]
    num_edges: int = 17
    num_src: int = 6
    num_dst: int = 5

    @property
    def problem(self) -> TensorProductProblem:
        return TensorProductProblem.from_instructions(
            self.in1, self.in2, self.out, self.instructions
        )


CASES = {
    "mace": Case(
        "3x0e+3x1o",
        "0e+1o+2e+3o",
        "3x0e+3x0e+3x1o+3x1o+3x2e+3x3o",
        (
            (0, 0, 0, "uvu", True),
            (1, 1, 1, "uvu", True),
            (0, 1, 2, "uvu", True),
            (1, 2, 3, "uvu", True),
            (1, 1, 4, "uvu", True),
            (1, 2, 5, "uvu", True),
        ),
    ),
    "shared_blocks": Case(  # several paths into one block, an unweighted one, an unread block of x1
        "5x0e+2x1o+5x1o+1x2e",
        "0e+1o+1x1e",
        "2x1e+5x1o+5x0e",
        (
            (0, 1, 1, "uvu", True, 0.5),
            (2, 0, 1, "uvu", False),
            (2, 1, 2, "uvu", True),
            (1, 1, 0, "uvu", True),
        ),
    ),
    "odd_parity": Case("7x2o", "1e+2o", "7x3e", ((0, 1, 0, "uvu", True),)),
    "unweighted": Case("2x1o", "1o", "2x2e", ((0, 0, 0, "uvu", False),)),
    "no_weights_and_order": Case(  # an order of weights that is not that of the blocks
        "2x0e+2x1o", "0e+1o", "2x0e+2x1o", ((1, 1, 0, "uvu", True), (0, 1, 1, "uvu", True))
    ),
    "empty_block": Case("0x0e+2x1o", "1o", "2x0e", ((1, 0, 0, "uvu", True),)),
    "no_edges": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), num_edges=0),
    "one_edge": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), 1, 1, 1),
}
FORMS = ("rows", "graph")


@pytest.fixture(params=["cpu", "torch"])
def product(request: pytest.FixtureRequest) -> Product:
    """The channelwise product of each backend."""
    return functools.partial(channelwise_tensor_product, backend=request.param)


WEIGHTS = ("per_row", "shared")


def make(
    case: Case, form: str, weights: str, dtype: torch.dtype = torch.float64
) -> tuple[tuple[Any, ...], Graph | None]:
    problem, edges = case.problem, case.num_edges
    graph = None
    if form == "graph":
        graph = Graph(
            torch.randint(case.num_src, (edges,)),
            torch.randint(case.num_dst, (edges,)),
            case.num_src,
            case.num_dst,
        )
    x1 = torch.randn(edges if graph is None else case.num_src, problem.irreps_in1.dim)
    x2 = torch.randn(edges, problem.irreps_in2.dim)
    weight: Tensor | None = None
    if problem.weight_numel > 0:
        shape = (edges, problem.weight_numel) if weights == "per_row" else (problem.weight_numel,)
        weight = torch.randn(shape).to(dtype).requires_grad_()
    return (x1.to(dtype).requires_grad_(), x2.to(dtype).requires_grad_(), weight), graph


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(b.detach().abs().max()), 1.0) if b.numel() else 1.0
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=TOLERANCES[dtype] * scale)


def nonlinear_gradients(
    function: Callable[..., Tensor], operands: tuple[Tensor | None, ...], order: int
) -> list[Tensor]:
    """All derivatives of a nonlinear function of the product, up to `order`."""
    inputs = [t for t in operands if t is not None]
    out = function(*operands)
    results = [out]
    value = (out.sin() * out).sum()
    for _ in range(order):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        results.extend(grads)
        value = sum(((g + 0.1) ** 3).sum() for g in grads)  # type: ignore[assignment]
    return results


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_matches_definition_to_third_order(
    name: str, form: str, weights: str, layout: Layout, product: Product
) -> None:
    case = CASES[name]
    operands, graph = make(case, form, weights)

    def ours(x1: Tensor, x2: Tensor, weight: Tensor | None) -> Tensor:
        return product(x1, x2, weight, case.problem, graph=graph, layout=layout)

    def exact(x1: Tensor, x2: Tensor, weight: Tensor | None) -> Tensor:
        return definition.tensor_product(x1, x2, weight, case.problem, graph=graph, layout=layout)

    order = 3 if name in ("mace", "shared_blocks") else 2
    pairs = zip(
        nonlinear_gradients(ours, operands, order),
        nonlinear_gradients(exact, operands, order),
        strict=True,
    )
    for a, b in pairs:
        close(a, b, torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_own_definition_matches(name: str, form: str) -> None:
    case = CASES[name]
    operands, graph = make(case, form, "per_row")
    ours = REFERENCE(*operands, case.problem, graph=graph)
    exact = DEFINITION(*operands, case.problem, graph=graph)
    close(ours, exact, torch.float64)


@pytest.mark.parametrize("name", ["mace", "shared_blocks"])
def test_float32(name: str, product: Product) -> None:
    operands, graph = make(CASES[name], "graph", "per_row", torch.float32)
    problem = CASES[name].problem
    double = [t.detach().double().requires_grad_() for t in operands if t is not None]
    ours = nonlinear_gradients(lambda *t: product(*t, problem, graph=graph), operands, 1)
    exact = nonlinear_gradients(lambda *t: DEFINITION(*t, problem, graph=graph), tuple(double), 1)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        close(a, b, torch.float32)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mace", "shared_blocks", "one_edge"])
def test_gradgradcheck(name: str, form: str, product: Product) -> None:
    case = dataclasses.replace(CASES[name], num_edges=min(CASES[name].num_edges, 4))
    operands, graph = make(case, form, "per_row")

    def function(*t: Tensor) -> Tensor:
        return product(*t, case.problem, graph=graph)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("order", [1, 2])
def test_each_derivative_alone(order: int, product: Product) -> None:
    """Gradients asked for one operand at a time, as force training asks for positions only."""
    case = CASES["shared_blocks"]
    operands, graph = make(case, "graph", "per_row")
    for alone in range(3):
        inputs = [t if i == alone else t.detach() for i, t in enumerate(operands) if t is not None]

        ours, exact = (
            (function(*inputs, case.problem, graph=graph) ** 2).sum()
            for function in (product, DEFINITION)
        )
        for _ in range(order):
            ours = torch.autograd.grad(ours, inputs[alone], create_graph=True)[0].pow(2).sum()
            exact = torch.autograd.grad(exact, inputs[alone], create_graph=True)[0].pow(2).sum()
        close(ours, exact, torch.float64)


def test_second_gradient_with_one_direction(product: Product) -> None:
    """The gradient of one first gradient: the other directions are absent, not zero-filled."""
    case = CASES["mace"]
    operands, graph = make(case, "graph", "per_row")
    for direction in range(3):
        results = []
        for function in (product, DEFINITION):
            value = (function(*operands, case.problem, graph=graph) ** 2).sum()
            grads = torch.autograd.grad(value, operands, create_graph=True)
            results.append(torch.autograd.grad(grads[direction].sin().sum(), operands))
        for a, b in zip(*results, strict=True):
            close(a, b, torch.float64)


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(improper: bool, product: Product) -> None:
    problem = CASES["mace"].problem
    (x1, x2, weight), graph = make(CASES["mace"], "graph", "per_row")
    rotation = rand_matrix()

    def represent(irreps: Irreps) -> Tensor:
        sign = [(ir.p if improper else 1) for mul, ir in irreps for _ in range(mul)]
        blocks = [wigner_D(ir.l, rotation) for mul, ir in irreps for _ in range(mul)]
        matrix: Tensor = torch.block_diag(*[s * b for s, b in zip(sign, blocks, strict=True)])
        return matrix

    def function(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b, weight, problem, graph=graph)

    rotated = function(x1 @ represent(problem.irreps_in1).T, x2 @ represent(problem.irreps_in2).T)
    close(rotated, function(x1, x2) @ represent(problem.irreps_out).T, torch.float64)


def test_edge_order_does_not_matter_and_runs_are_equal(product: Product) -> None:
    case = dataclasses.replace(CASES["mace"], num_edges=200)
    (x1, x2, weight), graph = make(case, "graph", "per_row")
    assert graph is not None
    assert weight is not None
    order = torch.argsort(graph.edge_dst, stable=True)
    other = Graph(graph.edge_src[order], graph.edge_dst[order], case.num_src, case.num_dst)
    a = product(x1, x2, weight, case.problem, graph=graph)
    b = product(x1, x2[order], weight[order], case.problem, graph=other)
    close(a, b, torch.float64)
    assert torch.equal(a, product(x1, x2, weight, case.problem, graph=graph))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_threads_do_not_matter(weights: str) -> None:
    """Also with hubs: more edges on one node than a chunk holds."""
    case = dataclasses.replace(CASES["mace"], num_edges=3000, num_src=3, num_dst=2)
    operands, graph = make(case, "graph", weights)

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        try:
            return nonlinear_gradients(
                lambda *t: KERNEL(*t, case.problem, graph=graph), operands, 2
            )
        finally:
            torch.set_num_threads(1)

    exact = nonlinear_gradients(lambda *t: DEFINITION(*t, case.problem, graph=graph), operands, 2)
    for one, three, expected in zip(run(1), run(3), exact, strict=True):
        assert torch.equal(one, three)
        close(one, expected, torch.float64)


@pytest.mark.parametrize("mul", [1, 5, 16, 19, 33])
def test_channels_that_do_not_fill_a_register(mul: int) -> None:
    case = Case(
        f"{mul}x1o+2x0e",
        "1o",
        f"{mul}x0e+{mul}x2e+2x1o",
        ((0, 0, 0, "uvu", True), (0, 0, 1, "uvu", True), (1, 0, 2, "uvu", True)),
    )
    for dtype in TOLERANCES:
        operands, graph = make(case, "graph", "per_row", dtype)
        ours = nonlinear_gradients(
            lambda *t, graph=graph: KERNEL(*t, case.problem, graph=graph),
            operands,
            1,
        )
        exact = nonlinear_gradients(
            lambda *t, graph=graph: DEFINITION(*t, case.problem, graph=graph), operands, 1
        )
        for a, b in zip(ours, exact, strict=True):
            close(a, b, dtype)


@pytest.mark.parametrize("num_edges", [99, 100])  # chunks of seven: the last has one row or two
def test_chunks_do_not_matter(num_edges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = dataclasses.replace(CASES["shared_blocks"], num_edges=num_edges)
    operands, graph = make(case, "graph", "per_row")

    def run() -> list[Tensor]:
        product: Product = functools.partial(channelwise_tensor_product, backend="torch")
        return nonlinear_gradients(lambda *t: product(*t, case.problem, graph=graph), operands, 2)

    whole = run()
    monkeypatch.setattr(_torch, "chunk_rows", lambda row_bytes: 7)
    for a, b in zip(run(), whole, strict=True):
        close(a, b, torch.float64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_dtypes(dtype: torch.dtype, product: Product) -> None:
    case = CASES["mace"]
    operands, graph = make(case, "graph", "per_row")
    assert graph is not None
    other = Graph(graph.edge_src.to(dtype), graph.edge_dst.to(dtype), case.num_src, case.num_dst)
    a, b = (
        nonlinear_gradients(lambda *t, g=g: product(*t, case.problem, graph=g), operands, 2)
        for g in (graph, other)
    )
    for one, two in zip(a, b, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["mace", "shared_blocks", "no_weights_and_order"])
def test_radial_is_a_product_of_matrices(name: str, product: Product) -> None:
    case = CASES[name]
    (x1, x2, weight), graph = make(case, "graph", "per_row")
    assert weight is not None
    hidden = torch.randn(case.num_edges, 3, requires_grad=True)
    matrix = torch.randn(3, case.problem.weight_numel, requires_grad=True)

    def ours(x1: Tensor, x2: Tensor, hidden: Tensor, matrix: Tensor) -> Tensor:
        return product(x1, x2, None, case.problem, radial=(hidden, matrix), graph=graph)

    def exact(x1: Tensor, x2: Tensor, hidden: Tensor, matrix: Tensor) -> Tensor:
        return definition.tensor_product(x1, x2, hidden @ matrix, case.problem, graph=graph)

    operands = (x1, x2, hidden, matrix)
    pairs = zip(
        nonlinear_gradients(ours, operands, 2), nonlinear_gradients(exact, operands, 2), strict=True
    )
    for a, b in pairs:
        close(a, b, torch.float64)


def test_rejects_what_is_not_channelwise() -> None:
    problem = TensorProductProblem.from_instructions(
        "2x0e", "2x0e", "2x0e", [(0, 0, 0, "uvu", True)]
    )
    assert not supports(problem)
    with pytest.raises(ValueError, match="mul 1 in irreps_in2"):
        channelwise_tensor_product(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 4), problem)
    with pytest.raises(NotImplementedError, match="'triton' runs on cuda tensors"):
        channelwise_tensor_product(
            torch.zeros(1, 6),
            torch.zeros(1, 3),
            torch.zeros(1, 2),
            CASES["no_edges"].problem,
            backend="triton",
        )


def test_large_products_are_not_unrolled() -> None:
    irreps = "+".join(f"2x{l}e" for l in range(6))
    paths = [
        (i, j, k, "uvu", True)
        for i in range(6)
        for j in range(6)
        for k in range(abs(i - j), min(i + j, 5) + 1)
    ]
    problem = TensorProductProblem.from_instructions(irreps, "0e+1e+2e+3e+4e+5e", irreps, paths)
    operands = torch.randn(1, 72), torch.randn(1, 36), torch.randn(1, problem.weight_numel)
    with pytest.raises(NotImplementedError, match="at most 2000 constants"):
        channelwise_tensor_product(*operands, problem, backend="cpu")
    close(KERNEL(*operands, problem), DEFINITION(*operands, problem), torch.float64)
