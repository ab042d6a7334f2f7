"""`torch.compile` takes every product and module as one graph, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.nn import (
    ChannelwiseTensorProduct,
    Gate,
    Linear,
    PathGate,
    SphericalHarmonics,
    SymmetricContraction,
    TensorProduct,
    TensorReadout,
)

TOLERANCE = 1e-10  # relative, in float64: the operations are the same, their order may differ
IRREPS = "2x0e+2x1o+2x2e"
GRAPH = Graph(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]), num_src=3, num_dst=3)
ELEMENT = torch.tensor([0, 1, 0])
SEPARABLE: dict[str, tuple[str, dict[str, Any], tuple[str, str, str]]] = {
    "gaunt, direct": ("gaunt", {"evaluation": "direct"}, (IRREPS,) * 3),
    "gaunt, grid": ("gaunt", {"evaluation": "grid", "passes": 2}, (IRREPS,) * 3),
    "gaunt, fourier": ("gaunt", {"evaluation": "fourier"}, (IRREPS,) * 3),
    "gaunt_full": (
        "gaunt_full",
        {"evaluation": "grid"},
        ("2x0e+2x1o", "2x0e+2x1e", "2x1o+2x0o"),
    ),
    "matrix": ("matrix", {}, (IRREPS,) * 3),
    "matrix, plain": ("matrix", {"layout": "ir_mul"}, ("2x0e+2x1e",) * 3),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    import torch._dynamo

    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def check(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
    """Value and first gradients of a function of random operands, compiled and not."""
    operands = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    results = []
    for computed in (torch.compile(function, fullgraph=True, backend="aot_eager"), function):
        value = computed(*operands)
        gradients = torch.autograd.grad(value.sin().sum(), operands)
        results.append((value.detach(), *gradients))
    for mine, expected in zip(*results, strict=True):
        largest = float(expected.abs().max())
        assert largest > 0.1
        torch.testing.assert_close(mine, expected, rtol=0, atol=TOLERANCE * largest)


def check_product(tp: TensorProduct | PathGate, *, on_graph: bool, dims: tuple[int, ...]) -> None:
    """On a graph with weights for every edge, otherwise with one set for all rows."""
    dim1, dim2, numel = dims
    graph, rows, weight = (GRAPH, 3, (4, numel)) if on_graph else (None, 4, (numel,))
    check(lambda x1, x2, w: tp(x1, x2, w, graph=graph), (rows, dim1), (4, dim2), weight)


@pytest.mark.parametrize(("mode", "on_graph"), [("uvw", False), ("uvu", True), ("uuu", True)])
@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_products(name: str, mode: str, on_graph: bool) -> None:
    method, options, sides = SEPARABLE[name]
    in1, in2, out = map(Irreps, sides)
    paths = [
        (i, j, k, mode, True)
        for (i, a), (j, b), (k, c) in product(*map(enumerate, (in1, in2, out)))
        if c.ir in a.ir * b.ir
    ]
    tp = TensorProduct(*sides, paths, method=method, backend="torch", **options)
    check_product(tp, on_graph=on_graph, dims=(in1.dim, in2.dim, tp.weight_numel))


@pytest.mark.parametrize("on_graph", [False, True])
@pytest.mark.parametrize("method", ["cg", "so2"])
def test_products_with_weights_per_path(method: str, on_graph: bool) -> None:
    tp = ChannelwiseTensorProduct(
        IRREPS, "0e+1o+2e", IRREPS, method=method, backend="torch", shared_weights=True
    )
    dims = 18, 9 if method == "cg" else 3, tp.weight_numel
    check_product(tp, on_graph=on_graph, dims=dims)


def test_frozen_path_gate() -> None:
    gate = PathGate(ChannelwiseTensorProduct(IRREPS, "0e+1o", IRREPS, backend="torch")).double()
    gate.freeze()
    check_product(gate, on_graph=True, dims=(18, 4, gate.tp.weight_numel))


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize(
    "make",
    [
        lambda layout: Linear(IRREPS, "3x0e+2x1o", biases=True, layout=layout),
        lambda layout: Gate(
            "6x0e", [torch.tanh], "2x0e", [torch.sigmoid], "1x1o+1x2e", layout=layout
        ),
        lambda layout: TensorReadout(IRREPS, "ij=ji", layout=layout),
    ],
    ids=["Linear", "Gate", "TensorReadout"],
)
def test_modules_of_features(make: Callable[[str], Any], layout: str) -> None:
    module = make(layout).double()
    check(lambda x: module(x), (3, module.irreps_in.dim))


@pytest.mark.parametrize("method", ["cg", "gaunt", "gaunt_iterated"])
def test_symmetric_contraction(method: Any) -> None:
    contraction = SymmetricContraction("2x0e+2x1o", "2x0e+2x1o", 2, 2, method=method).double()
    check(lambda x: contraction(x, ELEMENT), (3, 8))


def test_readout_of_graphs() -> None:
    readout = TensorReadout(IRREPS, "ij=ji").double()
    check(lambda x: readout(x, torch.tensor([0, 0, 1]), 2), (3, 18))


def test_spherical_harmonics() -> None:
    harmonics = SphericalHarmonics(2)
    check(lambda vectors: harmonics(vectors), (4, 3))
