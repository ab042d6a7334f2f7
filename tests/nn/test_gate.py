"""Gate and the normalised activations against e3nn 0.6's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn.math import normalize2mom
from torch.nn.functional import silu

from eqtp.layout import to_layout
from eqtp.nn import Gate
from eqtp.nn.activation import NormalizedActivation, second_moment_constant

# One product per element on top of the same activation: a few rounding errors.
TOLERANCES = {"float64": 1e-14}

GATES: dict[str, tuple[Any, ...]] = {
    "e3nn_docs": ("16x0o", [torch.tanh], "32x0o", [torch.tanh], "16x1e+16x1o"),
    "mixed": (
        "4x0e+3x0o+2x0e", [silu, torch.abs, None],
        "3x0e+2x0e+2x0o", [torch.sigmoid, silu, torch.tanh],
        "4x1o+2x2e+1x1o",
    ),
    "neighbours": ("2x0e+2x0e", [silu, torch.tanh], "3x0e", [torch.sigmoid], "1x1o+2x1o"),
    "gated_scalars": ("2x0e", [silu], "5x0e", [torch.sigmoid], "1x0e+2x1o+2x0e"),
    "scalars_only": ("2x0e", [silu], "", [], ""),
    "gated_only": ("", [], "2x0e", [torch.sigmoid], "2x1e"),
    "no_activation": ("2x0o", [None], "2x0e", [None], "2x2e"),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_matches_e3nn(name: str, layout: Any) -> None:
    rival, gate = e3nn_nn.Gate(*GATES[name]), Gate(*GATES[name], layout=layout)
    assert gate.irreps_in == rival.irreps_in
    assert gate.irreps_out == rival.irreps_out
    x = torch.randn(4, 3, gate.irreps_in.dim, requires_grad=True)
    got = gate(to_layout(x, gate.irreps_in, "mul_ir", layout))
    got = to_layout(got, gate.irreps_out, layout, "mul_ir")
    expected = rival(x)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=TOLERANCES["float64"])
    direction = torch.randn_like(got)
    (grad,) = torch.autograd.grad(got, x, direction)
    (theirs,) = torch.autograd.grad(expected, x, direction)
    torch.testing.assert_close(grad, theirs, rtol=0.0, atol=10 * TOLERANCES["float64"])


@pytest.mark.parametrize("activation", [silu, torch.tanh, torch.sigmoid, torch.abs, torch.relu])
def test_constants_are_e3nns(activation: Any) -> None:
    rival, ours = normalize2mom(activation), NormalizedActivation(activation)
    assert second_moment_constant(activation) == pytest.approx(rival.cst, rel=1e-14)
    x = torch.randn(100)
    torch.testing.assert_close(ours(x), rival(x), rtol=0.0, atol=TOLERANCES["float64"])


def test_silu_has_maces_constant() -> None:
    assert second_moment_constant(silu) == 1.6791767923989418
    assert second_moment_constant(torch.nn.SiLU()) == 1.6791767923989418


def test_a_function_of_unit_moment_stays_as_it_is() -> None:
    exact = NormalizedActivation(lambda x: x.sign())
    assert exact.constant == 1.0


def test_empty_rows() -> None:
    gate = Gate(*GATES["mixed"])
    assert gate(torch.randn(0, gate.irreps_in.dim)).shape == (0, gate.irreps_out.dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2x1o", [None], "", [], ""), "irreps_scalars must be scalars"),
        (("2x0e", [None], "1x1o", [None], "1x1o"), "irreps_gates must be scalars"),
        (("2x0e", [], "", [], ""), "needs one activation or None per block"),
        (("2x0e", [None], "2x0e", [None], "3x1o"), "one scalar per channel of irreps_gated"),
        (("2x0o", [silu], "", [], ""), "must be even or odd"),
    ],
)
def test_rejects_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Gate(*arguments)


def test_rejects_bad_input() -> None:
    with pytest.raises(ValueError, match="x must have 144 columns"):
        Gate(*GATES["e3nn_docs"])(torch.randn(3, 5))
