"""method="gaunt" and "gaunt_full": the master test, weights, variance, refusals."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp import Graph, Irreps, TensorProduct
from eqtp.kernels.tensor_product import reference as definition
from eqtp.layout import to_layout
from eqtp.methods import get_method
from eqtp.so3 import rand_matrix, spherical_harmonics, wigner_D

TOLERANCES = {
    "float64": 1e-12,  # the bar, relative to the largest element; 1e-14 is typical
    "float32": 1e-5,  # the bar
    "variance": 1e-12,  # the bar; analytic
}
EVALUATIONS = ("direct", "grid", "fourier")


def natural(lmax: int, mul: int) -> str:
    return "+".join(f"{mul}x{l}{'eo'[l % 2]}" for l in range(lmax + 1))


def complete(in1: str, in2: str, out: str, mode: str, method: str, weights: bool = True) -> Any:
    """Every path of a method among the blocks."""
    i1, i2, i3 = Irreps(in1), Irreps(in2), Irreps(out)
    return [
        (a, b, c, mode, weights)
        for (a, (_, ir1)), (b, (_, ir2)), (c, (_, ir3)) in itertools.product(
            enumerate(i1), enumerate(i2), enumerate(i3)
        )
        if ir1.p * ir2.p == ir3.p
        and get_method(method).has_path(ir1.l, ir2.l, ir3.l)
        and (mode != "uvu" or i1[a].mul == i3[c].mul)
    ]


@dataclass(frozen=True)
class Case:
    in1: str
    in2: str
    out: str
    mode: str
    method: str = "gaunt"
    weights: bool = True

    def make(self, **options: Any) -> TensorProduct:
        instructions = complete(self.in1, self.in2, self.out, self.mode, self.method, self.weights)
        options.setdefault("method", self.method)
        return TensorProduct(self.in1, self.in2, self.out, instructions, **options)


BOTH = "2x0e+2x0o+2x1e+2x1o+2x2e+2x2o"
EVEN = "2x0e+2x1e+2x2e"
CASES = {
    "interaction": Case(natural(2, 3), natural(2, 3), natural(2, 3), "uuu"),
    "unweighted": Case(natural(2, 3), natural(2, 3), natural(2, 3), "uuu", weights=False),
    "convolution": Case(natural(2, 3), natural(3, 1), natural(2, 3), "uvu"),
    "several channels": Case(natural(1, 3), natural(2, 2), natural(2, 3), "uvu"),
    "uvv": Case(natural(1, 2), natural(2, 3), natural(2, 3), "uvv"),
    "uvw": Case(natural(1, 2), natural(2, 3), natural(2, 4), "uvw"),
    "uuw": Case(natural(1, 3), natural(2, 3), natural(2, 4), "uuw"),
    "uvuv": Case(natural(1, 2), natural(1, 3), natural(2, 6), "uvuv"),
    "repeated blocks": Case("2x1o+2x0e+2x1o", "2x1o+2x0e", "2x1o+2x2e+2x0e+2x2e", "uuu"),
    "unequal": Case("3x0e+2x1o", "0e+1o", "3x0e+2x1o+3x1o+2x2e", "uvu"),
    "both parities": Case(BOTH, BOTH, BOTH, "uuu"),
    "one parity": Case(EVEN, EVEN, EVEN, "uuu"),
    "full one parity": Case(EVEN, EVEN, EVEN, "uuu", "gaunt_full"),
    "full": Case(natural(2, 3), natural(2, 3), "3x0e+3x1e+3x1o+3x2e+3x2o", "uuu", "gaunt_full"),
    "full both parities": Case(BOTH, BOTH, BOTH, "uuu", "gaunt_full"),
    "full convolution": Case(BOTH, natural(2, 1), BOTH, "uvu", "gaunt_full"),
    "full scalars": Case("3x0e+3x1o", "3x0e", "3x0e+3x1o", "uuu", "gaunt_full"),
}


def evaluations(case: Case) -> list[str]:
    return [name for name in EVALUATIONS if name != "fourier" or case.method == "gaunt"]


GRID = [(name, e) for name, case in CASES.items() for e in evaluations(case)]


def operands(tp: TensorProduct, weights: str, graph: Graph | None, rows: int = 5) -> list[Tensor]:
    rows1 = rows if graph is None else graph.num_src
    rows2 = rows if graph is None else graph.num_edges
    made = [torch.randn(rows1, tp.irreps_in1.dim), torch.randn(rows2, tp.irreps_in2.dim)]
    if tp.weight_numel:
        shape = (tp.weight_numel,) if weights == "shared" else (rows2, tp.weight_numel)
        made.append(torch.randn(shape))
    return [x.requires_grad_() for x in made]


def expected(tp: TensorProduct, x: list[Tensor], graph: Graph | None) -> Tensor:
    """The "cg" definition with the effective path weights, factors where there are none."""
    problem = tp.problem
    if len(x) > 2:
        weight = tp.effective_path_weights(x[2])
        return definition.tensor_product(x[0], x[1], weight, problem, graph=graph, layout=tp.layout)
    evaluator: Any = tp.evaluator
    return definition.tensor_product(
        x[0], x[1], None, evaluator.weights.cg_problem, graph=graph, layout=tp.layout
    )


def derivatives(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """A nonlinear function's value, gradients and second gradients."""
    grads = torch.autograd.grad((out * out).sum(), inputs, create_graph=True)
    value = torch.stack([((grad + 0.1) ** 2).sum() for grad in grads]).sum()
    return [out, *grads, *torch.autograd.grad(value, inputs)]


def assert_close(ours: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, exact, strict=True):
        scale = max(float(b.detach().abs().max()), 1e-3) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale)


def a_graph(edges: int = 11) -> Graph:
    return Graph(torch.randint(6, (edges,)), torch.randint(4, (edges,)), 6, 4)


@pytest.mark.parametrize(
    ("form", "weights", "layout"),
    [
        ("rows", "shared", "mul_ir"),
        ("rows", "per row", "ir_mul"),
        ("graph", "shared", "ir_mul"),
        ("graph", "per row", "mul_ir"),
    ],
)
@pytest.mark.parametrize(("name", "evaluation"), GRID)
def test_master(name: str, evaluation: str, form: str, weights: str, layout: str) -> None:
    # The plain ops but for two cases; "direct" compiles what method="cg" does, with its own tests.
    compiled = name == "interaction" or (name == "full convolution" and evaluation != "direct")
    tp = CASES[name].make(
        evaluation=evaluation,
        layout=layout,
        internal_weights=False,
        backend="auto" if compiled else "torch",
    )
    assert tp.evaluator.evaluation == evaluation  # type: ignore[attr-defined]
    graph = a_graph() if form == "graph" else None
    x = operands(tp, weights, graph)
    ours = tp(*x, graph=graph)
    exact = expected(tp, x, graph)
    assert_close(derivatives(ours, x), derivatives(exact, x), TOLERANCES["float64"])


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("name", ["interaction", "convolution", "uvw", "uvuv"])
def test_passes_are_summed(name: str, evaluation: str) -> None:
    tp = CASES[name].make(evaluation=evaluation, passes=3, internal_weights=False)
    one = CASES[name].make(evaluation=evaluation, internal_weights=False)
    assert tp.weight_numel == 3 * one.weight_numel
    x = operands(tp, "per row", None)
    ours, exact = tp(*x), expected(tp, x, None)
    assert_close(derivatives(ours, x), derivatives(exact, x), TOLERANCES["float64"])
    each = [one(x[0], x[1], w) for w in x[2].chunk(3, dim=-1)]
    assert_close([ours], [torch.stack(each).sum(0) / math.sqrt(3)], TOLERANCES["float64"])


def test_labels_do_not_change_the_work() -> None:
    """Natural irreps and those of one parity are one function each: one product for all paths."""
    flops = []
    for irreps in (natural(2, 2), EVEN):
        evaluator: Any = Case(irreps, irreps, irreps, "uuu").make(evaluation="grid").evaluator
        flops.append(evaluator.flops["grid"])
    assert flops[0] == flops[1]


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_degrees_6_6_12(evaluation: str) -> None:
    """The bar's largest product."""
    case = Case(natural(6, 1), natural(6, 1), natural(12, 1), "uuu")
    tp = case.make(evaluation=evaluation, internal_weights=False)
    x = operands(tp, "shared", None, rows=2)
    ours, exact = tp(*x), expected(tp, x, None)
    assert_close(derivatives(ours, x), derivatives(exact, x), TOLERANCES["float64"])


@pytest.mark.parametrize("name", ["full both parities", "both parities"])
def test_all_degrees_6_with_both_parities(name: str) -> None:
    every = "+".join(f"0{p}" if l == 0 else f"{l}{p}" for l in range(7) for p in "eo")
    case = Case(every, natural(6, 1), every, "uuu", CASES[name].method)
    tp = case.make(evaluation="grid", internal_weights=False)
    x = operands(tp, "shared", None, rows=2)
    assert_close([tp(*x)], [expected(tp, x, None)], TOLERANCES["float64"])


@pytest.mark.parametrize("name", CASES)
def test_unit_variance_per_block(name: str) -> None:
    """Analytic: with independent operands and weights of unit variance."""
    for passes in (1, 3) if CASES[name].weights else (1,):
        tp = CASES[name].make(passes=passes)
        evaluator: Any = tp.evaluator
        variance = [0.0] * len(tp.irreps_out)
        for path in tp.problem.paths:
            dim = tp.irreps_out[path.i_out].ir.dim
            share = evaluator.weights.constant(path) ** 2 / dim * tp.problem.num_elements(path)
            variance[path.i_out] += passes * share
        for value in variance:
            assert abs(value - 1) < TOLERANCES["variance"]


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("name", ["both parities", "full both parities", "full convolution"])
def test_equivariance(name: str, improper: bool) -> None:
    tp = CASES[name].make(evaluation="grid")
    x1, x2 = operands(tp, "shared", None)[:2]
    rotation = rand_matrix()

    def rotate(x: Tensor, irreps: Irreps) -> Tensor:
        blocks = [
            (ir.p if improper else 1) * wigner_D(ir.l, rotation)
            for mul, ir in irreps
            for _ in range(mul)
        ]
        matrix: Tensor = torch.block_diag(*blocks)
        return x @ matrix.T

    rotated = tp(rotate(x1, tp.irreps_in1), rotate(x2, tp.irreps_in2))
    exact = rotate(tp(x1, x2), tp.irreps_out)
    assert_close([rotated], [exact], TOLERANCES["float64"])


@pytest.mark.parametrize("name", ["interaction", "full both parities"])
def test_float32(name: str) -> None:
    tp = CASES[name].make(evaluation="grid", internal_weights=False)
    x = operands(tp, "per row", None)
    ours = tp(*(t.float() for t in x))
    assert ours.dtype == torch.float32
    assert_close([ours], [tp(*x)], TOLERANCES["float32"])


def test_layouts_agree() -> None:
    case = CASES["convolution"]
    one, other = (case.make(layout=layout, evaluation="grid") for layout in ("mul_ir", "ir_mul"))
    other.load_state_dict(one.state_dict())
    x1, x2 = operands(one, "shared", None)[:2]
    ours = other(to_layout(x1, one.irreps_in1, "mul_ir", "ir_mul"), x2)
    ours = to_layout(ours, one.irreps_out, "ir_mul", "mul_ir")
    assert_close([ours], [one(x1, x2)], TOLERANCES["float64"])


def test_edges_along_the_polar_axis() -> None:
    """Harmonics of +-y, where angles have no meaning, and their gradients."""
    tp = CASES["full convolution"].make(evaluation="grid")
    weight = tp.weight
    assert weight is not None
    vectors = torch.tensor([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]]).requires_grad_()
    x1 = torch.randn(2, tp.irreps_in1.dim)
    results = [
        function(x1, spherical_harmonics(2, vectors))
        for function in (tp, lambda *x: expected(tp, [*x, weight], None))
    ]
    gradients = [torch.autograd.grad(out.pow(2).sum(), vectors) for out in results]
    assert_close([results[0], *gradients[0]], [results[1], *gradients[1]], TOLERANCES["float64"])


def test_radial_stands_for_weights() -> None:
    tp = CASES["convolution"].make(evaluation="grid", shared_weights=False)
    graph = a_graph()
    x1, x2 = operands(tp, "per row", graph)[:2]
    hidden, matrix = torch.randn(11, 4), torch.randn(4, tp.weight_numel)
    ours = tp(x1, x2, radial=(hidden, matrix), graph=graph)
    assert_close([ours], [tp(x1, x2, hidden @ matrix, graph=graph)], TOLERANCES["float64"])


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_no_edges_and_no_rows(evaluation: str) -> None:
    tp = CASES["convolution"].make(evaluation=evaluation, internal_weights=False)
    graph = a_graph(0)
    x = operands(tp, "per row", graph)
    out = tp(*x, graph=graph)
    assert out.shape == (4, tp.irreps_out.dim)
    assert not out.any()
    assert tp(*operands(tp, "per row", None, rows=0)).shape == (0, tp.irreps_out.dim)


def test_some_paths_only() -> None:
    """A true subset is evaluated directly, and refused by the others by name."""
    case = CASES["interaction"]
    instructions = complete(case.in1, case.in2, case.out, "uuu", "gaunt")[:-1]
    arguments = (case.in1, case.in2, case.out, instructions)
    tp = TensorProduct(*arguments, method="gaunt", internal_weights=False)
    assert tp.evaluator.evaluation == "direct"  # type: ignore[attr-defined]
    x = operands(tp, "per row", None)
    assert_close([tp(*x)], [expected(tp, x, None)], TOLERANCES["float64"])
    for evaluation in ("grid", "fourier"):
        with pytest.raises(ValueError, match=r"these 1 .*\(2, 2, 2\): 2e x 2e -> 2e"):
            TensorProduct(*arguments, method="gaunt", evaluation=evaluation)


def test_prune_freezes_the_scales() -> None:
    tp = CASES["interaction"].make(evaluation="grid")
    x1, x2 = operands(tp, "shared", None)[:2]
    keep = [0, 3, 5]
    weight = tp.effective_path_weights()
    kept = torch.zeros_like(weight)
    for index in keep:
        kept[tp.problem.paths[index].weight_slice] = weight[tp.problem.paths[index].weight_slice]
    exact = definition.tensor_product(x1, x2, kept, tp.problem)
    assert_close([tp.prune(keep)(x1, x2)], [exact], TOLERANCES["float64"])


def test_explains_itself() -> None:
    text = CASES["full"].make(evaluation="grid").explain()
    assert "curl" in text
    assert "exact to degree 6" in text
    assert "asked for by name" in text
    assert "separable" in CASES["full"].make().weight_rank
    direct = CASES["interaction"].make(evaluation="direct").explain()
    assert "evaluation direct" in direct


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instructions": [(1, 1, 1, "uuu", True)], "out": "3x0e+3x1e"}, "has no path"),
        ({"instructions": [(0, 0, 0, "uvu<v", True)], "out": "3x0e"}, "takes the modes"),
        ({"instructions": [(0, 0, 0, "uuu", True, 0.0)]}, "path_weight 0"),
        (
            {"instructions": [(0, 0, 0, "uuu", True), (0, 1, 1, "uuu", False)]},
            "all instructions must have weights or none",
        ),
        ({"passes": 0}, "at least 1"),
        ({"weights": False, "passes": 2}, "are all the same"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    case = Case("3x0e+3x1o", "3x0e+3x1o", change.pop("out", "3x0e+3x1o"), "uuu")
    weights = change.pop("weights", True)
    instructions = change.pop(
        "instructions", complete(case.in1, case.in2, case.out, "uuu", "gaunt", weights)
    )
    with pytest.raises(ValueError, match=message):
        TensorProduct(case.in1, case.in2, case.out, instructions, method="gaunt", **change)


def test_fourier_refuses_odd_paths_and_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="no odd paths"):
        CASES["full"].make(evaluation="fourier")
    tp = CASES["interaction"].make(internal_weights=False)
    x1, x2, weight = operands(tp, "shared", None)
    with pytest.raises(ValueError, match="weight must be given"):
        tp(x1, x2)
    with pytest.raises(ValueError, match="weight must have shape"):
        tp(x1, x2, weight[1:])
    with pytest.raises(TypeError, match="share dtype"):
        tp(x1, x2, weight.float())
    with pytest.raises(ValueError, match="x2 must have 27 columns"):
        tp(x1, x2[:, 1:], weight)


def test_the_fourier_form_is_plain_torch() -> None:
    case = CASES["interaction"]
    assert "backend   torch" in case.make(evaluation="fourier").explain()
    with pytest.raises(NotImplementedError, match="plain torch, got backend='cpu'"):
        case.make(evaluation="fourier", backend="cpu")
