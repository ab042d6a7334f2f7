"""Radial factors and gates in frames: C++ beside the definition, with two derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from eqtp.kernels.codegen.availability import cpu_serves
from eqtp.kernels.frame_gate import FrameSizes, gate_orders, reference, scale_orders
from eqtp.kernels.so2 import FrameLayout

TOLERANCES = {
    torch.float64: 1e-13,  # relative: one sum of at most 2 m_max + 1 products of channels
    torch.float32: 1e-5,
}
SIZES = [
    FrameSizes(0, 0, 3),
    FrameSizes(2, 0, 5),
    FrameSizes(3, 2, 7),
    FrameSizes(3, 3, 16),
    FrameSizes(4, 2, 33),
]


def orders(sizes: FrameSizes, edges: int, gates: int, dtype: torch.dtype) -> list[Tensor]:
    shapes = [(edges, 1 + (m > 0), width) for m, width in enumerate(sizes.widths)]
    shapes[0] = (edges, 1, sizes.widths[0] + gates)
    return [2 * torch.randn(shape, dtype=dtype) for shape in shapes]


def scale_inputs(sizes: FrameSizes, edges: int, dtype: torch.dtype) -> list[Tensor]:
    dims = (sizes.dim, sizes.radial_dim)
    return [torch.randn(edges, dim, dtype=dtype) for dim in dims]


def gate_inputs(sizes: FrameSizes, edges: int, dtype: torch.dtype) -> list[Tensor]:
    factor = torch.rand(edges, dtype=dtype)
    return [factor, *orders(sizes, edges, sizes.gates_dim, dtype)]


def derivatives(function: object, inputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Values, gradients, and gradients of a random product of the gradients."""
    torch.manual_seed(seed)
    assert callable(function)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    outs = function(leaves)
    upper = [torch.randn_like(out).requires_grad_() for out in outs]
    first = torch.autograd.grad(outs, leaves, upper, create_graph=True)
    v = [torch.randn_like(grad) for grad in first]
    second = torch.autograd.grad(first, [*upper, *leaves], v, materialize_grads=True)
    return [*outs, *first, *second]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("edges", [0, 1, 19])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ["scale", "gate"])
def test_values_and_derivatives_are_the_definition_s(
    name: str, sizes: FrameSizes, edges: int, dtype: torch.dtype
) -> None:
    if name == "scale":
        inputs = scale_inputs(sizes, edges, dtype)
        pair = [
            lambda leaves, f=f: f(leaves[0], leaves[1], sizes)
            for f in (scale_orders, reference.scale_orders)
        ]
    else:
        inputs = gate_inputs(sizes, edges, dtype)
        pair = [
            lambda leaves, f=f: f(leaves[1:], leaves[0], sizes)
            for f in (gate_orders, reference.gate_orders)
        ]
    assert cpu_serves(*inputs)
    found, expected = (derivatives(function, inputs, seed=1) for function in pair)
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCES[dtype] * max(scale, 1.0))


@pytest.mark.parametrize("name", ["scale", "gate"])
def test_third_derivatives(name: str) -> None:
    """Through the definition; the second derivatives are checked against differences on the way."""
    sizes = FrameSizes(2, 1, 2)

    def scale(y: Tensor, radial: Tensor) -> Tensor:
        outs = scale_orders(y, radial, sizes)
        (grad,) = torch.autograd.grad([(o**3).sum() for o in outs], y, create_graph=True)
        return grad

    def gate(factor: Tensor, *hidden: Tensor) -> Tensor:
        outs = gate_orders(hidden, factor, sizes)
        (grad,) = torch.autograd.grad([(o**2).sum() for o in outs], factor, create_graph=True)
        return grad

    make = scale_inputs if name == "scale" else gate_inputs
    inputs = [tensor.requires_grad_() for tensor in make(sizes, 2, torch.float64)]
    function = scale if name == "scale" else gate
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_frames_are_those_of_so2() -> None:
    sizes = FrameSizes(3, 2, 4)
    frame = FrameLayout.of("4x0e+4x1e+4x2e+4x3e", 2)
    assert sizes.dim == frame.dim
    y, radial = torch.randn(5, frame.dim), torch.ones(5, sizes.radial_dim)
    for m, part in enumerate(scale_orders(y, radial, sizes)):
        for sign, columns in enumerate(frame.slices(m)):
            assert torch.equal(part[:, sign], y[:, columns])


def test_strided_operands_and_large_gates() -> None:
    sizes = FrameSizes(1, 1, 16)
    y, radial = scale_inputs(sizes, 6, torch.float32)
    strided = torch.stack([y, y], 1)[:, 1]
    for a, b in zip(
        scale_orders(strided, radial, sizes), scale_orders(y, radial, sizes), strict=True
    ):
        assert torch.equal(a, b)
    inputs = [1e3 * tensor for tensor in gate_inputs(sizes, 6, torch.float32)]
    for z in derivatives(lambda leaves: gate_orders(leaves[1:], leaves[0], sizes), inputs, 2):
        assert torch.isfinite(z).all()


def test_wrong_shapes() -> None:
    sizes = FrameSizes(1, 1, 2)
    with pytest.raises(ValueError, match=r"y must be \[edges, 8\] and radial \[edges, 6\]"):
        scale_orders(torch.ones(3, 8), torch.ones(3, 5), sizes)
    with pytest.raises(ValueError, match=r"hidden must have the shapes \[\(3, 1, 6\), \(3, 2, 2\)"):
        gate_orders([torch.ones(3, 1, 4), torch.ones(3, 2, 2)], torch.ones(3), sizes)
