"""method="matrix": the master test, which product runs, accidental zeros, refusals."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp import Graph, Irreps, TensorProduct
from eqtp.kernels.tensor_product import reference as definition
from eqtp.methods import get_method
from eqtp.so3 import convert, rand_matrix, wigner_D

TOLERANCES = {
    "float64": 1e-12,  # the bar, relative to the largest element; 1e-14 is typical
    "float32": 1e-5,  # the bar
    "variance": 1e-12,  # analytic
}


def natural(lmax: int, mul: int) -> str:
    return "+".join(f"{mul}x{l}{'eo'[l % 2]}" for l in range(lmax + 1))


def even(lmax: int, mul: int) -> str:
    return "+".join(f"{mul}x{l}e" for l in range(lmax + 1))


@dataclass(frozen=True)
class Case:
    in1: str
    in2: str
    out: str
    mode: str
    kinds: tuple[str, ...]
    sums: tuple[int, ...] = (0, 1)
    weights: bool = True

    @property
    def instructions(self) -> list[tuple[Any, ...]]:
        """Every path of the method of even or odd sum, or both."""
        sides = [Irreps(irreps) for irreps in (self.in1, self.in2, self.out)]
        highest = max(ir.l for side in sides for _, ir in side)
        method = get_method("matrix", highest)
        return [
            (a, b, c, self.mode, self.weights)
            for (a, one), (b, two), (c, three) in itertools.product(*map(enumerate, sides))
            if one.ir.p * two.ir.p == three.ir.p
            and (one.ir.l + two.ir.l + three.ir.l) % 2 in self.sums
            and method.has_path(one.ir.l, two.ir.l, three.ir.l)
            and (self.mode != "uvu" or one.mul == three.mul)
        ]

    def make(self, **options: Any) -> TensorProduct:
        return TensorProduct(
            self.in1, self.in2, self.out, self.instructions, method="matrix", **options
        )


BOTH = "2x0e+2x0o+2x1e+2x1o+2x2e+2x2o"
CASES = {
    "tensornet": Case(natural(2, 3), natural(2, 3), natural(2, 3), "uuu", ("anticommutator",)),
    "tensor": Case(even(2, 3), even(2, 3), even(2, 3), "uuu", ("product",)),
    "commutator": Case(even(2, 3), even(2, 3), "3x1e+3x2e", "uuu", ("commutator",), sums=(1,)),
    "tensor, even": Case(even(2, 2), even(2, 2), even(2, 2), "uuu", ("anticommutator",), (0,)),
    "unweighted": Case(
        natural(2, 3), natural(2, 3), natural(2, 3), "uuu", ("anticommutator",), weights=False
    ),
    "convolution": Case(natural(1, 3), natural(2, 1), natural(2, 3), "uvu", ("anticommutator",)),
    "uvv": Case(natural(1, 2), natural(2, 3), natural(2, 3), "uvv", ("anticommutator",)),
    "uvw": Case(natural(1, 2), natural(2, 3), natural(2, 4), "uvw", ("anticommutator",)),
    "uuw": Case(even(2, 3), even(2, 3), even(2, 4), "uuw", ("product",)),
    "uvuv": Case(natural(1, 2), natural(1, 3), natural(2, 6), "uvuv", ("anticommutator",)),
    "repeated blocks": Case(
        "2x1o+2x0e+2x1o", "2x1o+2x0e", "2x1o+2x2e+2x0e+2x2e", "uuu", ("anticommutator",)
    ),
    "5x5": Case(natural(4, 2), natural(3, 2), natural(4, 2), "uuu", ("anticommutator",)),
    "5x5 product": Case(even(3, 2), even(2, 2), even(4, 2), "uuu", ("product",)),
    "repeated tensors": Case(
        "2x2e+2x1e+2x2e", "2x1e+2x2e", "2x1e+2x0e+2x2e+2x1e", "uuu", ("product",)
    ),
    "scalars": Case("3x0e", "3x0e", "3x0e", "uuu", ("anticommutator",)),
}


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
    evaluator: Any = tp.evaluator
    problem = tp.problem if len(x) > 2 else evaluator.weights.cg_problem
    weight = tp.effective_path_weights(x[2]) if len(x) > 2 else None
    return definition.tensor_product(x[0], x[1], weight, problem, graph=graph, layout=tp.layout)


def derivatives(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """A nonlinear function's value, gradients and second gradients."""
    grads = torch.autograd.grad((out * out).sum(), inputs, create_graph=True)
    value = torch.stack([((grad + 0.1) ** 2).sum() for grad in grads]).sum()
    return [out, *grads, *torch.autograd.grad(value, inputs)]


def assert_close(ours: list[Tensor], exact: list[Tensor], kind: str = "float64") -> None:
    for a, b in zip(ours, exact, strict=True):
        scale = max(float(b.detach().abs().max()), 1e-3) if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=TOLERANCES[kind] * scale)


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
@pytest.mark.parametrize("name", CASES)
def test_master(name: str, form: str, weights: str, layout: Any) -> None:
    tp = CASES[name].make(layout=layout, internal_weights=False)
    graph = a_graph() if form == "graph" else None
    x = operands(tp, weights, graph)
    ours, exact = tp(*x, graph=graph), expected(tp, x, graph)
    assert_close(derivatives(ours, x), derivatives(exact, x))
    assert tp.family == "matrix"


@pytest.mark.parametrize("name", CASES)
def test_which_product_runs_follows_from_the_paths(name: str) -> None:
    evaluator: Any = CASES[name].make().evaluator
    assert evaluator.kinds == CASES[name].kinds


def test_it_is_the_product_of_matrices() -> None:
    """Unweighted, over the scales: (X Y + Y X) / 2 of TensorNet's 3x3 matrices."""
    tp = CASES["unweighted"].make()
    x, y = (one.detach() for one in operands(tp, "shared", None))
    irreps = str(tp.irreps_in1)
    left, right = (convert(one, irreps, "sph", "mat") for one in (x, y))
    exact = convert((left @ right + right @ left) / 2, irreps, "mat", "sph")
    evaluator: Any = tp.evaluator
    scales = torch.tensor(evaluator.weights.scales).repeat_interleave(torch.tensor([3, 9, 15]))
    assert_close([tp(x, y)], [exact * scales])


@pytest.mark.parametrize("name", CASES)
def test_unit_variance_per_block(name: str) -> None:
    tp = CASES[name].make()
    evaluator: Any = tp.evaluator
    variance = [0.0] * len(tp.irreps_out)
    for path in tp.problem.paths:
        dim = tp.irreps_out[path.i_out].ir.dim
        share = evaluator.weights.constant(path) ** 2 / dim * tp.problem.num_elements(path)
        variance[path.i_out] += share
    for value in variance:
        assert abs(value - 1) < TOLERANCES["variance"]


@pytest.mark.parametrize("name", ["tensornet", "tensor", "5x5"])
@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(name: str, improper: bool) -> None:
    tp = CASES[name].make()
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
    assert_close([rotated], [rotate(tp(x1, x2), tp.irreps_out)])


def test_float32() -> None:
    tp = CASES["tensornet"].make(internal_weights=False)
    x = operands(tp, "per row", None)
    ours = tp(*(t.float() for t in x))
    assert ours.dtype == torch.float32
    assert_close([ours], [tp(*x)], "float32")


def test_backends_agree() -> None:
    x = operands(CASES["tensornet"].make(), "shared", None)
    results = [
        CASES["tensornet"].make(backend=backend, internal_weights=False)(*x)
        for backend in ("cpu", "torch", "reference")
    ]
    assert_close(results[1:], results[:1] * 2)


def test_radial_stands_for_weights() -> None:
    tp = CASES["convolution"].make(shared_weights=False)
    graph = a_graph()
    x1, x2 = operands(tp, "per row", graph)[:2]
    hidden, matrix = torch.randn(11, 4), torch.randn(4, tp.weight_numel)
    ours = tp(x1, x2, radial=(hidden, matrix), graph=graph)
    assert_close([ours], [tp(x1, x2, hidden @ matrix, graph=graph)])


def test_no_edges_and_no_rows() -> None:
    tp = CASES["convolution"].make(internal_weights=False)
    graph = a_graph(0)
    out = tp(*operands(tp, "per row", graph), graph=graph)
    assert out.shape == (4, tp.irreps_out.dim)
    assert not out.any()
    assert tp(*operands(tp, "per row", None, rows=0)).shape == (0, tp.irreps_out.dim)


def test_some_paths_only_and_pruned() -> None:
    """Matrices would compute the others, too: path by path, with the scales of the whole."""
    whole = CASES["tensornet"].make()
    x1, x2 = operands(whole, "shared", None)[:2]
    keep = [0, 10]
    weight = whole.effective_path_weights()
    kept = torch.zeros_like(weight)
    for index in keep:
        kept[whole.problem.paths[index].weight_slice] = weight[
            whole.problem.paths[index].weight_slice
        ]
    pruned = whole.prune(keep)
    assert_close([pruned(x1, x2)], [definition.tensor_product(x1, x2, kept, whole.problem)])
    assert pruned.family != "matrix"
    assert "are not among the instructions" in pruned.explain()
    assert_close([whole.prune([])(x1, x2)], [torch.zeros_like(x1)])


def test_explains_itself() -> None:
    text = CASES["tensornet"].make().explain()
    assert "anticommutator of degrees (0, 1, 2) x (0, 1, 2) -> (0, 1, 2)" in text
    assert "products of 3 x 3 matrices" in text
    assert CASES["tensornet"].make().weight_rank == "separable"


def test_accidental_zeros_are_no_paths() -> None:
    """A 6j symbol that vanishes by accident: (3, 5, 5) among 7x7 matrices, and (3, 5, 6)."""
    for degrees in ((3, 5, 5), (5, 3, 5), (5, 5, 3)):
        one, two, three = (f"{l}e" for l in degrees)
        with pytest.raises(ValueError, match=r"has no path \(.*use method='cg'"):
            TensorProduct(one, two, three, [(0, 0, 0, "uuu", True)], method="matrix")
    TensorProduct("3e", "4e", "5e", [(0, 0, 0, "uuu", True)], method="matrix")


def test_plain_products_are_refused_where_parity_forbids_them() -> None:
    """ "1o x 1o -> 1o" is what X Y would add to the anticommutator."""
    case = CASES["tensornet"]
    instructions = [*case.instructions, (1, 1, 1, "uuu", True)]
    with pytest.raises(ValueError, match="1o is not in 1o x 1o = 0e\\+1e\\+2e"):
        TensorProduct(case.in1, case.in2, case.out, instructions, method="matrix")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instructions": [(0, 0, 0, "uvu<v", True)]}, "takes the modes"),
        ({"instructions": [(0, 0, 0, "uuu", True, 0.0)]}, "path_weight 0"),
        ({"passes": 2}, "belong to the methods 'gaunt'"),
        ({"evaluation": "grid"}, "belong to the methods 'gaunt'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    case = CASES["scalars"]
    instructions = change.pop("instructions", case.instructions)
    with pytest.raises(ValueError, match=message):
        TensorProduct("3x0e", "3x0e", "3x0e", instructions, method="matrix", **change)
