"""ESCN: symmetries, derivatives, smoothness at the cutoff, poles, and the tools that use models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from potential_checks import (
    SETTINGS,
    assert_close,
    check_atom_alone,
    check_differentiable,
    check_forces,
    check_mirror_images_differ,
    check_pair_at_the_cutoff,
    check_parameter_gradients,
    check_permutation_and_batch,
    check_rotation,
    check_stress,
    check_stress_turns_with_the_crystal,
    check_supercell,
    crystal,
    ethanol,
    run,
)
from torch import Tensor

from eqtp.cli import main
from eqtp.graph import Graph
from eqtp.kernels.so2 import FrameLayout, rotate_from_edge, rotate_to_edge, so2_linear
from eqtp.models import ESCN, load, save
from eqtp.models.blocks.edge_convolution import EdgeConvolution
from eqtp.models.escn import Edges
from eqtp.models.training.data import from_ase

TOLERANCES = {
    "cutoff": 1e-7,  # 1e-4 Å inside of the cutoff the slope of the envelope is 2e-8 / Å
    "float32": 1e-5,  # eV/Å of forces of about 1 eV/Å
}
MODEL_SETTINGS = SETTINGS["ESCN"]
VARIANTS: dict[str, dict[str, Any]] = {
    "SO(3)": {"group": "SO(3)"},
    "O(3)": {"group": "O(3)"},
    "grid": {"feed_forward": "grid"},
    "bessel, all orders": {"radial_basis": "bessel", "lmax": 3, "m_max": None},
    "m_max 0": {"m_max": 0},
    "lmax 0": {"lmax": 0, "m_max": 0, "feed_forward": "grid"},
}


def make(**changes: Any) -> ESCN:
    torch.manual_seed(0)
    model = ESCN(**{**MODEL_SETTINGS, **changes}).double().eval()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("bias", "offset", "gain")):  # constants at the start
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def along_y() -> Atoms:
    """Edges exactly along both directions of the polar axis, and some almost."""
    places = [[0, 0, 0], [0, 1.2, 0], [0, -1.1, 0], [1e-9, 2.4, 0], [1.0, 0.3, 0.2], [0, 1e-4, 1.5]]
    return Atoms("COCHHO", places)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("improper", [False, True])
def test_rotation_and_inversion(variant: str, improper: bool) -> None:
    model = make(**VARIANTS[variant])
    if improper and variant == "SO(3)":  # which learns what a mirror image is
        check_mirror_images_differ(model, ethanol(), least=1e-4, key="node_energy")
        return
    check_rotation(model, ethanol(), improper, least_force=1e-2)


def test_edges_along_the_polar_axis() -> None:
    """Energy and forces are those of the turned molecule, whose edges are anywhere."""
    check_rotation(make(lmax=3, m_max=2), along_y())


def test_stress_turns_with_the_crystal() -> None:
    check_stress_turns_with_the_crystal(make())


def test_permutation_and_batch() -> None:
    check_permutation_and_batch(make())


def test_edges_in_any_order() -> None:
    model, data = make(), from_ase(ethanol(), 4.0, dtype=torch.float64)
    expected = model(data)["forces"]
    order = torch.randperm(len(data.edge_src))
    for name in ("edge_src", "edge_dst", "edge_shift"):
        data[name] = data[name][order]
    assert_close(model(data)["forces"], expected)


def test_supercell_has_the_energy_of_its_cells() -> None:
    check_supercell(make())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("structure", [ethanol, crystal, along_y])
def test_forces_are_differences_of_the_energy(structure: Callable[[], Atoms], variant: str) -> None:
    check_forces(make(**VARIANTS[variant]), structure())


def test_stress_is_a_difference_of_the_energy() -> None:
    check_stress(make())


def test_atom_alone_and_no_edges() -> None:
    check_atom_alone(make())


@pytest.mark.parametrize("variant", VARIANTS)
def test_energy_and_forces_are_continuous_at_the_cutoff(variant: str) -> None:
    """An atom leaves the neighbourhood of others that it binds through a third one."""
    model, atoms = make(**VARIANTS[variant]), ethanol()
    direction = np.array([0.3, -0.5, 0.8]) / np.linalg.norm([0.3, -0.5, 0.8])

    def moved(distance: float) -> dict[str, Tensor]:
        """The last atom at a distance from the first."""
        there = atoms.copy()
        there.positions[-1] = atoms.positions[0] + distance * direction
        return run(model, there)

    inside, outside = moved(model.r_max - 1e-4), moved(model.r_max + 1e-4)
    forces = 0.5 * (moved(model.r_max + 2e-4)["forces"] - moved(model.r_max - 2e-4)["forces"])
    # The smooth change over twice the step, made by the other neighbours, is taken off.
    jump = inside["forces"] - outside["forces"] + forces
    assert float(jump.abs().max()) < TOLERANCES["cutoff"]
    work = float((inside["forces"][-1] @ torch.from_numpy(direction)) * 2e-4)
    assert abs(float(inside["energy"] - outside["energy"]) - work) < TOLERANCES["cutoff"]
    check_pair_at_the_cutoff(model, 1e-4, TOLERANCES["cutoff"])
    pair = run(model, Atoms("HO", [[0, 0, 0], [0, 0, model.r_max - 1e-4]]))
    assert float(pair["forces"].abs().max()) < TOLERANCES["cutoff"]


@pytest.mark.parametrize("variant", ["SO(3)", "grid"])
def test_force_loss_gradient(variant: str) -> None:
    check_parameter_gradients(make(**VARIANTS[variant]), along_y())


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(
    ("lmax", "lmax_out", "m_max"), [(0, 0, 0), (2, 2, 2), (3, 3, 1), (3, 1, 2), (2, 0, 2)]
)
def test_edge_convolution_is_its_formula(
    lmax: int, lmax_out: int, m_max: int, parity: bool
) -> None:
    """Step by step with the public operations, one edge after the other."""
    torch.set_default_dtype(torch.float64)
    convolution = EdgeConvolution(
        lmax, lmax_out, m_max, 5, 3, avg_num_neighbors=4.0, parity=parity, backend="auto"
    )
    src, dst = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 2, 0])
    x, vectors = torch.randn(3, (lmax + 1) ** 2, 5), torch.randn(4, 3)
    radial, envelope = torch.randn(4, convolution.radial_size), torch.rand(4)
    out = convolution(x, vectors, radial, envelope, Graph(src, dst, 3), Graph(dst, src, 3))

    m_max = min(m_max, lmax_out)
    irreps_in, irreps_out = convolution.irreps_in, convolution.irreps_out
    frame, frame_out = FrameLayout.of(irreps_in, m_max), FrameLayout.of(irreps_out, m_max)
    both = convolution.linear_up(x.flatten(1)).view(3, -1, 2, 3)
    expected = torch.zeros(3, frame_out.irreps.dim)
    for e in range(4):
        ends = (both[src[e], :, 0] + both[dst[e], :, 1]).reshape(1, -1)
        here: dict[str, Any] = {"m_max": m_max, "layout": "ir_mul"}
        y = rotate_to_edge(ends, vectors[e : e + 1], irreps_in, **here)
        start = 0
        for m in range(m_max + 1):
            factor = radial[e, start : start + frame.width(m)]
            start += frame.width(m)
            for columns in frame.slices(m):
                y[:, columns] *= factor
        scale = [(len(w) * w.shape[1]) ** -0.5 for w in convolution.first]
        first = [w * s for w, s in zip(convolution.first, scale, strict=True)]
        gates = (y[:, frame.columns(0)] @ first[0][0, :, frame.width(0) :]).sigmoid()
        first[0] = first[0][:, :, : frame.width(0)]
        y = so2_linear(y, first, frame, frame)
        y[:, :3] = torch.nn.functional.silu(y[:, :3])
        for m in range(m_max + 1):
            for columns in frame.slices(m):
                skip = 3 if m == 0 else 0
                y[:, columns][:, skip:] *= gates[:, 3 * max(m - 1, 0) :]
        scale = [(len(w) * w.shape[1]) ** -0.5 for w in convolution.second]
        second = [w * s for w, s in zip(convolution.second, scale, strict=True)]
        message = so2_linear(y, second, frame, frame_out) * envelope[e] * 0.5
        expected[dst[e]] += rotate_from_edge(message, vectors[e : e + 1], irreps_out, **here)[0]
    torch.testing.assert_close(out, convolution.linear_down(expected).view_as(out))


def test_the_last_layer_makes_scalars() -> None:
    """Its other degrees would reach the energy through the grid's products only."""
    spectral, grid = make(), make(feed_forward="grid")
    x, edges = torch.randn(2, 9, 4), torch.zeros(0, dtype=torch.int64)
    graph = Graph(edges, edges, 2)
    nothing = Edges(graph, graph, torch.zeros(0, 3), torch.zeros(0, 8), torch.zeros(0), edges)
    assert [layer(x, nothing).shape[1] for layer in spectral.layers] == [9, 1]
    assert [layer(x, nothing).shape[1] for layer in grid.layers] == [9, 9]


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_backends_agree(backend: str) -> None:
    expected = run(make(lmax=3, m_max=2), crystal(), compute_stress=True)
    found = run(make(lmax=3, m_max=2, backend=backend), crystal(), compute_stress=True)
    for key in ("node_energy", "forces", "stress"):
        assert_close(found[key], expected[key])


def test_float32_forces() -> None:
    double, single = make(lmax=3, m_max=2), make(lmax=3, m_max=2).float()
    output = single(from_ase(along_y(), 4.0, dtype=torch.float32))
    assert output["energy"].dtype == torch.float64
    assert output["forces"].dtype == torch.float32
    error = output["forces"].double() - run(double, along_y())["forces"]
    assert float(error.abs().max()) < TOLERANCES["float32"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load(variant: str, tmp_path: Path) -> None:
    model = make(**VARIANTS[variant])
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert isinstance(again, ESCN)
    expected = {key: v for key, v in model.hyperparameters.items() if key != "backend"}
    assert again.hyperparameters == {**expected, "backend": "auto"}
    assert torch.equal(run(again, ethanol())["forces"], run(model, ethanol())["forces"])


def test_weight_decay_spares_norms_biases_and_embeddings() -> None:
    model = make()
    decayed = {id(parameter) for parameter in model.weight_decay_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "layers.1.convolution.first.0" in names
    assert "layers.0.radial.weights.1" in names
    assert "layers.0.feed_forward.linear_1.weight" in names
    assert not any(part in name for name in names for part in ("bias", "gain", "pairs", "edge_deg"))


@pytest.mark.parametrize("training", [True, False])
def test_derivatives_can_be_differentiated_only_in_training(training: bool) -> None:
    check_differentiable(make(), training)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lmax": -1}, "lmax must be at least 0"),
        ({"m_max": -1}, "m_max must be at least 0"),
        ({"m_max": 3}, r"m_max must be at most lmax \(2\), got 3"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"num_rbf": 1}, "num_rbf must be at least 2"),
        ({"num_polynomial_cutoff": 1}, "num_polynomial_cutoff must be at least 2"),
        ({"feed_forward": "fourier"}, "feed_forward must be one of spectral, grid, got 'fourier'"),
        ({"radial_basis": "sinc"}, "radial_basis must be one of gaussian, bessel"),
        ({"group": "SU(2)"}, r"group must be one of O\(3\), SO\(3\), got 'SU\(2\)'"),
        ({"atomic_energies": [1.0]}, r"one energy per element \(3\)"),
        ({"r_max": 0.0}, "r_max must be positive"),
    ],
)
def test_bad_hyperparameters(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_train_evaluate_resume_and_dynamics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way of a user, from a config to dynamics; an interrupted run goes on."""
    frames = []
    for seed in range(8):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        forces = -2.0 * (atoms.positions - molecule("H2O").positions)
        atoms.calc = SinglePointCalculator(atoms, energy=-0.25 * (forces**2).sum(), forces=forces)
        frames.append(atoms)
    write(tmp_path / "water.xyz", frames)
    (tmp_path / "water.yaml").write_text(
        "model: {name: ESCN, lmax: 1, m_max: 1, channels: 4, num_layers: 1, edge_channels: 8}\n"
        f"data: {{train_file: {tmp_path / 'water.xyz'}, valid_fraction: 0.25, e0s: average}}\n"
        "training: {max_epochs: 2, batch_size: 3, accelerator: cpu, lr: 0.005, optimizer: adamw}\n"
        f"run_dir: {tmp_path / 'run'}\n"
    )
    assert main(["train", str(tmp_path / "water.yaml")]) == 0
    resume = ["train", "--resume", str(tmp_path / "run"), "training.max_epochs=3"]
    assert main(resume) == 0
    assert "resuming at epoch 3" in capsys.readouterr().out
    model = str(tmp_path / "run" / "model.safetensors")
    assert isinstance(load(model), ESCN)
    assert main(["evaluate", model, str(tmp_path / "water.xyz"), "--device", "cpu"]) == 0
    where = ["--output", str(tmp_path / "md"), "--device", "cpu"]
    steps = ["--steps", "20", "--timestep", "0.25", "--temperature", "50"]
    assert main(["md", model, str(tmp_path / "water.xyz"), *steps, *where]) == 0
    assert "energy drift" in capsys.readouterr().out
