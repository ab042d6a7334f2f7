"""The general tensor product against e3nn 0.6, its definition, and the properties of a product."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor

from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.tensor_product import _torch as fast
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import Layout, to_layout
from eqtp.problem import Mode, TensorProductProblem
from eqtp.so3 import rand_matrix, wigner_D

TOLERANCES = {
    "float64": 1e-12,  # the bar: relative to the largest element; 4e-15 is typical
    "second": 1e-11,  # the bar of second gradients
    "equivariance": 1e-11,  # wigner_D at l = 3 adds rounding of its own
    "float32": 2e-6,  # the bar; sums of at most a few dozen terms
    "float32 second": 1e-5,  # the bar
}

MODES: tuple[Mode, ...] = ("uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw")
NUM_PRODUCTS = 220


@dataclass(frozen=True)
class Case:
    """A product as e3nn and eqtp take it."""

    irreps_in1: Irreps
    irreps_in2: Irreps
    irreps_out: Irreps
    instructions: list[tuple[Any, ...]]
    irrep_normalization: Any
    path_normalization: Any
    shared: bool

    @property
    def problem(self) -> TensorProductProblem:
        return TensorProductProblem.from_instructions(
            self.irreps_in1,
            self.irreps_in2,
            self.irreps_out,
            self.instructions,
            irrep_normalization=self.irrep_normalization,
            path_normalization=self.path_normalization,
        )


def random_case(seed: int, modes: tuple[Mode, ...] = MODES) -> Case:
    """A random product: mixed modes, odd and zero multiplicities, parities, shared blocks."""
    rng = random.Random(seed)
    lmax = 6 if seed % 20 == 0 else 2
    in1: list[Any] = []
    in2: list[Any] = []
    out: list[Any] = []
    instructions = []

    def block(blocks: list[Any], mul: int, degree: int, parity: int) -> int:
        item = (mul, (degree, parity))
        if item in blocks and rng.random() < 0.7:
            return blocks.index(item)
        blocks.append(item)
        return len(blocks) - 1

    for _ in range(rng.randint(1, 5)):
        mode = rng.choice(modes)
        mul1 = rng.choice([0, 1, 1, 2, 2, 3, 3, 5, 5, 7])
        mul2 = {
            "uvw": rng.choice([1, 2, 3]),
            "uvu": rng.choice([1, 1, 3]),
            "uvv": rng.choice([1, 4]),
            "uvuv": rng.choice([1, 2, 7]),
        }.get(mode, mul1)
        mul3 = {
            "uvw": rng.choice([1, 2, 5]),
            "uvu": mul1,
            "uvv": mul2,
            "uuw": rng.choice([1, 3]),
            "uuu": mul1,
            "uvuv": mul1 * mul2,
            "uvu<v": mul1 * (mul1 - 1) // 2,
            "u<vw": rng.choice([1, 4]),
        }[mode]
        l1, l2 = rng.randint(0, lmax), rng.randint(0, lmax)
        l3 = rng.randint(abs(l1 - l2), min(l1 + l2, max(lmax, abs(l1 - l2))))
        p1, p2 = rng.choice([1, -1]), rng.choice([1, -1])
        must_have = mode in ("uvw", "u<vw") or (mode == "uuw" and mul3 != 1)
        instructions.append(
            (
                block(in1, mul1, l1, p1),
                block(in2, mul2, l2, p2),
                block(out, mul3, l3, p1 * p2),
                mode,
                must_have or rng.random() < 0.7,
                rng.choice([1.0, 0.5, 2.0]),
            )
        )
    return Case(
        Irreps(in1),
        Irreps(in2),
        Irreps(out),
        instructions,
        rng.choice(["component", "norm", "none"]),
        rng.choice(["element", "path", "none"]),
        rng.random() < 0.5,
    )


def operands(problem: TensorProductProblem, rows: int, shared: bool) -> list[Tensor]:
    """Random x1, x2 and, when the problem has weights, weight, all with gradients."""
    shapes: list[tuple[int, ...]] = [
        (rows, problem.irreps_in1.dim),
        (rows, problem.irreps_in2.dim),
    ]
    if problem.weight_numel > 0:
        shapes.append((problem.weight_numel,) if shared else (rows, problem.weight_numel))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def run(tensors: list[Tensor], problem: TensorProductProblem, **options: Any) -> Tensor:
    weight = tensors[2] if len(tensors) > 2 else None
    return tensor_product(tensors[0], tensors[1], weight, problem, **options)


def value_and_gradients(out: Tensor, inputs: list[Tensor], direction: Tensor) -> list[Tensor]:
    if not out.requires_grad:  # e3nn's constant zero where every path is empty
        return [out, *map(torch.zeros_like, inputs)]
    grads = torch.autograd.grad(out, inputs, direction, allow_unused=True, materialize_grads=True)
    return [out, *grads]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, expected, strict=True):
        scale = b.abs().max().item() if b.numel() > 0 else 0.0
        torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("seed", range(NUM_PRODUCTS))
def test_matches_e3nn(seed: int) -> None:
    """Values and gradients of the definition and the kernels, in both layouts."""
    case = random_case(seed)
    problem = case.problem
    rival = o3.TensorProduct(
        case.irreps_in1,
        case.irreps_in2,
        case.irreps_out,
        case.instructions,
        irrep_normalization=case.irrep_normalization,
        path_normalization=case.path_normalization,
        internal_weights=False,
        shared_weights=case.shared,
        _optimize_einsums=False,
    )
    assert problem.weight_numel == rival.weight_numel
    inputs = operands(problem, 4, case.shared)
    no_weight = torch.zeros((0,) if case.shared else (4, 0))
    expected_out = rival(*inputs) if len(inputs) == 3 else rival(*inputs, no_weight)
    direction = torch.randn_like(expected_out)
    expected = value_and_gradients(expected_out, inputs, direction)
    backends: list[tuple[Any, Layout]] = [
        ("reference", "mul_ir"), ("torch", "mul_ir"), ("torch", "ir_mul"), ("cpu", "mul_ir"),
        ("cpu", "ir_mul"),
    ]  # fmt: skip
    for backend, layout in backends:
        x1 = to_layout(inputs[0], problem.irreps_in1, "mul_ir", layout)
        x2 = to_layout(inputs[1], problem.irreps_in2, "mul_ir", layout)
        out = run([x1, x2, *inputs[2:]], problem, backend=backend, layout=layout)
        out = to_layout(out, problem.irreps_out, layout, "mul_ir")
        got = value_and_gradients(out, inputs, direction)
        assert_close(got, expected, TOLERANCES["float64"])


def second_gradients(
    product: Callable[..., Tensor], inputs: list[Tensor], directions: list[Tensor]
) -> list[Tensor]:
    """Value, first gradients, and gradients of theirs along directions."""
    out = product(*inputs[:-1])
    if not out.requires_grad:
        return [out]
    options = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(out, inputs[:-1], inputs[-1], create_graph=True, **options)
    second = torch.autograd.grad(first, inputs, directions, **options)
    return [out, *first, *second]


@pytest.mark.parametrize("seed", range(NUM_PRODUCTS))
def test_second_gradients_and_float32(seed: int) -> None:
    """Rows and graphs, more than a tile of them, against the definition in float64."""
    case = random_case(seed)
    problem, rows = case.problem, 19
    graph = Graph(torch.arange(rows) % 3, torch.arange(rows) // 7, 3, 4) if seed % 2 else None
    inputs = operands(problem, rows, case.shared)
    if graph is not None:
        inputs[0] = torch.randn(graph.num_src, problem.irreps_in1.dim, requires_grad=True)
    num_dst = rows if graph is None else graph.num_dst
    inputs.append(torch.randn(num_dst, problem.irreps_out.dim, requires_grad=True))
    directions = [torch.randn(x.shape) for x in inputs[:-1]]

    def product(backend: Any) -> Callable[..., Tensor]:
        return lambda *x: run(list(x), problem, graph=graph, backend=backend)

    single = [x.detach().float().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in single]
    rounded = [v.float() for v in directions]
    expected = second_gradients(product("reference"), inputs, directions)
    expected32 = second_gradients(product("reference"), exact, [v.double() for v in rounded])
    first = len(inputs)
    for backend in ("cpu", "torch"):
        got = second_gradients(product(backend), inputs, directions)
        assert_close(got[:first], expected[:first], TOLERANCES["float64"])
        assert_close(got[first:], expected[first:], TOLERANCES["second"])
        got = [x.double() for x in second_gradients(product(backend), single, rounded)]
        assert_close(got[:first], expected32[:first], TOLERANCES["float32"])
        assert_close(got[first:], expected32[first:], TOLERANCES["float32 second"])


def test_random_products_cover_everything() -> None:
    """The products above mix modes and hold every mode, weighted and not, many times."""
    cases = [random_case(seed) for seed in range(NUM_PRODUCTS)]
    for mode in MODES:
        assert sum(any(ins[3] == mode for ins in case.instructions) for case in cases) >= 40
    assert sum(len({ins[3] for ins in case.instructions}) > 1 for case in cases) >= 100
    assert sum(not ins[4] for case in cases for ins in case.instructions) >= 50
    assert sum(0 in [block.mul for block in case.irreps_in1] for case in cases) >= 20
    assert max(ir.l for case in cases for _, ir in case.irreps_out) >= 6
    assert {case.irrep_normalization for case in cases} == {"component", "norm", "none"}
    assert {case.path_normalization for case in cases} == {"element", "path", "none"}


SMALL: dict[str, tuple[str, str, str, list[tuple[Any, ...]]]] = {
    "uvw": ("2x0e+1x1o", "1x1o+2x0e", "2x1o", [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True)]),
    "uvu": ("2x1o", "1x1o+2x0e", "2x1o+2x0e", [(0, 1, 0, "uvu", True), (0, 0, 1, "uvu", False)]),
    "uvv": ("1x1o+2x0e", "2x1o", "2x1o+2x0e", [(1, 0, 0, "uvv", True), (0, 0, 1, "uvv", False)]),
    "uuw": ("2x1o", "2x1o", "3x0e+1x1e", [(0, 0, 0, "uuw", True), (0, 0, 1, "uuw", False)]),
    "uuu": ("2x1o", "2x1o", "2x0e+2x1e", [(0, 0, 0, "uuu", True), (0, 0, 1, "uuu", False)]),
    "uvuv": ("2x1o", "2x0e", "4x1o", [(0, 0, 0, "uvuv", True), (0, 0, 0, "uvuv", False)]),
    "uvu<v": ("3x1o", "3x1o", "3x1e+3x0e", [(0, 0, 0, "uvu<v", True), (0, 0, 1, "uvu<v", False)]),
    "u<vw": ("3x1o", "3x1o", "2x1e", [(0, 0, 0, "u<vw", True)]),
    "mixed": ("2x1o", "1x1o+2x0e", "2x0e+3x1o+2x1o",
              [(0, 0, 0, "uvu", False), (0, 1, 1, "uvw", True), (0, 1, 2, "uuu", True)]),
}  # fmt: skip


def small(name: str) -> TensorProductProblem:
    return TensorProductProblem.from_instructions(*SMALL[name])


def small_graph() -> Graph:
    """Unsorted, bipartite, with a receiver that no edge reaches and a double edge."""
    return Graph(torch.tensor([1, 0, 1, 1]), torch.tensor([3, 0, 3, 1]), num_src=2, num_dst=4)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_row"])
@pytest.mark.parametrize("with_graph", [False, True], ids=["rows", "graph"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_gradgradcheck(name: str, shared: bool, with_graph: bool, backend: Any) -> None:
    problem = small(name)
    graph = small_graph() if with_graph else None
    inputs = operands(problem, 4 if with_graph else 2, shared)
    if graph is not None:
        inputs[0] = torch.randn(graph.num_src, problem.irreps_in1.dim, requires_grad=True)

    def function(*tensors: Tensor) -> Tensor:
        return run(list(tensors), problem, graph=graph, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["mixed", "uuw"])
def test_third_derivatives(name: str, backend: Any) -> None:
    problem = small(name)

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = run(list(tensors), problem, backend=backend)
        return torch.autograd.grad((out * out).sum(), tensors, create_graph=True)

    inputs = operands(problem, 2, shared=False)
    assert torch.autograd.gradgradcheck(gradients, inputs, fast_mode=True)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_needed_gradients(name: str) -> None:
    """Every subset of operands with gradients gives the gradients of the full set."""
    problem = small(name)
    inputs = operands(problem, 3, shared=False)
    out = run(inputs, problem)
    expected = torch.autograd.grad(out.square().sum(), inputs)
    for subset in range(1, 2 ** len(inputs)):
        chosen = [i for i in range(len(inputs)) if subset >> i & 1]
        tensors = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(inputs)]
        out = run(tensors, problem)
        got = torch.autograd.grad(out.square().sum(), [tensors[i] for i in chosen])
        assert_close(list(got), [expected[i] for i in chosen], TOLERANCES["float64"])


def graphs() -> dict[str, Graph]:
    src, dst = torch.randint(0, 5, (40,)), torch.randint(0, 5, (40,))
    order = torch.argsort(dst, stable=True)
    empty = torch.zeros(0, dtype=torch.int64)
    return {
        "unsorted": Graph(src, dst, 5),
        "sorted": Graph(src[order], dst[order], 5),
        "int32": Graph(src.int(), dst.int(), 5),
        "isolated": Graph(src.clamp(max=2), dst.clamp(min=1), 8),
        "bipartite": Graph(src, torch.randint(0, 3, (40,)), 5, 3),
        "no_edges": Graph(empty, empty, 5, 4),
        "no_nodes": Graph(empty, empty, 0),
    }


@pytest.mark.parametrize("name", ["uvw", "uvv", "uvu<v", "mixed"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_row"])
@pytest.mark.parametrize(
    "kind", ["unsorted", "sorted", "int32", "isolated", "bipartite", "no_edges", "no_nodes"]
)
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_graph_is_gather_product_sum(name: str, shared: bool, kind: str, backend: Any) -> None:
    problem, graph = small(name), graphs()[kind]
    inputs = operands(problem, graph.num_edges, shared)
    inputs[0] = torch.randn(graph.num_src, problem.irreps_in1.dim, requires_grad=True)
    rows = run([inputs[0][graph.edge_src.long()], *inputs[1:]], problem, backend="reference")
    expected_out = torch.zeros(graph.num_dst, problem.irreps_out.dim)
    expected_out = expected_out.index_add(0, graph.edge_dst.long(), rows)
    direction = torch.randn_like(expected_out)
    out = run(inputs, problem, graph=graph, backend=backend)
    assert out.shape == expected_out.shape
    got = value_and_gradients(out, inputs, direction)
    expected = value_and_gradients(expected_out, inputs, direction)
    assert_close(got, expected, TOLERANCES["float64"])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_row"])
@pytest.mark.parametrize("with_graph", [False, True], ids=["rows", "graph"])
def test_chunks_do_not_matter(
    shared: bool, with_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plain torch; the chunks of the C++ kernel are whole tiles, see below."""
    problem = small("mixed")
    graph = graphs()["unsorted"] if with_graph else None
    inputs = operands(problem, 40, shared)
    if graph is not None:
        inputs[0] = torch.randn(graph.num_src, problem.irreps_in1.dim, requires_grad=True)
    results = []
    for rows in (1, 7, 40, 1000):
        monkeypatch.setattr(fast, "chunk_rows", lambda *_, rows=rows: rows)
        out = run(inputs, problem, graph=graph, backend="torch")
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        second = torch.autograd.grad(total, inputs)
        results.append([out, *first, *second])
    for other in results[1:]:
        assert_close(other, results[0], TOLERANCES["float64"])


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per_row"])
@pytest.mark.parametrize("with_graph", [False, True], ids=["rows", "graph"])
def test_any_number_of_threads_gives_the_same_bits(shared: bool, with_graph: bool) -> None:
    """And so does a second run; a hub's edges are spread over several chunks."""
    problem, rows = small("mixed"), 203
    graph = None
    if with_graph:
        graph = Graph(torch.randint(0, 9, (rows,)), torch.randint(0, 9, (rows,)).clamp(min=6), 9)
    inputs = operands(problem, rows, shared)
    if graph is not None:
        inputs[0] = torch.randn(graph.num_src, problem.irreps_in1.dim, requires_grad=True)
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3, 2, 2):
            torch.set_num_threads(number)
            out = run(inputs, problem, graph=graph, backend="cpu")
            first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
            total = torch.stack([g.square().sum() for g in first]).sum()
            results.append([out, *first, *torch.autograd.grad(total, inputs)])
    finally:
        torch.set_num_threads(threads)
    expected = run(inputs, problem, graph=graph, backend="reference")
    assert_close(results[0][:1], [expected], TOLERANCES["float64"])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_is_left_to_torch() -> None:
    problem = small("mixed")
    inputs = [x.detach().bfloat16() for x in operands(problem, 3, True)]
    assert run(inputs, problem).dtype == torch.bfloat16
    with pytest.raises(NotImplementedError, match="computes in float32 or float64"):
        run(inputs, problem, backend="cpu")


def representation(irreps: Irreps, rotation: Tensor, inversion: bool) -> Tensor:
    blocks = []
    for mul, ir in irreps:
        sign = ir.p if inversion else 1
        blocks += [sign * wigner_D(ir.l, rotation)] * mul
    matrix: Tensor = torch.block_diag(*blocks)
    return matrix


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_equivariance(seed: int) -> None:
    case = random_case(seed + 1000)
    problem = case.problem
    inputs = operands(problem, 3, case.shared)
    rotation = rand_matrix(dtype=torch.float64)
    d1, d2, d_out = (
        representation(irreps, rotation, seed % 2 == 0)
        for irreps in (problem.irreps_in1, problem.irreps_in2, problem.irreps_out)
    )
    rotated_in = run([inputs[0] @ d1.T, inputs[1] @ d2.T, *inputs[2:]], problem)
    rotated_out = run(inputs, problem) @ d_out.T
    assert_close([rotated_in], [rotated_out], TOLERANCES["equivariance"])


@pytest.mark.parametrize("name", SMALL)
def test_linear_in_every_operand(name: str) -> None:
    problem = small(name)
    inputs = operands(problem, 3, shared=False)
    for slot in range(2):
        other = torch.randn_like(inputs[slot])
        mixed, right = list(inputs), list(inputs)
        mixed[slot], right[slot] = inputs[slot] - 2.0 * other, other
        expected = run(inputs, problem) - 2.0 * run(right, problem)
        assert_close([run(mixed, problem)], [expected], TOLERANCES["float64"])


def test_float32_is_close_to_float64() -> None:
    problem = TensorProductProblem.from_instructions(
        "16x0e+16x1o", "0e+1o+2e", "16x0e+16x1o",
        [(0, 0, 0, "uvw", True), (1, 1, 0, "uvw", True), (1, 2, 1, "uvu", True)],
    )  # fmt: skip
    inputs = operands(problem, 50, shared=False)
    expected = run(inputs, problem)
    got = run([x.float() for x in inputs], problem)
    assert got.dtype == torch.float32
    assert_close([got.double()], [expected], TOLERANCES["float32"])


def test_does_not_write_to_its_operands() -> None:
    problem = small("mixed")
    inputs = operands(problem, 3, shared=False)
    before = [x.detach().clone() for x in inputs]
    torch.autograd.grad(run(inputs, problem).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_operands_need_not_be_contiguous() -> None:
    problem = small("mixed")
    inputs = [x.detach() for x in operands(problem, 3, shared=False)]
    strided = [x.t().contiguous().t() for x in inputs]
    assert torch.equal(run(strided, problem), run(inputs, problem))


def test_a_product_without_paths_is_zero() -> None:
    problem = TensorProductProblem.from_instructions("2x0e", "1x1o", "2x1o", [])
    assert torch.equal(run(operands(problem, 3, True), problem), torch.zeros(3, 6))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "columns": ({"x2": torch.zeros(4, 8)}, ValueError,
                r"x2 must have 5 columns \(irreps_in2='1x1o\+2x0e'\), got shape \(4, 8\)"),
    "dimensions": ({"x1": torch.zeros(2, 4, 6)}, ValueError, "x1 must have 6 columns"),
    "rows": ({"x1": torch.zeros(3, 6)}, ValueError, "x1 and x2 must have as many rows"),
    "dtype": ({"x2": torch.zeros(4, 5, dtype=torch.float32)}, TypeError, "share dtype and device"),
    "integers": ({"x1": torch.zeros(4, 6, dtype=torch.int64)}, TypeError, "floating-point"),
    "not_a_tensor": ({"x1": [[0.0] * 6] * 4}, TypeError, "x1 must be a torch.Tensor, got list"),
    "weight_missing": ({"weight": None}, ValueError, "weight must be given: the product has 14"),
    "weight_columns": ({"weight": torch.zeros(13)}, ValueError, r"weight must have shape \[14\]"),
    "weight_rows": ({"weight": torch.zeros(3, 14)}, ValueError, r"or \[4, 14\] \(one per row\)"),
    "weight_dtype": ({"weight": torch.zeros(14).float()}, TypeError, "x1 and weight must share"),
    "device": ({"x2": torch.zeros(4, 5, device="meta")}, TypeError, "share dtype and device"),
    "graph": ({"graph": small_graph()}, ValueError, r"x1 must have 2 rows \(senders\)"),
    "layout": ({"layout": "irmul"}, ValueError, "layout must be one of"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of"),
    "no_kernel": ({"backend": "triton"}, NotImplementedError, "runs on cuda tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_rejects_bad_input(name: str) -> None:
    change, error, message = BAD[name]
    arguments: dict[str, Any] = {
        "x1": torch.zeros(4, 6), "x2": torch.zeros(4, 5), "weight": torch.zeros(14)
    }  # fmt: skip
    tensor_product(**arguments, problem=small("mixed"))
    with pytest.raises(error, match=message):
        tensor_product(**{**arguments, **change}, problem=small("mixed"))


def test_rejects_weights_of_a_product_without_weights() -> None:
    problem = TensorProductProblem.from_instructions(
        "2x1o", "2x1o", "2x0e", [(0, 0, 0, "uuu", False)]
    )
    with pytest.raises(ValueError, match="weight must be None for a product without weights"):
        tensor_product(torch.zeros(3, 6), torch.zeros(3, 6), torch.zeros(2), problem)
