"""Operations on 3x3 matrices: definitions, derivatives, layouts, paths, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.matrix import Kind, matrix_normalize, matrix_product
from eqtp.kernels.matrix.op import IMPLEMENTED
from eqtp.methods import get_method
from eqtp.so3 import wigner_3j
from eqtp.so3.tensor_bases import matrix_basis

TOLERANCES = {
    torch.float64: 1e-13,  # relative to the largest; a few dozen terms, 1e-15 measured
    torch.float32: 1e-5,
}
BACKENDS = [name for name in IMPLEMENTED if name != "triton"]
KINDS = get_args(Kind)
SIZES = [(0, 4), (1, 1), (5, 3), (3, 16), (2, 35), (3, 0)]


@pytest.fixture(autouse=True)
def nan_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel allocates holds NaN until it is written."""
    empty = memory.empty
    monkeypatch.setattr(memory, "empty", lambda *args: empty(*args).fill_(torch.nan))


def rows(size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size[0], 9 * size[1], dtype=torch.float64).to(dtype)


def assert_close(a: Tensor, b: Tensor) -> None:
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    assert a.shape == b.shape
    error = TOLERANCES[a.dtype] * scale
    torch.testing.assert_close(a.double(), b.double(), rtol=0.0, atol=error)


def derivatives(function: Callable[..., Tensor], *operands: Tensor) -> list[Tensor]:
    """Value and derivatives to the third, along random directions, in every operand."""
    generator = torch.Generator().manual_seed(1)
    operands = tuple(one.detach().requires_grad_() for one in operands)
    results = [function(*operands)]
    for _ in range(3):
        scalar = torch.zeros((), dtype=operands[0].dtype)
        for one in results[-len(operands) :]:
            weight = torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one)
            scalar = scalar + (one.tanh() * weight).sum()
        results += torch.autograd.grad(scalar, operands, create_graph=True, materialize_grads=True)
    return results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_product(size: tuple[int, int], kind: Kind, dtype: torch.dtype, backend: Any) -> None:
    x, y = rows(size, dtype), rows(size, dtype)
    ours = derivatives(lambda x, y: matrix_product(x, y, kind, backend=backend), x, y)
    exact = derivatives(
        lambda x, y: matrix_product(x, y, kind, backend="reference"), x.double(), y.double()
    )
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("j", [0, 2, 3])
def test_products_of_other_sizes(j: int, kind: Kind) -> None:
    x, y = torch.randn(2, 3, (2 * j + 1) ** 2 * 2, dtype=torch.float64)
    ours = derivatives(lambda x, y: matrix_product(x, y, kind, j=j), x, y)
    exact = derivatives(lambda x, y: matrix_product(x, y, kind, j=j, backend="reference"), x, y)
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b)
    with pytest.raises(NotImplementedError, match="products of 3x3 matrices, got"):
        matrix_product(x, y, j=j, backend="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_normalize(size: tuple[int, int], dtype: torch.dtype, backend: Any) -> None:
    x = rows(size, dtype)
    ours = derivatives(lambda x: matrix_normalize(x, backend=backend), x)
    exact = derivatives(lambda x: matrix_normalize(x, backend="reference"), x.double())
    for a, b in zip(ours, exact, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradgradcheck(kind: Kind, backend: Any) -> None:
    x, y = rows((2, 2)).requires_grad_(), rows((2, 2)).requires_grad_()

    def both(x: Tensor, y: Tensor) -> Tensor:
        return matrix_product(matrix_normalize(x, backend=backend), y, kind, backend=backend)

    assert torch.autograd.gradcheck(both, (x, y))
    assert torch.autograd.gradgradcheck(both, (x, y))


def test_the_reference_multiplies_matrices() -> None:
    """The definition itself, against matrices made and read without it."""
    x, y = rows((4, 1)), rows((4, 1))
    basis = matrix_basis(1)
    left, right = (torch.einsum("nm,mab->nab", one, basis) for one in (x, y))
    expected = torch.einsum("nab,mab->nm", left @ right, basis)
    assert_close(matrix_product(x, y, backend="reference"), expected)
    assert_close(x.square().sum(1), left.square().sum((1, 2)))


def test_products_are_the_paths_of_the_method() -> None:
    """Commutator: exactly the four odd paths; anticommutator: exactly the eleven even ones."""
    method = get_method("matrix")
    found: dict[str, set[tuple[int, int, int]]] = {kind: set() for kind in KINDS}
    eye = torch.eye(9, dtype=torch.float64)
    x, y = eye.repeat_interleave(9, 0), eye.repeat(9, 1)
    for kind in KINDS:
        table = matrix_product(x, y, kind).view(9, 9, 9)
        blocks = [slice(0, 1), slice(1, 4), slice(4, 9)]
        for l1, l2, l3 in ((a, b, c) for a in range(3) for b in range(3) for c in range(3)):
            block = table[blocks[l1], blocks[l2], blocks[l3]]
            if float(block.abs().max()) < 1e-12:
                continue
            found[kind].add((l1, l2, l3))
            even = (l1 + l2 + l3) % 2 == 0
            assert kind == "product" or even == (kind == "anticommutator")
            factor = method.factor(l1, l2, l3) * (1 if kind == "product" else 2)
            assert_close(block, factor * wigner_3j(l1, l2, l3))
    assert len(found["anticommutator"]) == 11
    assert found["commutator"] == {(1, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert found["product"] == found["anticommutator"] | found["commutator"]


def test_anticommutator_commutes_with_inversion_and_the_product_does_not() -> None:
    sign = torch.tensor([1.0, *[-1.0] * 3, *[1.0] * 5], dtype=torch.float64)
    x, y = rows((6, 1)), rows((6, 1))
    assert_close(
        matrix_product(x * sign, y * sign, "anticommutator"),
        matrix_product(x, y, "anticommutator") * sign,
    )
    assert_close(matrix_product(x * sign, x * sign), matrix_product(x, x) * sign)
    change = matrix_product(x * sign, y * sign) - matrix_product(x, y) * sign
    assert float(change.abs().max()) > 0.1


def test_strided_operands() -> None:
    x, y = rows((9 * 4, 5))[::2], rows((9 * 4, 5)).flip(0)[::2]
    assert_close(matrix_product(x, y), matrix_product(x.contiguous(), y.contiguous()))


def test_same_result_for_any_number_of_threads() -> None:
    x, y = rows((700, 33), torch.float32), rows((700, 33), torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = matrix_product(matrix_normalize(x), y)
        torch.set_num_threads(3)
        three = matrix_product(matrix_normalize(x), y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_compiled_and_mapped() -> None:
    x, y = rows((4, 3)), rows((4, 3))

    def function(x: Tensor, y: Tensor) -> Tensor:
        return matrix_normalize(matrix_product(x, y, "anticommutator"))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x, y), function(x, y))
    mapped = torch.vmap(function)(x.view(2, 2, -1), y.view(2, 2, -1))
    assert_close(mapped.view(4, -1), function(x, y))


@pytest.mark.parametrize(
    ("x", "y", "kind", "error", "message"),
    [
        (rows((2, 1))[:, :8], rows((2, 1)), "product", ValueError, "9 blocks of channels"),
        (rows((2, 1)), rows((3, 1)), "product", ValueError, r"shape of x, \(2, 9\), got \(3, 9\)"),
        (rows((2, 1)), rows((2, 1)).float(), "product", TypeError, "must share dtype"),
        (rows((2, 1)), rows((2, 1)), "cross", ValueError, "kind must be one of .*'cross'"),
    ],
)
def test_bad_operands_are_refused(
    x: Tensor, y: Tensor, kind: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        matrix_product(x, y, kind)
