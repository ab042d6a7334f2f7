"""Channels mixed once per receiver: the numbers of the definition, and when it is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import Layout
from eqtp.nn import FullyConnectedTensorProduct, TensorProduct, family
from eqtp.nn.evaluators import cg, receiver_mixing

TOLERANCE = 1e-12  # relative, float64; sums of at most a few hundred terms of size one
IRREPS = ("3x0e+2x1o+3x1e", "0e+1o+2e", "4x0e+3x1o+2x2e")

pytestmark = pytest.mark.skipif(
    why_unavailable("cpu") is not None, reason="needs a C++ compiler: the C++ kernels do this"
)


def make_graph(num_edges: int = 9) -> Graph:
    src, dst = torch.randint(4, (num_edges,)), torch.randint(3, (num_edges,))
    return Graph(src, dst, 4, 5)


def operands(tp: TensorProduct, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """x1, x2 and one set of weights."""
    shapes = (graph.num_src, tp.irreps_in1.dim), (graph.num_edges, tp.irreps_in2.dim)
    x1, x2 = (torch.randn(shape, requires_grad=True) for shape in shapes)
    return x1, x2, torch.randn(tp.weight_numel, requires_grad=True)


def derivatives(
    tp: TensorProduct, given: tuple[Tensor, Tensor, Tensor], graph: Graph
) -> list[Tensor]:
    """Value, gradients and gradients of their squares."""
    value = tp(*given, graph=graph)
    first = torch.autograd.grad(value.square().sum(), given, create_graph=True)
    squares = torch.stack([gradient.square().sum() for gradient in first])
    second = torch.autograd.grad(squares.sum(), given)
    return [value, *first, *second]


def refuse(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("the weights were applied edge by edge")


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("num_edges", [9, 0])
@pytest.mark.parametrize("family_of_messages", ["channelwise", "tensor_product"])
def test_equals_the_definition(
    family_of_messages: str, num_edges: int, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family_of_messages == "tensor_product":
        monkeypatch.setattr(family, "MAX_CONSTANTS", 0)
    graph = make_graph(num_edges)
    exact = FullyConnectedTensorProduct(*IRREPS, layout=layout, backend="reference")
    given = operands(exact, graph)
    expected = derivatives(exact, given, graph)
    monkeypatch.setattr(cg, "tensor_product", refuse)
    tp = FullyConnectedTensorProduct(*IRREPS, layout=layout, backend="cpu")
    mixing = receiver_mixing.ReceiverMixing.of(tp.problem, "cpu")
    assert mixing is not None
    assert mixing.family == family_of_messages
    for a, b in zip(derivatives(tp, given, graph), expected, strict=True):
        assert a.shape == b.shape
        scale = float(b.detach().abs().max()) if b.numel() > 0 else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE * max(scale, 1e-3))


def test_some_blocks_reached_by_no_path_and_without_channels() -> None:
    graph = make_graph()
    paths = [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (2, 1, 2, "uvw", True)]
    irreps = "3x0e+2x1o+0x1e", "0e+1o+2x2e", "4x0e+3x3o+2x2o"
    exact = TensorProduct(*irreps, paths, backend="reference")
    tp = TensorProduct(*irreps, paths)
    given = operands(tp, graph)
    for a, b in zip(derivatives(tp, given, graph), derivatives(exact, given, graph), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("why", ["weights per edge", "float16", "much memory", "another mode"])
def test_otherwise_edge_by_edge(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, mode = make_graph(), "uvu" if why == "another mode" else "uvw"
    paths = [(0, 0, 0, mode, True), (1, 1, 0, "uvw", True)]
    tp = TensorProduct("3x0e+2x1o", "0e+1o", "3x0e", paths)
    x1, x2, weight = operands(tp, graph)
    if why == "weights per edge":
        weight = weight.expand(graph.num_edges, -1)
    if why == "float16":
        x1, x2, weight = x1.half(), x2.half(), weight.half()
    if why == "much memory":
        monkeypatch.setattr(receiver_mixing, "MAX_MESSAGES", 5 * 5 - 1)
    calls = []

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(args)
        return compute(*args, **options)

    compute = tensor_product
    monkeypatch.setattr(cg, "tensor_product", counted)
    assert tp(x1, x2, weight, graph=graph).shape == (5, 3)
    assert len(calls) == 1


def test_wrong_weights_are_refused() -> None:
    tp, graph = FullyConnectedTensorProduct(*IRREPS), make_graph()
    x1, x2, weight = operands(tp, graph)
    with pytest.raises(ValueError, match="weight must have shape"):
        tp(x1, x2, weight[:-1], graph=graph)


def test_explain_says_so() -> None:
    assert "once per receiver" in FullyConnectedTensorProduct(*IRREPS).explain()
