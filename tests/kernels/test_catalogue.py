"""Every backend on the tensor products of real models, against the float64 definition.

`problems.json` holds the products that the benchmarks of OpenEquivariance, FlashTP, SevenNet and
cuEquivariance run. Random products are in `test_tensor_product.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.graph import Graph
from eqtp.kernels.channelwise import channelwise_tensor_product, supports
from eqtp.kernels.channelwise.config import MAX_CONSTANTS
from eqtp.kernels.tensor_product import tensor_product
from eqtp.nn import ChannelwiseTensorProduct, FullyConnectedTensorProduct, TensorProduct
from eqtp.problem import TensorProductProblem

TOLERANCES = {  # the project's bars: values and first gradients, second gradients
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-6, 1e-5),
}

FILE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "problems.json"
COMPILED = ("roofline[1]", "4_32_1_p_sc.txt#2")  # the others are slow: code is made for each
MAX_FAST_CONSTANTS = 1000
NUM_ROWS = 21  # a whole tile and a part of one in either dtype


@lru_cache
def catalogue() -> dict[str, dict[str, Any]]:
    if not FILE.exists():
        return {}
    return {entry["label"]: entry for entry in json.loads(FILE.read_text())}


def problem_of(label: str) -> TensorProductProblem:
    entry = catalogue()[label]
    irreps = entry["irreps_in1"], entry["irreps_in2"], entry["irreps_out_arg"]
    if entry["builder"] == "CTPP":
        return ChannelwiseTensorProduct(*irreps).problem
    if entry["builder"] == "FCTPP":
        return FullyConnectedTensorProduct(*irreps).problem
    return TensorProductProblem.from_instructions(*irreps, entry["instructions"])


def labels(fast: Callable[[dict[str, Any]], bool]) -> list[Any]:
    return [
        pytest.param(label, marks=[] if fast(entry) else [pytest.mark.slow])
        for label, entry in catalogue().items()
    ]


needs_file = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")


@needs_file
def test_catalogue_is_what_it_says() -> None:
    """The problems have the number of paths, weights and constants that the file states."""
    assert len(catalogue()) == 72
    for label, entry in catalogue().items():
        problem = problem_of(label)
        assert len(problem.paths) == entry["paths"]
        assert problem.weight_numel == entry["weight_numel"]
        assert problem.irreps_out.dim == entry["dim_out"]
        assert problem.num_constants == entry["cg_nnz_sum"]


def graph() -> Graph:
    """Unsorted, with a receiver of more edges than a tile and one of none."""
    src = torch.arange(NUM_ROWS) % 4
    dst = torch.where(torch.arange(NUM_ROWS) < NUM_ROWS - 4, 2, torch.arange(NUM_ROWS) % 3)
    return Graph(src, dst, num_src=4, num_dst=5)


def operands(
    problem: TensorProductProblem, on_graph: bool, shared: bool, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """x1, x2, weight, the gradient of the result, and a direction for each of the first three."""
    num_src, num_dst = (4, 5) if on_graph else (NUM_ROWS, NUM_ROWS)
    weight = (problem.weight_numel,) if shared else (NUM_ROWS, problem.weight_numel)
    shapes: list[tuple[int, ...]] = [
        (num_src, problem.irreps_in1.dim), (NUM_ROWS, problem.irreps_in2.dim), weight
    ]  # fmt: skip
    given = [torch.randn(shape) for shape in [*shapes, (num_dst, problem.irreps_out.dim)]]
    directions = [torch.randn(shape).to(dtype) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in given], directions


def derivatives(
    product: Any, given: list[Tensor], directions: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Value and first gradients; second gradients along the directions."""
    *inputs, gradient = given
    value = product(*inputs)
    first = torch.autograd.grad(value, inputs, gradient, create_graph=True)
    second = torch.autograd.grad(first, given, directions)
    return [value, *first], list(second)


def assert_all_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error.item() < tolerance


def check(label: str, products: dict[str, Any], on_graph: bool) -> None:
    """Each product in both dtypes against the definition in float64."""
    problem = problem_of(label)
    shared = "shared_weights=True" in catalogue()[label]["note"] or "tetris" in label
    where = graph() if on_graph else None

    def definition(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        return tensor_product(x1, x2, weight, problem, graph=where, backend="reference")

    for dtype, (tolerance, tolerance_second) in TOLERANCES.items():
        given, directions = operands(problem, on_graph, shared, dtype)
        exact = [x.detach().double().requires_grad_() for x in given]
        expected = derivatives(definition, exact, [v.double() for v in directions])
        for product in products.values():
            got = derivatives(lambda *x, f=product: f(*x, problem, graph=where), given, directions)
            assert_all_close(got[0], expected[0], tolerance)
            assert_all_close(got[1], expected[1], tolerance_second)


@needs_file
@pytest.mark.parametrize("on_graph", [False, True], ids=["rows", "graph"])
@pytest.mark.parametrize("label", labels(lambda entry: entry["cg_nnz_sum"] <= MAX_FAST_CONSTANTS))
def test_general_kernels(label: str, on_graph: bool) -> None:
    """One kernel for every problem, tables of 10,530 constants included, and plain torch."""
    products = {
        backend: lambda *x, b=backend, **options: tensor_product(*x, backend=b, **options)
        for backend in ("cpu", "torch")
    }
    check(label, products, on_graph)


@needs_file
@pytest.mark.parametrize("on_graph", [False, True], ids=["rows", "graph"])
@pytest.mark.parametrize("label", labels(lambda entry: entry["label"] in COMPILED))
def test_channelwise_kernels(label: str, on_graph: bool) -> None:
    """Code made for the problem, where it is not too long, and plain torch."""
    problem = problem_of(label)
    if not supports(problem):
        pytest.skip("not a channelwise product")
    backends = ("cpu", "torch") if problem.num_constants <= MAX_CONSTANTS else ("torch",)
    products = {
        backend: lambda *x, b=backend, **options: channelwise_tensor_product(
            *x, backend=b, **options
        )
        for backend in backends
    }
    check(label, products, on_graph)


@needs_file
@pytest.mark.parametrize(
    ("label", "rows", "graphs"),
    [
        ("mace-large", "tensor_product", "channelwise"),
        ("4_32_5_p_sc.txt#3", "tensor_product", "tensor_product"),
        ("DiffDock-L=2", "tensor_product", "tensor_product"),
    ],
)
def test_module_takes_the_right_family(label: str, rows: str, graphs: str) -> None:
    entry, problem = catalogue()[label], problem_of(label)
    irreps = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
    module = TensorProduct(*irreps, problem.instructions, shared_weights=False)
    text = module.explain()
    assert module.family == graphs
    assert f"kernel    {graphs}" in text
    assert ("tensor_product without a graph" in text) == (rows != graphs)
    assert f"{entry['cg_nnz_sum']} nonzero constants" in text
    plain = TensorProduct(*irreps, problem.instructions, shared_weights=False, backend="torch")
    assert plain.family == ("channelwise" if supports(problem) else "tensor_product")
