from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import eqtp
from eqtp.irreps import Irreps
from eqtp.layout import to_layout
from eqtp.nn import TensorReadout
from eqtp.so3 import rand_matrix, spherical_harmonics, tensor_to_irreps, wigner_D

# Sums of a few dozen products of numbers of order one; 3e-15 measured. "fit": a least-squares
# solution, whose error is that of the features times their condition number (2e-13 measured).
TOLERANCES = {"float64": 1e-12, "fit": 1e-10}

# Features, formula, traceless, parity of the tensor.
CASES = [
    ("4x0e+3x1o", "i", False, None),
    ("4x0e+3x1e", "i", False, 1),
    ("5x0e", "", False, None),
    ("4x0e+3x1o+5x2e", "ij=ji", False, None),
    ("3x2e+4x0e+2x2e", "ij=ji", True, None),
    ("4x0e+3x1e+2x2e", "ij", False, None),
    ("2x1e", "ij=-ji", False, None),
    ("2x1o+3x2o+2x3o+4x0e", "ijk=ikj", False, None),
    ("2x0e+3x2e+2x4e", "ijkl=jikl=ijlk=klij", False, None),
]


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def turn_features(x: Tensor, irreps: Irreps, rotation: Tensor, inversion: int) -> Tensor:
    blocks = [
        wigner_D(ir.l, rotation) * (ir.p if inversion < 0 else 1)
        for mul, ir in irreps
        for _ in range(mul)
    ]
    turned: Tensor = x @ torch.block_diag(*blocks).T
    return turned


def turn_tensor(tensor: Tensor, rotation: Tensor) -> Tensor:
    for axis in range(1, tensor.ndim):
        tensor = torch.tensordot(tensor, rotation, dims=([axis], [1])).movedim(-1, axis)
    return tensor


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize(("irreps", "formula", "traceless", "parity"), CASES)
def test_tensors_turn_with_the_features(
    irreps: str, formula: str, traceless: bool, parity: int | None, layout: Any
) -> None:
    readout = TensorReadout(irreps, formula, traceless, parity=parity, layout=layout)
    rotation = rand_matrix()
    for inversion in (1, -1):
        x = torch.randn(6, readout.irreps_in.dim)
        turned = turn_features(x, readout.irreps_in, rotation, inversion)
        sign = 1 if inversion > 0 else parity or (-1) ** readout.rank
        before, after = (
            readout(to_layout(y, readout.irreps_in, "mul_ir", layout)) for y in (x, turned)
        )
        assert before.shape == (6, *(3,) * readout.rank)
        assert before.abs().max() > 1e-3
        expected = sign * turn_tensor(before, rotation)
        assert (after - expected).abs().max() < TOLERANCES["float64"]
        tensor_to_irreps(before, formula, traceless, tolerance=TOLERANCES["float64"])


def test_layouts_agree() -> None:
    irreps = Irreps("4x0e+3x1o+5x2e")
    one, other = TensorReadout(irreps), TensorReadout(irreps, layout="ir_mul")
    other.load_state_dict(one.state_dict())
    x = torch.randn(3, irreps.dim)
    difference = one(x) - other(to_layout(x, irreps, "mul_ir", "ir_mul"))
    assert difference.abs().max() < TOLERANCES["float64"]


def test_a_graph_has_the_sum_over_its_nodes() -> None:
    readout = TensorReadout("4x0e+5x2e")
    x, batch = torch.randn(5, 29), torch.tensor([1, 0, 1, 3, 0])
    nodes, graphs = readout(x), readout(x, batch)
    assert graphs.shape == (4, 3, 3)
    for graph in range(4):
        expected = nodes[batch == graph].sum(0)
        assert (graphs[graph] - expected).abs().max() < TOLERANCES["float64"]
    assert readout(x, batch, 6).shape == (6, 3, 3)


def test_components_have_variance_one_as_drawn() -> None:
    """Exact, not sampled: the mean over weights of y² is the sum of squares of the scales."""
    readout = TensorReadout("7x0e+3x2e+2x2e", "ij=ji")
    x = torch.ones(1, readout.irreps_in.dim)
    squares = torch.zeros(6)
    for index in range(readout.linear.weight_numel):
        with torch.no_grad():
            readout.linear.get_parameter("weight").zero_()[index] = 1.0
        squares += tensor_to_irreps(readout(x), "ij=ji")[0].square()
    assert (squares - 1).abs().max() < TOLERANCES["float64"]


def test_gradients_of_second_order() -> None:
    readout = TensorReadout("2x0e+2x2e")
    x = torch.randn(3, 12, requires_grad=True)
    assert torch.autograd.gradcheck(readout, x)
    assert torch.autograd.gradgradcheck(lambda x: readout(x.sin()), x)


def test_empty_float32_and_state() -> None:
    readout = TensorReadout("2x0e+2x2e").float()
    assert readout(torch.zeros(0, 12, dtype=torch.float32)).shape == (0, 3, 3)
    empty = torch.zeros(0, dtype=torch.int64)
    assert readout(torch.zeros(0, 12, dtype=torch.float32), empty).shape == (0, 3, 3)
    assert readout(torch.zeros(1, 12, dtype=torch.float32)).dtype == torch.float32
    assert list(readout.state_dict()) == ["linear.weight"]


def test_features_without_an_irrep_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'1x0e\+1x2e'; '32x0e\+32x1o' lacks 2e"):
        TensorReadout("32x0e+32x1o", "ij=ji")
    with pytest.raises(ValueError, match="lacks 1e"):
        TensorReadout("4x0e+4x1o+0x1e+4x2e", "ij")
    with pytest.raises(ValueError, match=r"each of 2 nodes, got shape \(3,\)"):
        TensorReadout("4x0e", "")(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    assert "TensorReadout" in dir(eqtp)


def energy_in_field(positions: Tensor, charges: Tensor, field: Tensor) -> Tensor:
    """Charges and polarisable bonds in a field: E = -sum q r.F - 1/2 sum_b F a_b F.

    The charges sum to zero; a bond's polarizability is g(r) along it and h(r) in all directions.
    """
    i, j = torch.triu_indices(len(positions), len(positions), 1)
    vectors = positions[i] - positions[j]
    lengths = vectors.norm(dim=1)
    along = (vectors @ field).square() * torch.exp(-lengths) / lengths**2
    around = field.square().sum() * torch.exp(-(lengths**2))
    energy: Tensor = -(charges @ positions) @ field - 0.5 * (along + around).sum()
    return energy


def node_features(positions: Tensor, charges: Tensor) -> Tensor:
    """Per atom, summed over neighbours: 0e, 1o and 2e, with four radial functions each."""
    n = len(positions)
    i, j = (1 - torch.eye(n)).nonzero(as_tuple=True)
    vectors = positions[j] - positions[i]
    r = vectors.norm(dim=1)
    radial = torch.stack([r * charges[j], torch.exp(-r), torch.exp(-(r**2)), 1 / r], dim=1)
    Y = spherical_harmonics(2, vectors)
    blocks = [
        torch.zeros(n, 4, 2 * l + 1).index_add(
            0, i, radial[:, :, None] * Y[:, None, l * l : (l + 1) ** 2]
        )
        for l in range(3)
    ]
    return torch.cat([block.flatten(1) for block in blocks], dim=1)


@pytest.mark.parametrize(("formula", "order"), [("i", 1), ("ij=ji", 2)])
def test_readouts_fit_the_derivatives_of_an_energy_with_respect_to_a_field(
    formula: str, order: int
) -> None:
    """Labels are -dE/dF and -d²E/dF² by autograd; fitted on 20 molecules, tested on others.

    The readout is linear in its weights, so the fit is least squares, and it is exact: the energy
    was made of the features' functions. A basis with a wrong sign, scale or order of components
    in one block could not fit it on molecules of random shape.
    """
    readout = TensorReadout("4x0e+4x1o+4x2e", formula)
    weight = readout.linear.get_parameter("weight")

    def label(positions: Tensor, charges: Tensor) -> Tensor:
        derivative = torch.func.grad if order == 1 else torch.func.hessian
        minus: Tensor = derivative(lambda f: energy_in_field(positions, charges, f))(torch.zeros(3))
        return -minus

    def sample(count: int) -> tuple[Tensor, Tensor, Tensor]:
        features, batch, labels = [], [], []
        for graph in range(count):
            positions, charges = 2 * torch.randn(5, 3), torch.randn(5)
            charges = charges - charges.mean()
            features.append(node_features(positions, charges))
            batch.append(torch.full((5,), graph))
            labels.append(label(positions, charges))
        return torch.cat(features), torch.cat(batch), torch.stack(labels)

    features, batch, labels = sample(20)
    columns = []
    for index in range(len(weight)):
        with torch.no_grad():
            weight.zero_()[index] = 1.0
        columns.append(readout(features, batch).detach().flatten())
    solution = torch.linalg.lstsq(torch.stack(columns, 1), labels.flatten()[:, None]).solution
    with torch.no_grad():
        weight.copy_(solution[:, 0])
    features, batch, labels = sample(5)
    error = (readout(features, batch) - labels).norm() / labels.norm()
    assert error < TOLERANCES["fit"]
