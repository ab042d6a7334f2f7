"""The Triton kernels of the channelwise product in Triton's interpreter, against the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from triton_checks import assert_importable_without_triton, interpreted, run_in_the_interpreter

from eqtp.graph import Graph
from eqtp.kernels.channelwise import _triton
from eqtp.kernels.channelwise.config import triton_launch
from eqtp.kernels.codegen import triton_items
from eqtp.kernels.tensor_product import reference as definition
from eqtp.problem import TensorProductProblem

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few hundred terms of size one
    torch.float32: 5e-6,
    torch.float16: 2e-3,  # float32 arithmetic, one rounding to the storage type: 2^-11 of the value
    torch.bfloat16: 1.6e-2,  # 2^-8
}


@dataclass(frozen=True)
class Case:
    """A product and a graph, small: an operation takes the interpreter 40 us."""

    in1: str
    in2: str
    out: str
    instructions: tuple[tuple[object, ...], ...]
    num_edges: int = 6
    num_src: int = 4
    num_dst: int = 3

    @property
    def problem(self) -> TensorProductProblem:
        return TensorProductProblem.from_instructions(
            self.in1, self.in2, self.out, self.instructions
        )


CASES = {
    "mace": Case(
        "3x0e+3x1o",
        "0e+1o+2e",
        "3x0e+3x0e+3x1o+3x1o+3x2e",
        (
            (0, 0, 0, "uvu", True),
            (1, 1, 1, "uvu", True),
            (0, 1, 2, "uvu", True),
            (1, 2, 3, "uvu", True),
            (1, 1, 4, "uvu", True),
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
    "blocks_of_channels": Case(  # 1 to 3 programs per node, full and with a tail
        "40x0e+70x1o+32x0e",
        "0e+1o",
        "40x1o+70x0e+70x1o+32x0e",
        (
            (0, 1, 0, "uvu", True),
            (1, 1, 1, "uvu", True),
            (1, 0, 2, "uvu", True),
            (2, 0, 3, "uvu", True),
        ),
    ),
    "unweighted": Case("2x1o", "1o", "2x2e", ((0, 0, 0, "uvu", False),)),
    "empty_block": Case("0x0e+2x1o", "1o", "2x0e+2x1o", ((1, 0, 0, "uvu", True),)),
    "no_edges": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), num_edges=0),
    "one_edge": Case("2x1o", "1o", "2x0e", ((0, 0, 0, "uvu", True),), 1, 1, 1),
}


@dataclass
class Example:
    """Operands, a gradient of the result, and directions for the second gradient."""

    problem: TensorProductProblem
    graph: Graph | None
    x: Tensor
    y: Tensor
    w: Tensor | None
    g: Tensor
    v_x: Tensor | None
    v_y: Tensor | None
    v_w: Tensor | None

    @classmethod
    def make(cls, case: Case, form: str, weights: str, dtype: torch.dtype) -> Example:
        problem, edges = case.problem, case.num_edges if form == "graph" else min(case.num_edges, 2)
        graph = None
        if form == "graph":
            graph = Graph(
                torch.randint(case.num_src, (edges,)),
                torch.randint(case.num_dst, (edges,)),
                case.num_src,
                case.num_dst,
            )
        num_x, num_g = (edges, edges) if graph is None else (case.num_src, case.num_dst)
        num_w = 1 if weights == "shared" else edges

        def random(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns).to(dtype)

        has_weights = problem.weight_numel > 0
        w, v_w = (random(num_w, problem.weight_numel) if has_weights else None for _ in range(2))
        return cls(
            problem,
            graph,
            random(num_x, problem.irreps_in1.dim),
            random(edges, problem.irreps_in2.dim),
            w,
            random(num_g, problem.irreps_out.dim),
            random(num_x, problem.irreps_in1.dim),
            random(edges, problem.irreps_in2.dim),
            v_w,
        )

    @property
    def needs_w(self) -> bool:
        return self.w is not None

    def run(self, names: Sequence[str], wanted: Sequence[str]) -> dict[str, Tensor]:
        given = {
            **{"x": self.x, "y": self.y, "w": self.w, "g": self.g},
            **{"vx": self.v_x, "vy": self.v_y, "vw": self.v_w},
        }
        operands = {name: t for name in names if (t := given[name]) is not None}
        return _triton.run(self.problem, self.graph, operands, wanted)

    def forward(self) -> Tensor:
        return self.run("xyw", ["out"])["out"]

    def backward(self, needs: tuple[bool, bool, bool]) -> tuple[Tensor | None, ...]:
        names = ("grad_x", "grad_y", "grad_w")
        found = self.run("gxyw", [name for name, need in zip(names, needs, strict=True) if need])
        return tuple(map(found.get, names))

    def double_backward(self, needs: tuple[bool, bool, bool, bool]) -> tuple[Tensor | None, ...]:
        names = ("grad_g2", "grad_x2", "grad_y2", "grad_w2")
        wanted = [name for name, need in zip(names, needs, strict=True) if need]
        return tuple(map(self.run([*"gxyw", "vx", "vy", "vw"], wanted).get, names))

    def all(self) -> list[Tensor | None]:
        """Value, gradients in x, y, w and second gradients in g, x, y, w."""
        return [
            self.forward(),
            *self.backward((True, True, self.needs_w)),
            *self.double_backward((True, True, True, self.needs_w)),
        ]

    def exact(self) -> list[Tensor | None]:
        """The same by differentiating the definition in float64."""

        def branch(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.double().requires_grad_()

        x, y, w, g = (branch(t) for t in (self.x, self.y, self.w, self.g))
        assert x is not None
        assert y is not None
        assert g is not None
        shared = None if w is None else (w[0] if len(w) == 1 else w)
        out = definition.tensor_product(
            x, y, shared, self.problem, graph=self.graph, layout="ir_mul"
        )
        inputs = [t for t in (x, y, w) if t is not None]
        grads = _grad((out * g).sum(), inputs)
        directions = [t.double() for t in (self.v_x, self.v_y, self.v_w) if t is not None]
        along = torch.stack([(a * b).sum() for a, b in zip(grads, directions, strict=False)]).sum()
        absent = [] if self.needs_w else [None]
        return [out, *grads, *absent, *_grad(along, [g, *inputs]), *absent]


def _grad(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)


def assert_close(
    ours: list[Tensor | None], exact: list[Tensor | None], dtype: torch.dtype = torch.float64
) -> None:
    assert len(ours) == len(exact)
    for a, b in zip(ours, exact, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.dtype == dtype
            assert a.shape == b.shape
            scale = max(float(b.detach().abs().max()), 1.0) if b.numel() else 1.0
            atol = TOLERANCES[dtype] * scale
            torch.testing.assert_close(a.double(), b.detach(), rtol=0, atol=atol)


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def test_importable_without_triton() -> None:
    assert_importable_without_triton("eqtp.kernels.channelwise._triton")


def test_says_what_it_cannot_serve() -> None:
    problem = CASES["mace"].problem
    assert _triton.why_unsupported(problem, torch.float32) is None
    assert "torch.int32" in str(_triton.why_unsupported(problem, torch.int32))


def test_parts_hold_every_path_once_and_keep_the_limits() -> None:
    problem = replace_muls(CASES["mace"].problem)
    plan = _triton.Pass(
        problem, "receiver", ("x", "y", "w"), ("out",), False, False, torch.float32, 32
    )
    assert sorted(n for kernel in plan.kernels for n in kernel.paths) == list(range(5))
    assert len({kernel.mul for kernel in plan.kernels}) == 1
    assert all(kernel.num_kept <= plan.launch.max_kept for kernel in plan.kernels)


def replace_muls(problem: TensorProductProblem) -> TensorProductProblem:
    """The same problem with 128 channels."""
    in1, out = (
        "+".join(f"128x{mul_ir.ir}" for mul_ir in irreps)
        for irreps in (problem.irreps_in1, problem.irreps_out)
    )
    return TensorProductProblem.from_instructions(
        in1, problem.irreps_in2, out, problem.instructions
    )


@interpreted
@pytest.mark.parametrize("weights", ["per_row", "shared"])
@pytest.mark.parametrize("form", ["rows", "graph"])
@pytest.mark.parametrize("name", CASES)
def test_matches_definition(name: str, form: str, weights: str) -> None:
    example = Example.make(CASES[name], form, weights, torch.float64)
    assert_close(example.all(), example.exact())


@interpreted
@pytest.mark.parametrize("form", ["rows", "graph"])
def test_each_gradient_alone(form: str) -> None:
    example = Example.make(CASES["shared_blocks"], form, "per_row", torch.float64)
    exact = example.exact()
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        expected = [e if need else None for need, e in zip(needs, exact[1:4], strict=True)]
        assert_close(list(example.backward(needs)), expected)
    for alone in range(4):
        second = (alone == 0, alone == 1, alone == 2, alone == 3)
        expected = [e if need else None for need, e in zip(second, exact[4:], strict=True)]
        assert_close(list(example.double_backward(second)), expected)


@interpreted
@pytest.mark.parametrize("direction", ["v_x", "v_y", "v_w"])
def test_second_gradient_in_one_direction(direction: str) -> None:
    example = Example.make(CASES["shared_blocks"], "graph", "per_row", torch.float64)
    zeros = replace(example)
    for name in {"v_x", "v_y", "v_w"} - {direction}:
        setattr(zeros, name, torch.zeros_like(getattr(example, name)))
        setattr(example, name, None)
    ours = list(example.double_backward((True, True, True, True)))
    assert_close(ours, zeros.exact()[4:])


@interpreted
@pytest.mark.parametrize("weights", ["per_row", "shared"])
def test_hubs_in_pieces(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes with no edge, one piece, a full piece and several pieces, at both ends."""
    monkeypatch.setattr(triton_items, "PIECE_EDGES", 3)
    monkeypatch.setattr(_triton, "TRITON_SHARED_PROGRAMS", 2)
    case = replace(CASES["shared_blocks"], num_edges=13, num_src=4, num_dst=4)
    example = Example.make(case, "graph", weights, torch.float64)
    dst = torch.tensor([0] * 8 + [2] * 3 + [3] * 2)[torch.randperm(13)]
    src = torch.tensor([1] * 7 + [2] * 6)[torch.randperm(13)]
    example.graph = Graph(src, dst, 4, 4)
    assert_close(example.all(), example.exact())


@interpreted
def test_split_into_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel per path: sums go on from kernel to kernel."""
    launch = replace(triton_launch(8, 32), max_kept=1)
    monkeypatch.setattr(_triton, "triton_launch", lambda itemsize, lanes: launch)
    _triton._make_pass.cache_clear()
    for form in ("rows", "graph"):
        example = Example.make(CASES["shared_blocks"], form, "per_row", torch.float64)
        assert_close(example.all(), example.exact())
    _triton._make_pass.cache_clear()


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_storage_types(dtype: torch.dtype) -> None:
    weights = "shared" if dtype == torch.bfloat16 else "per_row"
    example = Example.make(CASES["shared_blocks"], "graph", weights, dtype)
    assert_close(example.all(), example.exact(), dtype)


@interpreted
def test_index_types_and_order_of_edges() -> None:
    """Equal to the last bit, whatever the type of the indices and the order of the edges."""
    case = replace(CASES["mace"], num_edges=9)
    example = Example.make(case, "graph", "per_row", torch.float64)
    assert example.graph is not None
    assert example.w is not None
    src, dst = example.graph.edge_src, example.graph.edge_dst
    order = torch.argsort(dst, stable=True)
    variants = [
        replace(example, graph=Graph(src.int(), dst.int(), case.num_src, case.num_dst)),
        replace(
            example,
            graph=Graph(src[order], dst[order], case.num_src, case.num_dst),
            y=example.y[order],
            w=example.w[order],
        ),
    ]
    functions: list[Callable[[Example], Tensor | None]] = [
        lambda e: e.forward(),
        lambda e: e.backward((True, False, False))[0],
    ]
    for function in functions:
        first = function(example)
        assert first is not None
        for variant in variants:
            other = function(variant)
            assert other is not None
            assert torch.equal(first, other)
