"""`eqtp.accelerate` on modules of the installed e3nn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

import eqtp
from eqtp.models.acceleration import e3nn as swaps
from eqtp.models.acceleration.swap import swaps_in
from eqtp.so3 import wigner_3j

TOLERANCES = {
    "values": 1e-12,  # float64, relative; two orders of summation leave 1e-15
    "gradients": 1e-11,  # first and second ones, relative
    "float32": 2e-6,
}


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan() -> None:
    """Not here: e3nn's modules are TorchScript, which cannot compile the replaced torch.empty."""


@pytest.fixture(autouse=True)
def _float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def product(mode: str, mul1: int, mul2: int, mul: int, **options: Any) -> Any:
    """All paths of vectors and tensors, some with signs that differ between versions of e3nn."""
    in1, in2 = o3.Irreps(f"{mul1}x0e+{mul1}x1o+{mul1}x2e"), o3.Irreps(f"{mul2}x1o+{mul2}x2e")
    out: list[Any] = []
    paths = []
    for i, (_, a) in enumerate(in1):
        for j, (_, b) in enumerate(in2):
            for c in a * b:
                paths.append((i, j, len(out), mode, True))
                out.append((mul, c))
    return o3.TensorProduct(in1, in2, o3.Irreps(out), paths, **options)


MODULES: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "uvu": lambda: (product("uvu", 4, 1, 4), (torch.randn(5, 36), torch.randn(5, 8))),
    "uvu, weights per row": lambda: (
        (tp := product("uvu", 4, 1, 4, shared_weights=False)),
        (torch.randn(5, 36), torch.randn(5, 8), torch.randn(5, tp.weight_numel)),
    ),
    "uvw": lambda: (product("uvw", 3, 2, 4), (torch.randn(5, 27), torch.randn(5, 16))),
    "uuu": lambda: (product("uuu", 3, 3, 3), (torch.randn(5, 27), torch.randn(5, 24))),
    "broadcast": lambda: (product("uvu", 4, 1, 4), (torch.randn(2, 1, 36), torch.randn(3, 8))),
    "fully connected": lambda: (
        o3.FullyConnectedTensorProduct("3x0e+2x1o", "2x0e+2x1e", "4x0e+3x1o+2x1e"),
        (torch.randn(5, 9), torch.randn(5, 8)),
    ),
    "full": lambda: (
        o3.FullTensorProduct("3x0e+2x1o", "2x1o"),
        (torch.randn(5, 9), torch.randn(5, 6)),
    ),
    "element-wise": lambda: (
        o3.ElementwiseTensorProduct("3x0e+2x1o", "5x0e"),
        (torch.randn(5, 9), torch.randn(5, 5)),
    ),
    "one-hot": lambda: (
        o3.FullyConnectedTensorProduct("3x0e+2x1o+2x2e", "4x0e", "4x0e+3x1o"),
        (torch.randn(5, 19), torch.eye(4)[torch.tensor([0, 3, 3, 1, 0])]),
    ),
    "no one-hot": lambda: (
        o3.FullyConnectedTensorProduct("3x0e+2x1o", "4x0e", "4x0e+3x1o"),
        (torch.randn(5, 9), torch.rand(5, 4)),
    ),
    "linear": lambda: (
        o3.Linear("3x0e+2x1o+4x0e+2x1o", "4x0e+3x1o+2x2e", biases=True),
        (torch.randn(2, 5, 19),),
    ),
    "linear, chosen paths": lambda: (
        o3.Linear("3x0e+4x0e", "3x0e+4x0e", instructions=[(0, 0), (1, 1)]),
        (torch.randn(5, 7),),
    ),
    "linear, weights given": lambda: (
        o3.Linear("3x0e+2x1o", "4x0e+3x1o", internal_weights=False),
        (torch.randn(5, 9), torch.randn(18), torch.zeros(0)),
    ),
    "harmonics": lambda: (
        o3.SphericalHarmonics([0, 1, 2, 3], normalize=True, normalization="component"),
        (torch.randn(5, 3),),
    ),
    "some harmonics": lambda: (
        o3.SphericalHarmonics("2e+1o", normalize=False, normalization="integral"),
        (torch.randn(2, 5, 3),),
    ),
    "harmonics, norm": lambda: (
        o3.SphericalHarmonics(2, normalize=True, normalization="norm"),
        (torch.randn(5, 3),),
    ),
}


def derivatives(module: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Values, gradients, and gradients of gradients, in the operands and the parameters."""
    operands = [argument.clone().requires_grad_() for argument in arguments if argument.numel()]
    rest = arguments[len(operands) :]
    wanted = [*operands, *module.parameters()]
    out = module(*operands, *rest)
    slope = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
    first = torch.autograd.grad(
        (slope * out.square()).sum(), wanted, create_graph=True, materialize_grads=True
    )
    total = torch.stack([gradient.square().sum() for gradient in first]).sum()
    second = torch.autograd.grad(total, wanted, materialize_grads=True)
    return [t.detach() for t in (out, *first, *second)]


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_are_those_of_e3nn(name: str) -> None:
    module, arguments = MODULES[name]()
    model = nn.ModuleDict({"inner": module})
    caller: nn.Module = module
    if name == "one-hot":  # gradients in the elements are none of the fast path's business
        caller, arguments = _Bound(module, arguments[1]), arguments[:1]
    expected = derivatives(caller, arguments)
    report = eqtp.accelerate(model)
    assert list(report.swapped) == ["inner"]
    assert report.modules["inner"] < TOLERANCES["values"]
    found = derivatives(caller, arguments)
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        scale = max(float(theirs.abs().max()), 1e-6) if theirs.numel() else 1.0
        tolerance = TOLERANCES["gradients" if index else "values"]
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance * scale)
    eqtp.restore(model)
    assert not list(swaps_in(model))
    assert all(map(torch.equal, derivatives(caller, arguments), expected))


class _Bound(nn.Module):
    def __init__(self, module: Any, y: Tensor) -> None:
        super().__init__()
        self.module, self.y = module, y

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x, self.y)
        return result


def test_the_one_hot_product_does_not_touch_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    module, arguments = MODULES["one-hot"]()
    expected = module(*arguments)
    eqtp.accelerate(module)
    monkeypatch.setattr(o3.FullyConnectedTensorProduct, "forward", None)
    torch.testing.assert_close(module(*arguments), expected)


def test_a_one_hot_tensor_that_is_written_to_is_read_again() -> None:
    module, (x, y) = MODULES["one-hot"]()
    eqtp.accelerate(module)
    module(x, y)
    y.copy_(torch.eye(4)[torch.tensor([1, 1, 2, 0, 0])])
    found = module(x, y)
    torch.testing.assert_close(found, eqtp.restore(module)(x, y))


def test_float32_stays_float32() -> None:
    module, (x, y) = MODULES["uvw"]()
    module = module.float()
    expected = module(x.float(), y.float())
    eqtp.accelerate(module)
    found = module(x.float(), y.float())
    assert found.dtype == torch.float32
    error = (found - expected).abs().max() / expected.abs().max()
    assert float(error.detach()) < TOLERANCES["float32"]


def test_signs_of_the_modules_own_symbols_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if e3nn had drawn other signs: the module's constants decide, not eqtp's."""

    def other_signs(*degrees: int) -> Tensor:
        return wigner_3j(*degrees) * (-1 if degrees == (1, 1, 2) else 1)

    monkeypatch.setattr(swaps, "wigner_3j", other_signs)
    module, _ = MODULES["uvu"]()
    with pytest.raises(ValueError, match="relative difference"):  # eqtp's kernels have not changed
        eqtp.accelerate(module)
    found = [path.coefficient < 0 for path in swaps.product_problem(module).paths]
    assert sum(found) == 1


def test_a_wrong_sign_is_found_named_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    problem = swaps.product_problem

    def planted(module: Any) -> Any:
        found = problem(module)
        wrong = dataclasses.replace(found.paths[2], coefficient=-found.paths[2].coefficient)
        return dataclasses.replace(found, paths=(*found.paths[:2], wrong, *found.paths[3:]))

    monkeypatch.setattr(swaps, "product_problem", planted)
    model = nn.ModuleDict({"one": o3.Linear("2x0e", "3x0e"), "two": MODULES["uvu"]()[0]})
    with pytest.raises(ValueError, match="module 'two'"):
        eqtp.accelerate(model)
    assert not list(swaps_in(model))


def test_what_is_not_supported_is_named_and_left() -> None:
    class Negated(o3.Linear):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = -super().forward(x)
            return result

    model = nn.ModuleDict(
        {
            "negated": Negated("2x0e", "2x0e"),
            "rows": o3.Linear("2x0e", "2x0e", shared_weights=False),
            "features": o3.Linear("2x0e", "2x0e", f_in=2, f_out=3),
            "nothing": o3.TensorProduct("2x0e", "2x0e", "2x0e", []),
            "torch": nn.Linear(2, 2),
        }
    )
    report = eqtp.accelerate(model)
    assert set(report.left) == {"negated", "rows", "features", "nothing"}
    assert not report.swapped
    assert "forward of its own" in report.left["negated"]
    assert "negated" in str(report)


def test_accelerated_ends_with_the_block_and_after_errors() -> None:
    module, arguments = MODULES["uvu"]()
    with eqtp.accelerated(module) as inside:
        assert inside is module
        assert list(swaps_in(module))
    assert not list(swaps_in(module))
    with pytest.raises(ValueError, match="columns"), eqtp.accelerated(module, check=False):
        module(arguments[0][:, 1:], arguments[1])
    assert not list(swaps_in(module))
    assert "forward" not in module.__dict__


def test_twice_is_once_and_copies_are_their_own() -> None:
    module, arguments = MODULES["uvu"]()
    expected = module(*arguments)
    eqtp.accelerate(module)
    eqtp.accelerate(module)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        module.weight.zero_()
    torch.testing.assert_close(twin(*arguments), expected)
    assert not module(*arguments).any()
    assert "forward" not in eqtp.restore(module).__dict__


def test_gradients_reach_the_parameters_of_the_module() -> None:
    module, arguments = MODULES["fully connected"]()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    eqtp.accelerate(module)
    before = module.weight.clone()
    module(*arguments).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight, before)


def test_only_modules_are_taken() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        eqtp.accelerate("MACE.model")  # type: ignore[arg-type]
