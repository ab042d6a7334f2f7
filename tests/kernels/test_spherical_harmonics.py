from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from eqtp import so3
from eqtp.kernels.spherical_harmonics import _torch, reference, spherical_harmonics
from eqtp.nn.spherical_harmonics import SphericalHarmonics
from eqtp.so3.solid_harmonics import Normalization

TOLERANCES = {
    "e3nn": 1e-13,  # relative to a column's largest value; 2e-15 measured
    "value": 1e-12,  # against the definition, values to 6; 2e-14 measured at lmax 20
    "derivative": 1e-11,  # first to third, times up to lmax^3; 1e-12 measured
    "float32": 5e-6,  # a rounding of 6e-8 in u enters l = 6 times in values to 3.6; 2.4e-6 measured
}
POLES = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
NEAR_POLES = torch.tensor(
    [[1e-160, 1.0, 0.0], [1e-12, -1.0, 1e-13], [3e-8, 1.0, -1e-8], [1e-4, -1.0, 1e-4]],
    dtype=torch.float64,
)
NORMALIZATIONS: list[Normalization] = ["component", "norm", "integral"]


def derivatives(function: object, lmax: int, vec: Tensor, normalize: bool) -> list[Tensor]:
    """Value, gradient, Hessian and third derivative along random covectors and directions."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(vec), (lmax + 1) ** 2)
    covector = torch.randn(shape, generator=generator, dtype=vec.dtype).requires_grad_()
    vec = vec.clone().requires_grad_()
    results = [function(lmax, vec, "component", normalize)]  # type: ignore[operator]
    scalar = (results[0] * covector).sum()
    for _ in range(3):
        gradient, mixed = torch.autograd.grad(
            scalar, (vec, covector), create_graph=True, materialize_grads=True
        )
        results += [gradient, mixed]
        direction = torch.randn(vec.shape, generator=generator, dtype=vec.dtype)
        scalar = (gradient * direction).sum()
    return results


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("normalize", [True, False])
def test_agrees_with_e3nn(normalization: Normalization, normalize: bool) -> None:
    o3 = pytest.importorskip("e3nn").o3
    vec = torch.randn(50, 3)
    expected = o3.spherical_harmonics(list(range(12)), vec, normalize, normalization)
    error = (spherical_harmonics(11, vec, normalization, normalize) - expected).abs().amax(0)
    assert (error / expected.abs().amax(0)).max() < TOLERANCES["e3nn"]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("lmax", [0, 1, 2, 3, 12, 20])
def test_agrees_with_the_definition(lmax: int, normalization: Normalization) -> None:
    vec = torch.cat([torch.randn(20, 3), POLES, NEAR_POLES, torch.zeros(1, 3)])
    torch.testing.assert_close(
        spherical_harmonics(lmax, vec, normalization),
        reference.spherical_harmonics(lmax, vec, normalization),
        rtol=0,
        atol=TOLERANCES["value"],
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lmax", [0, 1, 3, 8])
def test_plain_torch_agrees_with_the_definition(lmax: int, normalize: bool) -> None:
    """The path of other devices, of torch.func, and of what is differentiated further."""
    vec = torch.randn(5, 3)
    ours = derivatives(_torch.spherical_harmonics, lmax, vec, normalize)
    expected = derivatives(reference.spherical_harmonics, lmax, vec, normalize)
    for result, target in zip(ours, expected, strict=True):
        scale = 1 + target.detach().abs().max()
        torch.testing.assert_close(
            result / scale, target / scale, rtol=0, atol=TOLERANCES["derivative"]
        )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("lmax", [1, 3, 8])
def test_loss_on_forces_agrees_with_the_definition(lmax: int, normalize: bool) -> None:
    """The gradient in the harmonics' own gradient, and nothing else asked for."""
    vec = torch.randn(37, 3, requires_grad=True)
    covector = torch.randn(37, (lmax + 1) ** 2, requires_grad=True)

    def result(function: object) -> Tensor:
        values = function(lmax, vec, "component", normalize)  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(
            (values * covector).sum(), vec, create_graph=True, materialize_grads=True
        )
        return torch.autograd.grad(gradient.square().sum(), covector)[0]

    expected = result(reference.spherical_harmonics)
    scale = 1 + expected.abs().max()
    torch.testing.assert_close(
        result(spherical_harmonics) / scale,
        expected / scale,
        rtol=0,
        atol=TOLERANCES["derivative"],
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("vec", [torch.randn(5, 3, dtype=torch.float64), POLES, NEAR_POLES])
@pytest.mark.parametrize("lmax", [0, 1, 3, 8])
def test_three_derivatives_agree_with_those_of_the_definition(
    lmax: int, vec: Tensor, normalize: bool
) -> None:
    ours = derivatives(spherical_harmonics, lmax, vec, normalize)
    expected = derivatives(reference.spherical_harmonics, lmax, vec, normalize)
    for result, target in zip(ours, expected, strict=True):
        scale = 1 + target.detach().abs().max()
        torch.testing.assert_close(
            result / scale, target / scale, rtol=0, atol=TOLERANCES["derivative"]
        )


@pytest.mark.parametrize("vec", [POLES, NEAR_POLES, torch.randn(3, 3, dtype=torch.float64)])
def test_solid_harmonics_obey_euler_and_laplace(vec: Tensor) -> None:
    lmax = 6
    degree = torch.cat([torch.full((2 * l + 1,), float(l)) for l in range(lmax + 1)])
    for v in vec:

        def solid(v: Tensor) -> Tensor:
            return spherical_harmonics(lmax, v, normalize=False)

        gradient = torch.autograd.functional.jacobian(solid, v)
        torch.testing.assert_close(
            gradient @ v, degree * solid(v), rtol=0, atol=TOLERANCES["derivative"] * 100
        )
        laplacian = torch.zeros(len(degree))
        for m in range(len(degree)):
            hessian = torch.autograd.functional.hessian(lambda v, m=m: solid(v)[m], v)
            laplacian[m] = hessian.trace()
        torch.testing.assert_close(
            laplacian, torch.zeros_like(degree), rtol=0, atol=TOLERANCES["derivative"] * 100
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(normalize: bool) -> None:
    vec = torch.randn(3, 3, requires_grad=True)

    def function(vec: Tensor) -> Tensor:
        return spherical_harmonics(3, vec, "component", normalize)

    assert torch.autograd.gradcheck(function, (vec,))
    assert torch.autograd.gradgradcheck(function, (vec,))


def test_zero_vector_has_the_constant_and_no_derivatives() -> None:
    vec = torch.stack([torch.zeros(3), torch.tensor([1e-160, 0.0, 0.0]), torch.randn(3)])
    values, *rest = derivatives(spherical_harmonics, 4, vec, True)
    assert torch.equal(values[:2, 0], torch.ones(2))
    assert not values[:2, 1:].any()
    # every second result is the derivative along the covector: the value, then its derivatives
    for result in [*rest[0::2], *rest[3::2]]:
        assert not result[:2].any()
        assert result[2].any()


def test_zero_vector_is_nothing_special_for_solid_harmonics() -> None:
    zero = torch.zeros(1, 3)
    ours = derivatives(spherical_harmonics, 4, zero, False)
    expected = derivatives(reference.spherical_harmonics, 4, zero, False)
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCES["derivative"])
    jacobian = torch.autograd.functional.jacobian(
        lambda v: spherical_harmonics(2, v, "norm", normalize=False), zero[0]
    )
    torch.testing.assert_close(jacobian[1:4], torch.eye(3))


def test_length_does_not_matter_with_normalize() -> None:
    vec = torch.randn(10, 3)
    expected = spherical_harmonics(5, vec)
    for length in (1e-140, 1e-20, 1e20, 1e140):
        torch.testing.assert_close(
            spherical_harmonics(5, length * vec), expected, rtol=0, atol=TOLERANCES["value"]
        )


def test_inversion_gives_the_parity() -> None:
    vec = torch.randn(4, 3)
    parity = torch.cat([torch.full((2 * l + 1,), (-1.0) ** l) for l in range(6)])
    assert torch.equal(spherical_harmonics(5, -vec), parity * spherical_harmonics(5, vec))


def test_poles_are_exact() -> None:
    values = spherical_harmonics(10, POLES, "norm")
    zonal = torch.tensor([l * l + l for l in range(11)])
    others = torch.ones(121, dtype=torch.bool).index_fill(0, zonal, False)
    assert not values[:, others].any()
    signs = torch.tensor([[1.0] * 11, [(-1.0) ** l for l in range(11)]])
    torch.testing.assert_close(values[:, zonal], signs, rtol=0, atol=TOLERANCES["value"])


def test_float32_is_kept_and_as_accurate_as_it_can_be() -> None:
    vec = torch.randn(1000, 3)
    result = spherical_harmonics(6, vec.float())
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result.double(),
        spherical_harmonics(6, vec.float().double()),
        rtol=0,
        atol=TOLERANCES["float32"],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_a_type_of_storage(dtype: torch.dtype) -> None:
    vec = torch.randn(50, 3).to(dtype).requires_grad_()
    result = spherical_harmonics(4, vec)
    assert torch.equal(result, spherical_harmonics(4, vec.float()).to(dtype))
    (gradient,) = torch.autograd.grad(result.sum(), vec)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_autocast_changes_nothing() -> None:
    vec = torch.randn(8, 3, dtype=torch.float32, requires_grad=True)
    expected = spherical_harmonics(3, vec)
    (expected_gradient,) = torch.autograd.grad(expected.pow(3).sum(), vec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = spherical_harmonics(3, vec)
        (gradient,) = torch.autograd.grad(result.pow(3).sum(), vec)
    assert torch.equal(result, expected)
    assert torch.equal(gradient, expected_gradient)


def test_can_be_differentiated_after_a_first_call_in_inference_mode() -> None:
    lmax = 13  # a degree that no other test has put into the cache
    with torch.inference_mode():
        spherical_harmonics(lmax, torch.randn(2, 3))
    vec = torch.randn(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(spherical_harmonics(lmax, vec).sum(), vec)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(3,), (0, 3), (1, 3), (2, 5, 3), (2, 0, 3)])
@pytest.mark.parametrize("lmax", [0, 1, 4])
def test_batch_shapes(lmax: int, shape: tuple[int, ...]) -> None:
    vec = torch.randn(shape, requires_grad=True)
    result = spherical_harmonics(lmax, vec)
    assert result.shape == (*shape[:-1], (lmax + 1) ** 2)
    assert result.is_contiguous()
    torch.testing.assert_close(result, reference.spherical_harmonics(lmax, vec))
    (gradient,) = torch.autograd.grad(result.sum(), vec, create_graph=True)
    assert gradient.shape == shape
    gradient.sum().backward()
    assert vec.grad is not None
    assert vec.grad.isfinite().all()


def test_strided_input() -> None:
    vec = torch.randn(3, 7).t()
    assert torch.equal(spherical_harmonics(3, vec), spherical_harmonics(3, vec.contiguous()))


def test_nan_is_not_hidden() -> None:
    vec = torch.tensor([[torch.nan, 0.0, 1.0], [1.0, 0.0, 0.0]])
    result = spherical_harmonics(2, vec)
    assert result[0, 1:].isnan().any()
    assert result[1].isfinite().all()


@pytest.mark.parametrize(
    ("lmax", "vec", "normalization", "error", "message"),
    [
        (-1, torch.ones(2, 3), "norm", ValueError, "lmax must be >= 0, got -1"),
        (1, torch.ones(2, 4), "norm", ValueError, r"3 columns \(x, y, z\), got shape \(2, 4\)"),
        (1, torch.tensor(1.0), "norm", ValueError, r"got shape \(\)"),
        (1, torch.ones(2, 3), "schmidt", ValueError, "component, norm, integral, got 'schmidt'"),
        (1, torch.ones(2, 3, dtype=torch.int64), "norm", TypeError, "got torch.int64"),
    ],
)
def test_refuses_bad_input(
    lmax: int, vec: Tensor, normalization: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spherical_harmonics(lmax, vec, normalization)  # type: ignore[arg-type]


def test_module_is_the_function() -> None:
    module = SphericalHarmonics(3, normalization="integral", normalize=False)
    vec = torch.randn(4, 3)
    assert torch.equal(module(vec), spherical_harmonics(3, vec, "integral", False))
    assert str(module.irreps_out) == "1x0e+1x1o+1x2e+1x3o"
    assert "lmax=3, normalization='integral', normalize=False" in repr(module)
    with pytest.raises(ValueError, match="lmax"):
        SphericalHarmonics(-1)


def test_is_public_in_so3_whichever_is_imported_first() -> None:
    assert so3.spherical_harmonics is spherical_harmonics
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = so3.no_such_name
    code = (
        "from eqtp.kernels.spherical_harmonics import spherical_harmonics as first\n"
        "from eqtp.so3 import spherical_harmonics as second\n"
        "assert first is second"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
