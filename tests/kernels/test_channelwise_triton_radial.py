"""Weights computed inside the Triton kernels, in Triton's interpreter, against the definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor
from triton_checks import interpreted, run_in_the_interpreter

from eqtp.graph import Graph
from eqtp.kernels.channelwise import _triton, _triton_radial
from eqtp.kernels.channelwise.config import triton_radial_launch
from eqtp.kernels.codegen import triton_items
from eqtp.kernels.tensor_product import reference as definition
from eqtp.problem import TensorProductProblem

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few hundred terms of size one
    torch.float32: 5e-6,
    torch.bfloat16: 1.6e-2,  # float32 arithmetic, one rounding to the storage type: 2^-8
}


@dataclass(frozen=True)
class Case:
    """A product, a radial network's width, and a graph."""

    in1: str
    in2: str
    out: str
    instructions: tuple[tuple[object, ...], ...]
    hidden: int
    num_edges: int = 9
    num_src: int = 5
    num_dst: int = 3

    @property
    def problem(self) -> TensorProductProblem:
        return TensorProductProblem.from_instructions(
            self.in1, self.in2, self.out, self.instructions
        )


CASES = {
    "mace": Case(
        "16x0e+16x1o",
        "0e+1o+2e",
        "16x0e+16x0e+16x1o+16x1o+16x2e",
        (
            (0, 0, 0, "uvu", True),
            (1, 1, 1, "uvu", True),
            (0, 1, 2, "uvu", True),
            (1, 2, 3, "uvu", True),
            (1, 1, 4, "uvu", True),
        ),
        16,
        num_edges=25,
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
        7,
    ),
    "blocks_of_channels": Case(  # 1 to 3 programs per node, full and with a tail
        "40x0e+70x1o+32x0e",
        "0e+1o",
        "40x1o+70x0e+32x0e",
        ((0, 1, 0, "uvu", True), (1, 1, 1, "uvu", True), (2, 0, 2, "uvu", True)),
        20,
    ),
    "unweighted": Case("2x1o", "1o", "2x2e", ((0, 0, 0, "uvu", False),), 3),
    "no_edges": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), 4, num_edges=0),
    "no_nodes": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), 4, 0, 0, 0),
    "one_edge": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), 1, 1, 1, 1),
}

DIRECTIONS = ("v_x", "v_y", "v_h", "v_m")


@dataclass
class Example:
    """Operands, a gradient of the result, and directions for the second gradient."""

    problem: TensorProductProblem
    graph: Graph | None
    x: Tensor
    y: Tensor
    h: Tensor
    m: Tensor
    g: Tensor
    v_x: Tensor | None
    v_y: Tensor | None
    v_h: Tensor | None
    v_m: Tensor | None

    @classmethod
    def make(cls, case: Case, form: str = "graph", dtype: torch.dtype = torch.float64) -> Example:
        problem, edges = case.problem, case.num_edges
        graph = None
        if form == "graph":
            src, dst = (torch.randint(max(n, 1), (edges,)) for n in (case.num_src, case.num_dst))
            graph = Graph(src, dst, case.num_src, case.num_dst)
        num_x, num_g = (edges, edges) if graph is None else (case.num_src, case.num_dst)
        shapes = {
            "x": (num_x, problem.irreps_in1.dim),
            "y": (edges, problem.irreps_in2.dim),
            "h": (edges, case.hidden),
            "m": (case.hidden, problem.weight_numel),
        }
        x, y, h, m = (torch.randn(shape).to(dtype) for shape in shapes.values())
        g = torch.randn(num_g, problem.irreps_out.dim).to(dtype)
        v_x, v_y, v_h, v_m = (torch.randn(shape).to(dtype) for shape in shapes.values())
        return cls(problem, graph, x, y, h, m, g, v_x, v_y, v_h, v_m)

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.y, self.h, self.m

    def run(self, names: Sequence[str], wanted: Sequence[str]) -> dict[str, Tensor]:
        given = {
            **{"x": self.x, "y": self.y, "h": self.h, "m": self.m, "g": self.g},
            **{"vx": self.v_x, "vy": self.v_y, "vh": self.v_h, "vm": self.v_m},
        }
        operands = {name: t for name in names if (t := given[name]) is not None}
        return _triton.run(self.problem, self.graph, operands, wanted)

    def forward(self) -> Tensor:
        return self.run("xyhm", ["out"])["out"]

    def backward(self, needs: tuple[bool, bool, bool, bool]) -> list[Tensor | None]:
        names = ("grad_x", "grad_y", "grad_h", "grad_m")
        found = self.run("gxyhm", [name for name, need in zip(names, needs, strict=True) if need])
        return [*map(found.get, names)]

    def double_backward(self, needs: tuple[bool, bool, bool, bool, bool]) -> list[Tensor | None]:
        names = ("grad_g2", "grad_x2", "grad_y2", "grad_h2", "grad_m2")
        wanted = [name for name, need in zip(names, needs, strict=True) if need]
        return [*map(self.run([*"gxyhm", "vx", "vy", "vh", "vm"], wanted).get, names)]

    def all(self) -> list[Tensor | None]:
        """Value, gradients in x, y, h, m and second gradients in g, x, y, h, m."""
        first = self.backward((True, True, True, True))
        return [self.forward(), *first, *self.double_backward((True, True, True, True, True))]

    def exact(self) -> list[Tensor]:
        """The same by differentiating the definition in float64."""
        x, y, h, m, g = (t.double().requires_grad_() for t in (*self.operands, self.g))
        out = definition.tensor_product(
            x, y, h @ m, self.problem, graph=self.graph, layout="ir_mul"
        )
        inputs = [x, y, h, m]
        grads = _grad((out * g).sum(), inputs)
        given = zip(grads, (self.v_x, self.v_y, self.v_h, self.v_m), strict=True)
        along = [(grad * v.double()).sum() for grad, v in given if v is not None]
        return [out, *grads, *_grad(torch.stack(along).sum(), [g, *inputs])]


def _grad(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    if not value.requires_grad:
        return tuple(torch.zeros_like(t) for t in inputs)
    return torch.autograd.grad(
        value, inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )


def assert_close(
    ours: list[Tensor | None], exact: list[Tensor], dtype: torch.dtype = torch.float64
) -> None:
    """What was computed is right; None is what was not asked for."""
    for a, b in zip(ours, exact, strict=True):
        if a is not None:
            assert a.dtype == dtype
            assert a.shape == b.shape
            scale = max(float(b.detach().abs().max()), 1.0) if b.numel() else 1.0
            atol = TOLERANCES[dtype] * scale
            torch.testing.assert_close(a.double(), b.detach(), rtol=0, atol=atol)


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


@interpreted
@pytest.mark.parametrize("form", ["rows", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_matches_definition(name: str, form: str) -> None:
    example = Example.make(CASES[name], form)
    ours = example.all()
    assert all(t is not None for t in ours)
    assert_close(ours, example.exact())


@interpreted
def test_each_gradient_alone() -> None:
    example = Example.make(CASES["shared_blocks"])
    exact = example.exact()
    for alone in range(4):
        needs = (alone == 0, alone == 1, alone == 2, alone == 3)
        ours = example.backward(needs)
        assert [t is not None for t in ours] == list(needs)
        assert_close(ours, exact[1:5])
    for alone in range(5):
        second = (alone == 0, alone == 1, alone == 2, alone == 3, alone == 4)
        ours = example.double_backward(second)
        assert [t is not None for t in ours] == list(second)
        assert_close(ours, exact[5:])


@interpreted
@pytest.mark.parametrize(
    "given", [pair for pair in product([False, True], repeat=4) if 0 < sum(pair) < 3]
)
def test_second_gradient_in_some_directions(given: tuple[bool, ...]) -> None:
    example = Example.make(CASES["shared_blocks"])
    for name, is_given in zip(DIRECTIONS, given, strict=True):
        if not is_given:
            setattr(example, name, None)
    assert_close(example.double_backward((True, True, True, True, True)), example.exact()[5:])


@interpreted
def test_hubs_in_pieces_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with no edge, a full tile, a full piece and several pieces of several tiles.

    With few programs each goes on from node to node with the gradient in the matrix.
    """
    monkeypatch.setattr(triton_items, "PIECE_EDGES", 20)
    monkeypatch.setattr(_triton_radial, "TRITON_RADIAL_PROGRAMS", 2)
    counts = {0: 50, 2: 20, 3: 16, 4: 3}
    nodes = torch.tensor([node for node, count in counts.items() for _ in range(count)])
    example = Example.make(replace(CASES["shared_blocks"], num_edges=89, num_src=5, num_dst=6))
    src, dst = (nodes[torch.randperm(89)] for _ in range(2))
    example.graph = Graph(src, dst, 5, 6)
    assert_close(example.all(), example.exact())


@interpreted
@pytest.mark.parametrize("form", ["rows", "graph"])
def test_split_into_kernels(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel per path: sums go on from kernel to kernel."""
    launch = replace(triton_radial_launch(8, 32, False), max_kept=0)
    monkeypatch.setattr(_triton_radial, "triton_radial_launch", lambda *_: launch)
    _triton_radial._make_pass.cache_clear()
    example = Example.make(CASES["shared_blocks"], form)
    assert_close(example.all(), example.exact())
    _triton_radial._make_pass.cache_clear()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_types(dtype: torch.dtype) -> None:
    example = Example.make(CASES["shared_blocks"], dtype=dtype)
    assert_close(example.all(), example.exact(), dtype)


@interpreted
def test_same_from_run_to_run() -> None:
    example = Example.make(CASES["shared_blocks"])
    for a, b in zip(example.all(), example.all(), strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_tf32_on_request() -> None:
    assert triton_radial_launch(4, 32, False).precision == "tf32x3"
    assert triton_radial_launch(4, 32, True).precision == "tf32"
    assert triton_radial_launch(8, 32, True).precision == "ieee"
