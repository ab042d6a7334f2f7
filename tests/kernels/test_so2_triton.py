"""The Triton kernels of the SO(2) family in Triton's interpreter, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton_checks import interpreted, run_in_the_interpreter

pytest.importorskip("triton")

from eqtp.graph import Graph
from eqtp.kernels.so2 import FrameLayout, _linear, _torch, _triton, so2_linear
from eqtp.kernels.so2.edges import side_of, sides_of

TOLERANCES = {
    torch.float64: 1e-12,  # sums of at most a few hundred terms of size one
    torch.float32: 5e-6,
}


def test_in_the_interpreter() -> None:
    run_in_the_interpreter(__file__)


def close(a: Tensor, b: Tensor) -> None:
    a, b = a.detach(), b.detach()
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert a.numel() == 0 or float((a - b).abs().max()) <= TOLERANCES[a.dtype] * (
        1 + float(b.abs().max())
    )


def make_graph() -> Graph:
    src = torch.tensor([0, 4, 1, 2, 2])
    return Graph(src, torch.tensor([1, 0, 0, 3, 0]), 5, 6)


@interpreted
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("end", ["sender", "receiver", "rows"])
@pytest.mark.parametrize(
    ("irreps", "m_max", "dtype"),
    [
        ("3x0e+2x1o+20x2e+1x3o", 2, torch.float64),
        ("70x1o+1x0e", 1, torch.float32),
        ("1x4e", 0, torch.float64),
    ],
)
def test_rotations(irreps: str, m_max: int, dtype: torch.dtype, end: str, turned: bool) -> None:
    frame = FrameLayout.of(irreps, m_max)
    edges = sides_of(make_graph())
    side = None if end == "rows" else side_of(edges, end == "receiver")
    num_nodes = {"sender": 5, "receiver": 6, "rows": 5}[end]
    vectors = torch.randn(5, 3, dtype=dtype)
    vectors[0], vectors[1] = torch.tensor([0.0, -1.0, 0.0]), 0
    v = torch.randn(5, 3, dtype=dtype) if turned else None
    x = torch.randn(num_nodes, frame.irreps.dim, dtype=dtype)
    y = torch.randn(5, frame.dim, dtype=dtype)
    close(_triton.rotate(x, vectors, v, side, frame), _torch.rotate(x, vectors, v, side, frame))
    close(
        _triton.rotate_back(y, vectors, v, side, num_nodes, frame),
        _torch.rotate_back(y, vectors, v, side, num_nodes, frame),
    )
    close(
        _triton.torque(x, y, vectors, v, side, frame),
        _torch.torque(x, y, vectors, v, side, frame),
    )


@interpreted
def test_float32_rotations_at_the_poles() -> None:
    irreps = "+".join(f"1x{l}e" for l in range(9))
    frame = FrameLayout.of(irreps)
    rows = [[0, 1, 0], [0, -1, 0], [1e-9, 1, 0], [1e-9, -1, 0], [1e-4, 1, 0], [1e-22, 2, 1e-22]]
    vectors = torch.tensor([*rows, [0.3, -0.4, 1.2]], dtype=torch.float32)
    x = torch.randn(7, frame.irreps.dim, dtype=torch.float32)
    exact = _torch.rotate(x.double(), vectors.double(), None, None, frame)
    error = (_triton.rotate(x, vectors, None, None, frame) - exact).abs().max()
    assert float(error) < 1e-5  # the bar of the issue


@interpreted
def test_no_edges() -> None:
    frame = FrameLayout.of("2x0e+2x1o")
    graph = Graph(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 2)
    side = side_of(sides_of(graph), at_receivers=True)
    vectors, y = torch.zeros(0, 3), torch.zeros(0, 8)
    assert _triton.rotate(torch.zeros(2, 8), vectors, None, side, frame).shape == (0, 8)
    assert bool((_triton.rotate_back(y, vectors, None, side, 2, frame) == 0).all())
    assert _triton.torque(torch.zeros(2, 8), y, vectors, None, side, frame).shape == (0, 3)


@interpreted
@pytest.mark.parametrize("num_edges", [70, 1, 0])
@pytest.mark.parametrize("parts", [1, 2])
def test_linear_maps_with_first_and_second_derivatives(parts: int, num_edges: int) -> None:
    frame_in = FrameLayout.of("3x0e+2x1o+20x2e+1x3o", 2)
    frame_out = FrameLayout.of("30x0e+7x1o+45x2e", 2)
    weights = [
        torch.randn(parts if m else 1, frame_in.width(m), frame_out.width(m)).float()
        for m in range(3)
    ]
    leaves = [t.requires_grad_() for t in (torch.randn(num_edges, frame_in.dim).float(), *weights)]
    direction = torch.randn(num_edges, frame_out.dim).float().requires_grad_()
    others = [torch.randn_like(t) for t in leaves]
    results = []
    where = _linear.Where(frame_in, frame_out, tuple(len(w) for w in weights), "triton")
    for out in (
        _linear.linear(leaves[0], leaves[1:], where),
        so2_linear(leaves[0], leaves[1:], frame_in, frame_out, backend="torch"),
    ):
        first = torch.autograd.grad(out, leaves, direction, create_graph=True)
        pairing = torch.stack([(g * o).sum() for g, o in zip(first, others, strict=True)]).sum()
        second = torch.autograd.grad(pairing, [*leaves, direction])
        results.append([out, *first, *second])
    for got, wanted in zip(*results, strict=True):
        close(got, wanted)
