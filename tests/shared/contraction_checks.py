"""What every contraction of node features must do: checks that the tests of the families share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.kernels.codegen.polynomial_operands import PolynomialProblem
from eqtp.layout import Layout

DOUBLE = 1e-12  # relative; sums of at most a few thousand terms of size one, 5e-15 measured
FURTHER = 10  # times more for second and third derivatives; 5 in float32


@dataclass(frozen=True)
class Contraction:
    """A problem and the function that computes it.

    Attributes:
        function: Of x, weight, element, problem, layout and backend.
        problem: The polynomials.
        num_nodes: Nodes of the operands.
        single: Tolerance in float32, relative.
    """

    function: Callable[..., Tensor]
    problem: PolynomialProblem
    num_nodes: int
    single: float

    def __call__(self, x: Tensor, weight: Tensor, element: Tensor, **options: Any) -> Tensor:
        return self.function(x, weight, element, self.problem, **options)

    def operands(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight, element; of five elements, numbers 1 and 4 are absent."""
        problem = self.problem
        x = torch.randn(self.num_nodes, problem.irreps_in.dim, dtype=dtype, requires_grad=True)
        shape = 5, problem.num_weights, problem.num_channels
        weight = torch.randn(shape, dtype=dtype, requires_grad=True)
        element = torch.tensor([0, 2, 3])[torch.randint(3, (self.num_nodes,))]
        return x, weight, element

    def direction(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Shaped like the result."""
        return torch.randn(self.num_nodes, self.problem.irreps_out.dim, dtype=dtype)

    def tolerance(self, dtype: torch.dtype) -> float:
        """Relative tolerance of values and first gradients."""
        return self.single if dtype == torch.float32 else DOUBLE


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = DOUBLE) -> None:
    """Equal to rounding, relative to the largest."""
    assert actual.isfinite().all()
    scale = max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    expected = expected.to(actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def everything(
    contraction: Contraction, x: Tensor, weight: Tensor, element: Tensor, backend: Backend
) -> tuple[Tensor, ...]:
    """Value, force and the gradients of a loss of both."""
    out = contraction(x, weight, element, layout="ir_mul", backend=backend)
    (force,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    loss = force.square().sum() + out.sum()
    return (out.detach(), force.detach(), *torch.autograd.grad(loss, (x, weight)))


def check_value_and_gradients(
    contraction: Contraction, layout: Layout, dtype: torch.dtype, backend: Backend
) -> None:
    """Against the definition in float64."""
    x, weight, element = contraction.operands(dtype)
    direction = contraction.direction(dtype)
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w = (t.detach().to(precision).requires_grad_() for t in (x, weight))
        out = contraction(a, w, element, layout=layout, backend=name)
        results.append((out, *torch.autograd.grad(out, (a, w), direction.to(precision))))
    for fast, slow in zip(*results, strict=True):
        assert fast.dtype == dtype
        assert_relative(fast, slow, contraction.tolerance(dtype))


def check_second_gradients(
    contraction: Contraction, dtype: torch.dtype, which: str, backend: Backend
) -> None:
    """Of the gradients in x, in the weights or in both, in x, the weights and grad."""
    x, weight, element = contraction.operands(dtype)
    grad = contraction.direction(dtype)
    directions = [torch.randn_like(t) for t in (x, weight)]
    chosen = {"x": slice(0, 1), "weight": slice(1, 2), "both": slice(0, 2)}[which]
    results = []
    for name, precision in ((backend, dtype), ("reference", torch.float64)):
        a, w, g = (t.detach().to(precision).requires_grad_() for t in (x, weight, grad))
        out = contraction(a, w, element, backend=name)
        first = torch.autograd.grad(out, (a, w)[chosen], g, create_graph=True)
        along = [direction.to(precision) for direction in directions[chosen]]
        results.append(torch.autograd.grad(first, (a, w, g), along, materialize_grads=True))
    factor = 5 if dtype == torch.float32 else FURTHER
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, contraction.tolerance(dtype) * factor)


def check_training_on_forces(contraction: Contraction, layout: Layout, backend: Backend) -> None:
    """Without gradients of the force in the weights' gradients: the kernels alone."""
    x, weight, element = contraction.operands()
    direction = contraction.direction()
    results = []
    for name in (backend, "reference"):
        out = contraction(x, weight, element, layout=layout, backend=name)
        energy = (out * direction).sum() + out.square().sum()  # a gradient that depends on x
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        loss = force.square().sum() + energy
        results.append(torch.autograd.grad(loss, (x, weight)))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, DOUBLE * FURTHER)


def check_third_derivatives(contraction: Contraction, backend: Backend) -> None:
    x, weight, element = contraction.operands()
    results = []
    for name in (backend, "reference"):
        out = contraction(x, weight, element, backend=name)
        first = torch.autograd.grad(out.square().sum(), (x, weight), create_graph=True)
        squares = first[0].square().sum() + first[1].square().sum()
        second = torch.autograd.grad(squares, (x, weight), create_graph=True)
        third = torch.autograd.grad(second[0].sum() + second[1].sum(), (x, weight))
        results.append((*second, *third))
    for fast, slow in zip(*results, strict=True):
        assert_relative(fast, slow, DOUBLE * FURTHER)


def check_by_differences(contraction: Contraction, backend: Backend) -> None:
    """First and second gradients, by torch's own checks, of nodes of two elements."""
    x, weight, _ = contraction.operands()
    weight = weight.detach()[:2].requires_grad_()
    element = torch.arange(contraction.num_nodes) % 2

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return contraction(x, weight, element, backend=backend)

    assert torch.autograd.gradcheck(function, (x, weight))
    assert torch.autograd.gradgradcheck(function, (x, weight))


def check_one_operand_alone(contraction: Contraction, backend: Backend) -> None:
    """Gradients do not depend on whether the other operand's are asked for."""
    x, weight, element = contraction.operands()
    direction = contraction.direction()

    def out(x: Tensor, weight: Tensor) -> Tensor:
        return contraction(x, weight, element, backend=backend)

    both = torch.autograd.grad(out(x, weight), (x, weight), direction)
    for pair, index in (((x, weight.detach()), 0), ((x.detach(), weight), 1), ((x, weight), 1)):
        (alone,) = torch.autograd.grad(out(*pair), pair[index], direction)
        assert_relative(alone, both[index])


def check_threads(contraction: Contraction, dtype: torch.dtype) -> None:
    """Compiled results are the same for any number of them, to the last bit."""
    operands = contraction.operands(dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(everything(contraction, *operands, "cpu"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def check_strides(contraction: Contraction, backend: Backend) -> None:
    """Operands need not be contiguous."""
    x, weight, element = contraction.operands()
    expected = everything(contraction, x, weight, element, backend)
    x, weight = (
        torch.stack([t.detach()] * 2, dim=-1)[..., 0].requires_grad_() for t in (x, weight)
    )
    element = element.repeat_interleave(2)[::2]
    found = everything(contraction, x, weight, element, backend)
    for actual, wanted in zip(found, expected, strict=True):
        assert_relative(actual, wanted)


def check_nodes_are_independent(contraction: Contraction, backend: Backend) -> None:
    """Of their order, of nodes of other elements, and of one that is not finite."""
    x, weight, element = contraction.operands()
    expected = contraction(x, weight, element, backend=backend)
    order = torch.randperm(contraction.num_nodes)
    permuted = contraction(x[order], weight, element[order], backend=backend)
    assert_relative(permuted, expected[order])
    chosen = element == 2
    alone = contraction(x[chosen], weight, element[chosen], backend=backend)
    assert_relative(alone, expected[chosen])
    of_others = contraction(x, weight, (element + 1) % 5, backend=backend)
    assert not torch.allclose(of_others, expected)
    spoilt = x.detach().clone()
    spoilt[5] = torch.nan
    out = contraction(spoilt, weight, element, backend=backend)
    others = torch.arange(contraction.num_nodes) != 5
    assert out[5].isnan().all()
    assert_relative(out[others], expected[others])


def check_inference_mode(contraction: Contraction, backend: Backend) -> None:
    """What a first call in inference mode keeps serves training afterwards."""
    x, weight, element = (t.detach() for t in contraction.operands())
    with torch.inference_mode():
        expected = contraction(x, weight, element, backend=backend)
    x.requires_grad_()
    weight.requires_grad_()
    out = contraction(x, weight, element, backend=backend)
    out.square().sum().backward()
    assert_relative(out, expected.clone())


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(3, 4).double()}, ValueError, r"x must have shape \(num_nodes, 8\)"),
    ({"x": torch.zeros(3, 8).float()}, TypeError, "one floating dtype"),
    (
        {"weight": torch.zeros(2, 1, 2).double()},
        ValueError,
        r"\(num_elements, NUM weights, 2 channels",
    ),
    ({"element": torch.zeros(3)}, TypeError, "int64 indices, got torch.float"),
    ({"element": torch.zeros(3, 2).long()}, ValueError, "one index per node"),
    ({"element": torch.tensor([0, 1, 2])}, ValueError, r"\[0, 2\).* values from 0 to 2"),
    ({"element": torch.tensor([0, -1, 0])}, ValueError, r"\[0, 2\).* values from -1 to 0"),
    ({"layout": "ir"}, ValueError, "layout must be one of"),
    ({"backend": "triton"}, NotImplementedError, "'triton' runs on cuda tensors"),
    ({"backend": "fast"}, ValueError, "backend must be one of"),
]
"""A change to the arguments of `check_refused`, the error, and what its message says."""


def check_refused(
    contraction: Contraction, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Of a problem with irreps_in="2x0e+2x1o"."""
    arguments: dict[str, Any] = {
        "x": torch.zeros(3, 8),
        "weight": torch.zeros(2, contraction.problem.num_weights, 2),
        "element": torch.tensor([0, 1, 1]),
        "problem": contraction.problem,
    }
    message = message.replace("NUM", str(contraction.problem.num_weights))
    with pytest.raises(error, match=message):
        contraction.function(**(arguments | change))
