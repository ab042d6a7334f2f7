"""Linear against e3nn 0.6's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from e3nn import o3

from eqtp.irreps import Irreps
from eqtp.layout import to_layout
from eqtp.nn import Linear
from eqtp.so3 import rand_matrix, wigner_D

TOLERANCES = {"float64": 1e-13}  # absolute; elements are of order one, sums of a few terms

IRREPS = [
    ("4x0e+16x1o", "8x0e+8x1o"),
    ("3x0e+3x0e+2x1o+2x1o+2x1o+1x2e", "2x0e+4x1o+3x2e+2x3o"),  # joined blocks, one without input
    ("2x0e+3x1o+2x0e+2x1o+1x1o+0x2e", "2x0e+4x1o+2x0e+1x1o+1x2e+0x0e"),  # several of one irrep
    ("2x1o+2x1o", "3x1o+1x1o"),  # neighbours whose weights are not
    ("3x1o", "1x1o"),
    ("1x1o", "1x0e"),  # no paths
    ("", "2x0e"),
    ("2x0e", ""),
]


# e3nn 0.6 cannot compute a Linear of biases alone; test_biases_alone has that.
CASES = [(*pair, False) for pair in IRREPS] + [(*pair, True) for pair in IRREPS[:4]]


@pytest.mark.parametrize(("irreps_in", "irreps_out", "biases"), CASES)
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_matches_e3nn(irreps_in: str, irreps_out: str, layout: Any, biases: bool) -> None:
    """Values and all gradients."""
    rival = o3.Linear(irreps_in, irreps_out, biases=biases)
    linear = Linear(irreps_in, irreps_out, biases=biases, layout=layout)
    assert linear.weight_numel == rival.weight_numel
    parameters = {"weight": torch.randn(rival.weight_numel)}
    if linear.bias is not None:
        parameters["bias"] = torch.randn(rival.bias_numel)
    linear.load_state_dict(parameters)
    rival.load_state_dict(parameters, strict=False)
    x = torch.randn(4, 3, linear.irreps_in.dim, requires_grad=True)
    got = linear(to_layout(x, linear.irreps_in, "mul_ir", layout))
    got = to_layout(got, linear.irreps_out, layout, "mul_ir")
    expected = rival(x)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=TOLERANCES["float64"])
    if rival.weight_numel == 0:
        return
    direction = torch.randn_like(got)
    grads = torch.autograd.grad(got, [x, *linear.parameters()], direction)
    theirs = torch.autograd.grad(expected, [x, *rival.parameters()], direction)
    for a, b in zip(grads, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=TOLERANCES["float64"] * 10)


def test_biases_alone() -> None:
    """Blocks that nothing feeds are their bias, or zero."""
    linear = Linear("1x1o", "2x0e+1x2e", biases=True)
    assert linear.bias is not None
    torch.nn.init.normal_(linear.bias)
    expected = torch.cat([linear.bias, torch.zeros(5)]).expand(3, 7)
    assert torch.equal(linear(torch.randn(3, 3)), expected)


def test_same_seed_gives_e3nns_weights() -> None:
    torch.manual_seed(3)
    linear = Linear("4x0e+3x1o", "2x0e+2x1o")
    torch.manual_seed(3)
    assert linear.weight is not None
    assert torch.equal(linear.weight, o3.Linear("4x0e+3x1o", "2x0e+2x1o").weight)


def test_external_weights() -> None:
    linear = Linear("4x0e+3x1o", "2x0e+2x1o", internal_weights=False)
    own = Linear("4x0e+3x1o", "2x0e+2x1o")
    assert not list(linear.parameters())
    x = torch.randn(5, 13)
    assert torch.equal(linear(x, own.weight), own(x))
    with pytest.raises(ValueError, match=r"weight must have shape \[14\], got None"):
        linear(x)


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_gradgradcheck(layout: Any) -> None:
    linear = Linear("2x0e+2x1o+2x1o", "1x0e+2x1o", internal_weights=False, layout=layout)
    x = torch.randn(3, 14, requires_grad=True)
    weight = torch.randn(linear.weight_numel, requires_grad=True)

    def square(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = linear(x, weight)
        return out.square()

    assert torch.autograd.gradcheck(square, (x, weight))
    assert torch.autograd.gradgradcheck(square, (x, weight))


def test_equivariance() -> None:
    linear = Linear("3x0e+2x0o+2x1o+1x2e", "2x0e+1x0o+3x1o+2x2e")
    rotation = rand_matrix(dtype=torch.float64)

    def representation(irreps: Irreps) -> torch.Tensor:
        blocks = [[ir.p * wigner_D(ir.l, rotation)] * mul for mul, ir in irreps]
        matrix: torch.Tensor = torch.block_diag(*[d for block in blocks for d in block])
        return matrix

    x = torch.randn(4, linear.irreps_in.dim)
    left = linear(x @ representation(linear.irreps_in).T)
    right = linear(x) @ representation(linear.irreps_out).T
    torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int) -> None:
    linear = Linear("2x0e+3x1o", "1x0e+2x1o", layout="ir_mul")
    assert linear(torch.randn(rows, 11)).shape == (rows, 7)


def test_rejects_bad_input() -> None:
    linear = Linear("2x0e+3x1o", "1x0e+2x1o")
    with pytest.raises(ValueError, match=r"x must have 11 columns \(irreps_in='2x0e\+3x1o'\)"):
        linear(torch.randn(3, 10))
    with pytest.raises(ValueError, match=r"weight must have shape \[8\], got shape \(7,\)"):
        linear(torch.randn(3, 11), torch.randn(7))
    with pytest.raises(ValueError, match="irreps must look like"):
        Linear("2z", "1x0e")
    with pytest.raises(ValueError, match="layout must be one of"):
        Linear("2x0e", "1x0e", layout="irmul")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize("biases", [False, True])
def test_pruned_is_the_map_with_the_other_blocks_weights_zero(layout: Any, biases: bool) -> None:
    irreps = Irreps("2x0e+3x0e+2x1o+2x1o+4x2e+1x1o")
    linear = Linear(irreps, "2x0e+4x1o+3x2e+1x1o", biases=biases, layout=layout).double()
    if linear.bias is not None:
        torch.nn.init.normal_(linear.bias)
    keep = [1, 2, 4, 5]
    pruned = linear.prune(keep)
    x = torch.randn(5, irreps.dim, dtype=torch.float64)
    columns = [irreps.slices()[block] for block in keep]
    zeroed = torch.zeros_like(x)
    for part in columns:
        zeroed[:, part] = x[:, part]
    small = torch.cat([x[:, part] for part in columns], dim=1)
    assert (pruned(small) - linear(zeroed)).abs().max() < TOLERANCES["float64"]
    assert pruned.weight_numel < linear.weight_numel


def test_refuses_another_dtype() -> None:
    linear = Linear("4x0e", "2x0e")
    with pytest.raises(TypeError, match="x and weight must share dtype"):
        linear(torch.zeros(3, 4, dtype=torch.float32))
