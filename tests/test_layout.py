from __future__ import annotations

import pytest
import torch

from eqtp.irreps import Irreps
from eqtp.layout import to_layout

# Every case is a permutation of numbers: results are compared exactly.
IRREPS = ["", "3x0e", "1x2e", "4x1o", "2x0e+3x1o+1x2e+0x1e+5x0o+2x3o", "1x1o+1x2e", "0x1o+2x1o"]


@pytest.mark.parametrize("irreps", IRREPS)
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_blocks_are_transposed(irreps: str, batch: tuple[int, ...]) -> None:
    parsed = Irreps(irreps)
    x = torch.randn(*batch, parsed.dim)
    got = to_layout(x, parsed, "mul_ir", "ir_mul")
    assert got.shape == x.shape
    for (mul, ir), columns in zip(parsed, parsed.slices(), strict=True):
        block = x[..., columns].reshape(*batch, mul, ir.dim)
        expected = block.transpose(-1, -2).reshape(*batch, mul * ir.dim)
        assert torch.equal(got[..., columns], expected)


@pytest.mark.parametrize("irreps", IRREPS)
def test_round_trip(irreps: str) -> None:
    parsed = Irreps(irreps)
    x = torch.randn(5, parsed.dim)
    there = to_layout(x, parsed, "mul_ir", "ir_mul")
    assert torch.equal(to_layout(there, parsed, "ir_mul", "mul_ir"), x)


def test_same_layout_returns_the_tensor_itself() -> None:
    x = torch.randn(3, 6)
    assert to_layout(x, Irreps("2x1o"), "ir_mul", "ir_mul") is x
    assert to_layout(x, Irreps("3x0e+1x1o"), "mul_ir", "ir_mul") is x


def test_non_contiguous_input() -> None:
    irreps = Irreps("2x1o+3x0e")
    x = torch.randn(9, 4).t()
    expected = to_layout(x.contiguous(), irreps, "mul_ir", "ir_mul")
    assert torch.equal(to_layout(x, irreps, "mul_ir", "ir_mul"), expected)


def test_gradients() -> None:
    irreps = Irreps("2x1o+3x0e+2x2e")
    x = torch.randn(2, irreps.dim, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: to_layout(v, irreps, "mul_ir", "ir_mul"), (x,))


def test_rejects_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x must have 6 columns \(irreps='2x1o'\)"):
        to_layout(torch.randn(3, 5), Irreps("2x1o"), "mul_ir", "ir_mul")
    with pytest.raises(ValueError, match="dst must be one of"):
        to_layout(torch.randn(3, 6), Irreps("2x1o"), "mul_ir", "irmul")  # type: ignore[arg-type]
