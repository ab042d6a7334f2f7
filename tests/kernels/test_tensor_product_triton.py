"""The Triton kernels of the general product, in Triton's interpreter and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_checks import assert_no_spills, compiled, interpreted, run_in_the_interpreter

from eqtp.benchmarks.triton_registers import (
    GENERAL,
    GENERAL_PASSES,
    TARGETS,
    compile_general,
)
from eqtp.graph import Graph
from eqtp.kernels.codegen import triton_items
from eqtp.kernels.codegen.edges import edges_of
from eqtp.kernels.tensor_product import _ops, _triton, op, reference
from eqtp.kernels.tensor_product._form import VALUE
from eqtp.kernels.tensor_product.config import triton_launch
from eqtp.kernels.tensor_product.pairs import pairs_of
from eqtp.nn import FullyConnectedTensorProduct
from eqtp.problem import TensorProductProblem

TOLERANCES = {
    torch.float64: 1e-12,  # relative to the largest value; sums of a few hundred terms
    torch.float32: 5e-6,
    torch.float16: 4e-3,  # float32 arithmetic, gradients of rounded values: 2^-11 of the value
    torch.bfloat16: 3e-2,  # 2^-8
}


def make(*arguments: Any) -> TensorProductProblem:
    return TensorProductProblem.from_instructions(*arguments)


PROBLEMS = {
    "uvw": make("3x0e+2x1o", "2x0e+1x1o", "4x1o+2x0e",
                [(0, 1, 0, "uvw", True), (1, 1, 1, "uvw", True), (1, 0, 0, "uvw", True)]),
    "uvu": make("3x1o", "2x1o", "3x1e+3x0e", [(0, 0, 0, "uvu", True), (0, 0, 1, "uvu", False)]),
    "uvv": make("2x1o", "3x1o", "3x1e+3x2e", [(0, 0, 0, "uvv", True), (0, 0, 1, "uvv", True)]),
    "uuw": make("3x1o", "3x1o+3x0e", "2x0e+1x1o",
                [(0, 0, 0, "uuw", True), (0, 1, 1, "uuw", False)]),
    "uuu": make("3x1o+3x0e", "3x1o+3x2e", "3x0e+3x1o",
                [(0, 0, 0, "uuu", True), (0, 1, 1, "uuu", True), (1, 0, 1, "uuu", False)]),
    "uvuv": make("3x1o", "2x1o", "6x1e", [(0, 0, 0, "uvuv", True)]),
    "uvu<v": make("4x1o", "4x1o", "6x0e+6x2e",
                  [(0, 0, 0, "uvu<v", True), (0, 0, 1, "uvu<v", False)]),
    "u<vw": make("4x1o", "4x1o", "2x0e+3x2e", [(0, 0, 0, "u<vw", True), (0, 0, 1, "u<vw", True)]),
    "walked together": make("40x0e+3x1o", "1x1o", "40x1o+40x1o+2x1o+3x0e",
                [(0, 0, 0, "uvu", True), (0, 0, 1, "uvuv", True), (0, 0, 2, "uvw", True),
                 (1, 0, 3, "uvu", True)]),
    "mixed": make("2x0e+3x1o+0x2e+1x3e", "2x0e+3x1o", "3x1o+2x0e+3x0e+1x2e",
                [(1, 1, 2, "uuu", True), (0, 1, 0, "uvv", False), (0, 0, 1, "uuw", True),
                 (1, 1, 1, "uvw", True), (1, 0, 0, "uvu", True)]),
    "no paths": make("2x0e", "1x1o", "2x1o", []),
}  # fmt: skip
FORMS = ["rows", "graph"]


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def make_graph(num_edges: int = 7) -> Graph:
    """Bipartite, unsorted; the last receiver has no edges."""
    return Graph(torch.randint(3, (num_edges,)), torch.randint(4, (num_edges,)), 3, 5)


def make_operands(
    problem: TensorProductProblem, graph: Graph | None, weights: str, rows: int = 3
) -> list[Tensor]:
    rows, num_src = (rows, rows) if graph is None else (graph.num_edges, graph.num_src)
    operands = [
        torch.randn(num_src, problem.irreps_in1.dim),
        torch.randn(rows, problem.irreps_in2.dim),
    ]
    if problem.weight_numel > 0:
        shared = weights == "shared"
        operands.append(torch.randn(*([] if shared else [rows]), problem.weight_numel))
    return operands


def ours(problem: TensorProductProblem, graph: Graph | None) -> Callable[..., Tensor]:
    def product(x1: Tensor, x2: Tensor, weight: Tensor | None = None) -> Tensor:
        rows = len(x2) if graph is None else graph.num_dst
        where = edges_of(graph, "triton"), rows, problem.text, "triton", "ir_mul"
        return _ops.product(x1, x2, weight, where)  # type: ignore[arg-type]

    return product


def exact(problem: TensorProductProblem, graph: Graph | None) -> Callable[..., Tensor]:
    def product(x1: Tensor, x2: Tensor, weight: Tensor | None = None) -> Tensor:
        return reference.tensor_product(x1, x2, weight, problem, graph=graph, layout="ir_mul")

    return product


def derivatives(product: Callable[..., Tensor], operands: list[Tensor], order: int) -> list[Tensor]:
    inputs = [x.detach().clone().requires_grad_() for x in operands]
    out = product(*inputs)
    results, value = [out], (out * out).sum()
    for _ in range(order):
        grads = torch.autograd.grad(
            value, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        results += grads
        value = torch.stack([((grad + 0.1) ** 2).sum() for grad in grads]).sum()
    return results


def check(
    problem: TensorProductProblem,
    graph: Graph | None,
    operands: list[Tensor],
    dtype: torch.dtype = torch.float64,
    order: int = 2,
) -> None:
    given = [x.to(dtype) for x in operands]
    got = derivatives(ours(problem, graph), given, order)
    expected = derivatives(exact(problem, graph), [x.double() for x in given], order)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert a.shape == b.shape
        scale = max(float(b.detach().abs().max()), 1.0) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=TOLERANCES[dtype] * scale)


@interpreted
@pytest.mark.parametrize("weights", ["per row", "shared"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "no paths"])
def test_to_second_order(name: str, form: str, weights: str) -> None:
    graph = make_graph() if form == "graph" else None
    check(PROBLEMS[name], graph, make_operands(PROBLEMS[name], graph, weights))


@interpreted
@pytest.mark.parametrize("name", ["mixed", "uvu<v"])
def test_to_third_order(name: str) -> None:
    graph = make_graph(4)
    check(PROBLEMS[name], graph, make_operands(PROBLEMS[name], graph, "per row"), order=3)


@interpreted
def test_a_product_without_paths_is_zero() -> None:
    problem = PROBLEMS["no paths"]
    for graph in (None, make_graph()):
        out = ours(problem, graph)(*make_operands(problem, graph, "shared"))
        assert torch.equal(out, torch.zeros_like(out))


@interpreted
@pytest.mark.parametrize("weights", ["per row", "shared"])
@pytest.mark.parametrize("form", FORMS)
def test_no_rows(form: str, weights: str) -> None:
    problem = PROBLEMS["mixed"]
    graph = make_graph(0) if form == "graph" else None
    check(problem, graph, make_operands(problem, graph, weights, rows=0))


@interpreted
@pytest.mark.parametrize("weights", ["per row", "shared"])
def test_hubs_in_pieces(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with no edge, one piece, a full piece and several pieces, at both ends."""
    monkeypatch.setattr(triton_items, "PIECE_EDGES", 3)
    monkeypatch.setattr(_triton, "TRITON_CHUNKS", 2)
    dst = torch.tensor([0] * 8 + [2] * 3 + [3] * 2)[torch.randperm(13)]
    src = torch.tensor([1] * 7 + [2] * 6)[torch.randperm(13)]
    graph = Graph(src, dst, 4, 4)
    for name in ("mixed", "uvu"):
        check(PROBLEMS[name], graph, make_operands(PROBLEMS[name], graph, weights))


@interpreted
@pytest.mark.parametrize("form", FORMS)
def test_split_into_kernels(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel for every path: sums go on from kernel to kernel."""
    launch = replace(triton_launch(8, 32), max_products=1)
    monkeypatch.setattr(_triton, "triton_launch", lambda itemsize, lanes: launch)
    _triton._kernels_of.cache_clear()
    graph = make_graph() if form == "graph" else None
    check(PROBLEMS["mixed"], graph, make_operands(PROBLEMS["mixed"], graph, "per row"))
    _triton._kernels_of.cache_clear()


@interpreted
@pytest.mark.parametrize("weights", ["per row", "shared"])
def test_rows_in_chunks(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "chunk_rows", lambda bytes_per_row, device: 2)
    for name in ("mixed", "uvw"):
        check(PROBLEMS[name], None, make_operands(PROBLEMS[name], None, weights, rows=5))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_storage_types(dtype: torch.dtype) -> None:
    graph = make_graph()
    for weights in ("per row", "shared"):
        check(PROBLEMS["mixed"], graph, make_operands(PROBLEMS["mixed"], graph, weights), dtype, 1)


@interpreted
@pytest.mark.parametrize("weights", ["per row", "shared"])
def test_index_types_and_order_of_edges(weights: str) -> None:
    """Equal to the last bit, whatever the type of the indices and the order of the edges."""
    graph, problem = make_graph(9), PROBLEMS["mixed"]
    x1, x2, weight = make_operands(problem, graph, weights)
    first = derivatives(ours(problem, graph), [x1, x2, weight], 1)[:2]
    order = torch.argsort(graph.edge_dst, stable=True)
    src, dst = graph.edge_src, graph.edge_dst
    small = Graph(src.int(), dst.int(), 3, 5)
    ordered = Graph(src[order], dst[order], 3, 5)
    weight_ordered = weight if weights == "shared" else weight[order]
    variants = [(small, [x1, x2, weight]), (ordered, [x1, x2[order], weight_ordered])]
    for other, operands in variants:
        for a, b in zip(derivatives(ours(problem, other), operands, 1), first, strict=False):
            assert torch.equal(a, b)


def test_weights_that_all_edges_share_multiply_nodes() -> None:
    """The pairs are summed at the receivers, and no tensor of the pairs of every edge is made."""
    problem = PROBLEMS["uvw"]
    pairs, mixings = pairs_of(problem)
    assert [path.mode for path in pairs.paths] == ["uvuv"] * 3
    assert [mixing.step.dim for mixing in mixings] == [3, 1, 3]
    call = _triton.Call(pairs, None, frozenset((0, 3)), 7, True)
    (kernels,) = call.kernels((VALUE,), torch.float32, 32).values()
    assert {kernel.walk for kernel in kernels} == {"receiver"}


def test_says_what_it_cannot_serve() -> None:
    pytest.importorskip("triton")
    large = FullyConnectedTensorProduct("2x8e", "2x8e", "2x8e+2x9e+2x10e+2x11e+2x12e").problem
    assert "at most 2000 constants" in str(op.why_not("triton", large, torch.float32))
    assert "torch.int32" in str(op.why_not("triton", PROBLEMS["uvw"], torch.int32))
    assert op.why_not("triton", PROBLEMS["uvw"], torch.bfloat16) is None


def test_another_number_of_rows_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    problem = PROBLEMS["uuu"]
    made = []
    for rows in (1, 16, 17, 1000):
        launches.clear()
        x1, x2, weight = (x.float() for x in make_operands(problem, None, "per row", rows))
        ours(problem, None)(x1, x2, weight)
        made.append([kernel for kernel, _ in launches])
    assert all(kernels == made[0] for kernels in made)
    assert [grid for _, grid in launches] == [(24,), (24,)]


def check_spills(name: str, pass_name: str, target: str, dtype: torch.dtype) -> None:
    for usage in compile_general(name, pass_name, target, dtype):
        assert_no_spills(usage, f"{name} {pass_name}, {target}, {dtype}")


@compiled
def test_the_value_does_not_spill() -> None:
    check_spills("diffdock-l2", "value", "sm_90", torch.float32)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("pass_name", GENERAL_PASSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GENERAL)
def test_no_spills(name: str, dtype: torch.dtype, target: str, pass_name: str) -> None:
    check_spills(name, pass_name, target, dtype)
