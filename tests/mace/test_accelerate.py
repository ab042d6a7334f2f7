"""`eqtp.accelerate` on models of mace-torch: the same numbers, the same modules, or a refusal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor, nn

pytest.importorskip("mace", reason="needs the environment .venv-mace of `make test`")

import eqtp
from eqtp.benchmarks.mace_torch import MaceTorch
from eqtp.cli import main
from eqtp.irreps import Irreps
from eqtp.models.acceleration import mace as swaps
from eqtp.models.acceleration.kept import graph_of
from eqtp.models.acceleration.swap import swaps_in
from eqtp.models.training.data import from_ase

pytestmark = pytest.mark.mace

TOLERANCES = {
    "float64": 1e-10,  # the bar; two orders of summation leave 1e-14
    "gradients": 1e-9,  # the bar, of each parameter's largest gradient
    "float32": 2e-6,  # the bar
    # From float64, over mace-torch's own distance, which is rounding of sums that cancel: for ten
    # random 128x0e+128x1o 0.8e-6 to 6.6e-6, accelerated 1.0e-6 to 6.8e-6, over each other 0.7 to
    # 2.5; with pair repulsion and 89 elements 1.2e-5 and 1.0e-5.
    "stress in float32": 4.0,
}

R_MAX = 4.0
ENERGIES = {1: -13.57, 6: -1029.49, 7: -1484.87, 8: -2041.84}
ELEMENTS_89 = [*range(1, 84), *range(89, 95)]


@pytest.fixture(autouse=True)
def _fresh_tensors_are_nan() -> None:
    """Not here: mace-torch is TorchScript, which cannot compile the replaced torch.empty."""


def block(name: str) -> Any:
    from mace.modules import interaction_classes

    return interaction_classes[name]


def blocks(first: str, later: str | None = None) -> dict[str, Any]:
    return {"interaction_cls_first": block(first), "interaction_cls": block(later or first)}


def elements_89() -> dict[str, Any]:
    return {"atomic_numbers": ELEMENTS_89, "atomic_energies": [-1.0 * z for z in ELEMENTS_89]}


def two_heads() -> dict[str, Any]:
    return {
        "heads": ["one", "two"],
        "atomic_energies": [list(ENERGIES.values())] * 2,
        "scale": [0.8, 0.7],
        "shift": [0.0, 0.1],
    }


def foundation() -> dict[str, Any]:
    """As MACE-MP-0b: 89 elements, 10 Bessel functions, Agnesi, ZBL, density blocks."""
    return {
        "num_bessel": 10,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        **elements_89(),
        **blocks(
            "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"
        ),
    }


MODELS: dict[str, Callable[[], dict[str, Any]]] = {
    "residual": dict,
    "agnostic": lambda: blocks(
        "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"
    ),
    "attention": lambda: blocks("RealAgnosticAttResidualInteractionBlock"),
    "nonlinear": lambda: blocks("RealAgnosticResidualNonLinearInteractionBlock"),
    "foundation": foundation,
    "two heads": two_heads,
    "correlation 1": lambda: {"correlation": 1},
    "correlation 3, tensors to l = 2": lambda: {
        "correlation": 3,
        "max_ell": 3,
        "hidden_irreps": "3x0e+3x1o+3x2e",
    },
    "correlation 4": lambda: {"correlation": 4, "hidden_irreps": "3x0e"},
    "scalars": lambda: {"hidden_irreps": "5x0e"},
    "cutoff outside": lambda: {"apply_cutoff": False},
    "agnostic product": lambda: {"use_agnostic_product": True},
    "rotations only": lambda: {"use_so3": True, "hidden_irreps": "4x0e+4x1e"},
    "edge irreps": lambda: {"edge_irreps": Irreps("2x0e+2x1o")},
}


def build(name: str, **options: Any) -> MaceTorch:
    torch.manual_seed(7)
    defaults: dict[str, Any] = {
        "atomic_numbers": list(ENERGIES),
        "atomic_energies": list(ENERGIES.values()),
        "avg_num_neighbors": 7.3,
        "r_max": R_MAX,
        "hidden_irreps": "4x0e+4x1o",
        "max_ell": 2,
        "correlation": 2,
        "radial_mlp": (16, 16),
        "scale": 0.8,
        "shift": -0.2,
    }
    return MaceTorch(**(defaults | MODELS[name]() | options))


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A model as it was made, whatever a test did to it before."""
    made = build(request.param)
    yield made.mace
    eqtp.restore(made.mace)


def rattled(atoms: Atoms, seed: int) -> Atoms:
    atoms.positions += 0.08 * np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    return atoms


def structures() -> Any:
    """An atom alone, a molecule, and a sheared cell smaller than the cutoff."""
    crystal = bulk("C", "diamond", a=3.6) * (2, 1, 1)
    crystal.numbers = [6, 7, 8, 1]
    crystal.set_cell(crystal.cell.array @ (np.eye(3) + 0.05 * np.eye(3, k=1)), scale_atoms=True)
    alone = Atoms("O", cell=9 * np.eye(3), pbc=True)
    ethanol = molecule("CH3CH2OH", cell=9 * np.eye(3), pbc=True)
    return from_ase([alone, rattled(ethanol, 0), rattled(crystal, 1)], R_MAX)


def native(model: Any, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The batch as mace-torch takes it."""
    data = structures()
    numbers = torch.as_tensor(model.atomic_numbers)
    shift = torch.einsum(
        "ei,eij->ej", data.edge_shift, data.cell.inverse()[data.batch[data.edge_src]]
    )
    batch = {
        "positions": data.positions,
        "node_attrs": (data.atomic_numbers[:, None] == numbers).to(dtype),
        "edge_index": torch.stack([data.edge_src, data.edge_dst]),
        "shifts": data.edge_shift,
        "unit_shifts": shift.round(),
        "cell": data.cell.reshape(-1, 3),
        "batch": data.batch,
        "ptr": torch.tensor([0, 1, 10, len(data.positions)]),
        "head": torch.tensor([0, len(model.heads) - 1, 0]),
    }
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}


def observe(model: Any, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    output = model(native(model, dtype), compute_stress=True)
    return {k: output[k].detach() for k in ("interaction_energy", "forces", "stress")}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of a loss of forces, the second derivatives of the energy."""
    torch.manual_seed(1)
    forces = model(native(model), training=True)["forces"]
    loss = (forces - torch.randn_like(forces)).square().mean()
    wanted = {k: p for k, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, [*wanted.values()], materialize_grads=True)
    return dict(zip(wanted, found, strict=True))


def relative(value: Tensor, reference: Tensor) -> float:
    scale = max(float(reference.detach().abs().max()), 1e-6)
    return float((value - reference).detach().abs().max()) / scale


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert relative(found[key], value) < tolerance, key


def test_numbers_and_second_gradients_are_those_of_the_original(model: Any) -> None:
    expected, slopes = observe(model), gradients(model)
    report = eqtp.accelerate(model)
    assert not report.left
    assert {"interactions.0.conv_tp", "products.1.symmetric_contractions"} <= set(report.swapped)
    assert {"energy float64", "forces float64", "stress float64"} == set(report.differences)
    assert_equal(observe(model), expected, TOLERANCES["float64"])
    assert_equal(gradients(model), slopes, TOLERANCES["gradients"])


def test_modules_parameters_and_state_dict_stay_what_they_are(model: Any) -> None:
    eqtp.restore(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    modules = {name: id(module) for name, module in model.named_modules()}
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}

    def assert_unchanged() -> None:
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert {name: id(p) for name, p in model.named_parameters()} == parameters
        assert {name: id(m) for name, m in model.named_modules()} == modules

    eqtp.accelerate(model, check=False)
    assert_unchanged()
    assert any(True for _ in swaps_in(model))
    assert eqtp.restore(model) is model
    assert_unchanged()
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes


def test_the_convolution_is_fused_with_gather_and_sum(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    call = swaps.Convolution.__call__

    def spy(self: Any, x: Any, y: Any, weight: Any = None, edge_index: Any = None) -> Any:
        seen.append(edge_index)
        return call(self, x, y, weight, edge_index)

    monkeypatch.setattr(swaps.Convolution, "__call__", spy)
    with eqtp.accelerated(model, check=False):
        observe(model)
    assert len(seen) == 2
    assert seen[0] is seen[1] is not None


def test_float32_models_stay_float32() -> None:
    model = build("correlation 3, tensors to l = 2").mace.float()
    report = assert_equal_in_float32(model, check=True)
    assert {"forces float32", "forces float64"} <= set(report.differences)


def assert_equal_in_float32(model: Any, check: bool) -> Any:
    """Accelerates; the stress has cancelled more and must be as accurate as mace-torch's."""
    truth = observe(copy.deepcopy(model).double())["stress"]
    expected = observe(model, torch.float32)
    report = eqtp.accelerate(model, check=check)
    found = observe(model, torch.float32)
    for key in ("interaction_energy", "forces"):
        assert found[key].dtype == expected[key].dtype  # pair repulsion answers in float64
        assert relative(found[key], expected[key]) < TOLERANCES["float32"], key
    error, theirs = (relative(result["stress"].double(), truth) for result in (found, expected))
    assert error < max(TOLERANCES["stress in float32"] * theirs, TOLERANCES["float32"])
    return report


@pytest.mark.parametrize("name", ["residual", "cutoff outside"])
def test_weights_of_large_graphs_are_never_stored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name).mace
    expected, slopes = observe(model), gradients(model)
    monkeypatch.setattr(swaps, "MAX_STORED_WEIGHTS", 0)
    report = eqtp.accelerate(model)
    assert report.swapped["interactions.0.conv_tp_weights"] == "radial network"
    monkeypatch.setattr(swaps.Convolution, "weights", None)
    assert_equal(observe(model), expected, TOLERANCES["float64"])
    assert_equal(gradients(model), slopes, TOLERANCES["gradients"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_irreps": "128x0e"},
        {"hidden_irreps": "128x0e+128x1o"},
        {"hidden_irreps": "128x0e+128x1o+128x2e"},
        {"hidden_irreps": "96x0e"},
        {"hidden_irreps": "192x0e+192x1o+192x2e"},
        {"hidden_irreps": "128x0e+128x1o", **elements_89()},
    ],
    ids=lambda shape: shape["hidden_irreps"] + ", 89 elements" * ("atomic_numbers" in shape),
)
def test_shapes_of_published_models(shape: dict[str, Any]) -> None:
    kind = "foundation" if "atomic_numbers" in shape else "agnostic"
    sizes = {"max_ell": 3, "correlation": 3, "radial_mlp": (64, 64, 64)}
    model = build(kind, **sizes, **shape).mace
    expected, slopes = observe(model), gradients(model)
    eqtp.accelerate(model)
    assert_equal(observe(model), expected, TOLERANCES["float64"])
    assert_equal(gradients(model), slopes, TOLERANCES["gradients"])
    assert_equal_in_float32(eqtp.restore(model).float(), check=False)


def test_training_goes_on_with_the_same_optimizer_and_average() -> None:
    from torch.optim.swa_utils import AveragedModel

    losses = {}
    for accelerated in (False, True):
        model = build("residual").mace
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        average = AveragedModel(model)
        for step in range(6):
            if accelerated and step == 2:
                eqtp.accelerate(model, check=False)
            if accelerated and step == 4:
                eqtp.restore(model)
            optimizer.zero_grad()
            loss = model(native(model), training=True)["forces"].square().mean()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
        losses[accelerated] = torch.stack([loss, observe(average.module)["forces"].abs().max()])
    assert relative(losses[True], losses[False]) < 1e-8  # six steps of Adam amplify rounding


def test_a_copy_of_an_accelerated_model_is_its_own() -> None:
    model = build("residual").mace
    expected = observe(model)
    eqtp.accelerate(model, check=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert_equal(observe(twin), expected, TOLERANCES["float64"])
    assert_equal(observe(eqtp.restore(twin)), expected, TOLERANCES["float64"])


@pytest.mark.parametrize("part", ["convolution", "contraction"])
def test_a_wrong_sign_is_found_named_and_undone(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from eqtp.models.acceleration import e3nn

    model = build("residual").mace
    expected = observe(model)
    if part == "convolution":
        problem = e3nn.product_problem

        def planted(module: Any) -> Any:
            found = problem(module)
            wrong = dataclasses.replace(found.paths[-1], coefficient=-found.paths[-1].coefficient)
            return dataclasses.replace(found, paths=(*found.paths[:-1], wrong))

        monkeypatch.setattr(e3nn, "product_problem", planted)
        name = "conv_tp"
    else:
        projection = swaps._projection

        def planted_projection(u: Tensor, coupling: Any) -> Tensor:
            found = projection(u, coupling)
            found[0] *= -1
            return found

        monkeypatch.setattr(swaps, "_projection", planted_projection)
        name = "symmetric_contractions"
    with pytest.raises(ValueError, match=name):
        eqtp.accelerate(model)
    assert not list(swaps_in(model))
    assert_equal(observe(model), expected, 1e-14)


def test_an_error_between_modules_is_found_in_the_whole_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every module for itself is right; that the senders are mixed up only the model can tell."""
    model = build("residual").mace
    monkeypatch.setattr(swaps.Convolution, "definition", lambda self, *a: self(*a))
    monkeypatch.setattr(swaps, "graph_of", lambda src, dst, n: graph_of(src.roll(1), dst, n))
    with pytest.raises(ValueError, match=r"from module 'interactions\.\d\.conv_tp'"):
        eqtp.accelerate(model)
    assert not list(swaps_in(model))


def test_a_subclass_with_a_forward_of_its_own_is_left_alone() -> None:
    from mace.modules.symmetric_contraction import SymmetricContraction

    class Doubled(SymmetricContraction):  # type: ignore[misc]
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            result: Tensor = 2 * super().forward(x, y)
            return result

    class Unfused(block("RealAgnosticResidualInteractionBlock")):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            index = inputs["edge_index"]
            up = self.linear_up(inputs["node_feats"])
            weights = self.conv_tp_weights(inputs["edge_feats"])
            messages = 0.5 * self.conv_tp(up[index[0]], inputs["edge_attrs"], weights)
            sums = messages.new_zeros(len(up), messages.shape[1]).index_add(0, index[1], messages)
            skip = self.skip_tp(inputs["node_feats"], inputs["node_attrs"])
            return self.reshape(self.linear(sums)), skip

    model = build("residual").mace
    model.products[0].symmetric_contractions.__class__ = Doubled
    model.interactions[1].__class__ = Unfused
    expected = observe(model)
    report = eqtp.accelerate(model)
    assert "forward of its own" in report.left["products.0.symmetric_contractions"]
    assert not hasattr(model.interactions[1], "conv_fusion")
    assert_equal(observe(model), expected, TOLERANCES["float64"])


def test_an_instance_with_a_forward_of_its_own_is_left_alone() -> None:
    model = build("residual").mace
    readout = model.readouts[0].linear
    readout.forward = lambda x: 3 * type(readout).forward(readout, x)
    expected = observe(model)
    assert "readouts.0.linear" in eqtp.accelerate(model).left
    assert_equal(observe(model), expected, TOLERANCES["float64"])
    assert_equal(observe(eqtp.restore(model)), expected, 1e-14)


def test_node_attributes_that_are_not_one_hot_are_served_by_the_original() -> None:
    model = build("residual").mace
    data = native(model)
    data["node_attrs"] = torch.rand_like(data["node_attrs"])
    expected = model(dict(data))["forces"].detach()
    eqtp.accelerate(model, check=False)
    assert relative(model(dict(data))["forces"].detach(), expected) < TOLERANCES["float64"]


def test_the_calculator_of_mace_torch_works_unchanged() -> None:
    from mace.calculators import MACECalculator

    model = build("residual").mace
    atoms = bulk("C", "diamond", a=3.6, cubic=True)
    rattled(atoms, 5)
    results = []
    for accelerate in (False, True):
        calculator = MACECalculator(models=[copy.deepcopy(model)], device="cpu")
        if accelerate:
            eqtp.accelerate(calculator.models[0])
        atoms.calc = calculator
        results.append([atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_command_prints_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, cell = tmp_path / "water.model", tmp_path / "water.xyz"
    torch.save(build("residual").mace, path)
    molecule("H2O").write(cell)
    options = ["--check", "--benchmark", "--structure", str(cell), "--repetitions", "2"]
    assert main(["accelerate", str(path), *options]) == 0
    printed = capsys.readouterr().out
    for word in ("conv_tp", "forces float64", "speed-up"):
        assert word in printed


@pytest.mark.parametrize("content", ["nothing", "state dict", "text"])
def test_the_command_refuses_other_files(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.model"
    if content == "state dict":
        torch.save({"weight": torch.ones(1)}, path)
    elif content == "text":
        path.write_text("not a model")
    assert main(["accelerate", str(path)]) == 2
    assert str(path) in capsys.readouterr().err
