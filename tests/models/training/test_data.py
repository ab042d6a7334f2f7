"""Graphs, batches and data sets of structures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from eqtp.models.training.batches import collate
from eqtp.models.training.data import StructureDataset, from_ase
from eqtp.models.training.labels import LabelKeys

TOLERANCES = {
    "shift": 1e-12,  # Å: a few roundings of coordinates of order 10 in float64
}


def labelled(name: str, energy: float = -1.0) -> Atoms:
    atoms: Atoms = molecule(name)
    atoms.info["energy"] = energy
    atoms.arrays["forces"] = np.ones((len(atoms), 3))
    return atoms


def test_shapes_types_and_labels_of_one_structure() -> None:
    data = from_ase(labelled("CH4"), 5.0)
    assert {key: tuple(data[key].shape) for key in data.keys() if key != "num_nodes"} == {  # noqa: SIM118
        "atomic_numbers": (5,),
        "positions": (5, 3),
        "edge_src": (20,),
        "edge_dst": (20,),
        "edge_shift": (20, 3),
        "cell": (1, 3, 3),
        "pbc": (1, 3),
        "batch": (5,),
        "energy": (1,),
        "forces": (5, 3),
    }
    assert data.atomic_numbers.dtype == data.edge_src.dtype == torch.int64
    assert data.positions.dtype == data.forces.dtype == torch.float64
    assert data.num_nodes == 5


def test_the_energy_stays_float64_beside_float32_coordinates() -> None:
    data = from_ase(labelled("CH4", -17660.461737861464), 5.0, dtype=torch.float32)
    assert data.energy.item() == -17660.461737861464
    for key in ("positions", "edge_shift", "cell", "forces"):
        assert data[key].dtype == torch.float32


def test_edge_vectors_of_a_periodic_crystal() -> None:
    crystal = bulk("ZnS", "zincblende", a=5.4)  # triclinic primitive cell, two atoms
    data = from_ase(crystal, 4.0)
    vectors = data.positions[data.edge_dst] - data.positions[data.edge_src] + data.edge_shift
    lengths = vectors.norm(dim=1).sort().values
    expected = torch.tensor([5.4 * 3**0.5 / 4] * 8 + [5.4 / 2**0.5] * 24)
    torch.testing.assert_close(lengths, expected, atol=TOLERANCES["shift"], rtol=0)
    assert data.pbc.tolist() == [[True, True, True]]


def test_stress_and_chosen_keys() -> None:
    crystal = bulk("Cu", "fcc", a=3.6, cubic=True)
    crystal.info.update(dft=-4.0, REF_stress=[1.0, 2.0, 3.0, 0.4, 0.5, 0.6])
    data = from_ase([crystal, crystal], 3.0, keys=LabelKeys(energy="dft"))
    assert data.energy.tolist() == [-4.0, -4.0]
    assert data.stress.shape == (2, 3, 3)
    assert data.stress[1].tolist() == [[1.0, 0.6, 0.5], [0.6, 2.0, 0.4], [0.5, 0.4, 3.0]]
    with pytest.raises(ValueError, match="structure: the chosen energy key 'dft' must exist"):
        from_ase(molecule("H2O"), 5.0, keys=LabelKeys(energy="dft"))


def test_a_batch_is_the_union_of_its_structures() -> None:
    structures = [labelled("H2O"), labelled("CH4"), labelled("H2O")]
    batch = from_ase(structures, 5.0)
    assert batch.num_graphs == 3
    assert batch.batch.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert batch.cell.shape == (3, 3, 3)
    assert batch.pbc.shape == (3, 3)
    first, second = from_ase(structures[0], 5.0), from_ase(structures[1], 5.0)
    assert batch.edge_src[6:26].tolist() == (second.edge_src + 3).tolist()
    assert batch.edge_dst[6:26].tolist() == (second.edge_dst + 3).tolist()
    assert batch.edge_dst[26:].tolist() == (first.edge_dst + 8).tolist()
    assert (batch.edge_dst.diff() >= 0).all()


def test_structures_made_one_by_one_batch_to_the_same() -> None:
    structures = [labelled("H2O"), labelled("CH4")]
    together = from_ase(structures, 5.0)
    joined = Batch.from_data_list([from_ase(atoms, 5.0) for atoms in structures])
    for key, value in together:
        if isinstance(value, torch.Tensor):
            assert torch.equal(joined[key], value), key
    again = together.to_data_list()[1]
    assert again.edge_src.tolist() == from_ase(structures[1], 5.0).edge_src.tolist()


def test_structures_without_edges() -> None:
    helium = Atoms("He", info={"energy": -78.0})
    assert from_ase(helium, 5.0).edge_shift.shape == (0, 3)
    batch = from_ase([helium, helium], 5.0)
    assert batch.num_nodes == 2
    assert batch.edge_src.dtype == torch.int64
    assert batch.batch.tolist() == [0, 1]
    far = from_ase([Atoms("He2", [[0, 0, 0], [9, 0, 0]]), molecule("H2")], 5.0)
    assert far.edge_src.tolist() == [3, 2]


def test_a_data_set_converts_once_and_loads_in_batches() -> None:
    dataset = StructureDataset([labelled("H2O"), labelled("CH4"), labelled("NH3")], 5.0)
    assert dataset[1] is dataset[1]
    assert dataset.num_edges == [6, 20, 12]
    assert dataset.atomic_numbers == [1, 6, 7, 8]
    sizes = [batch.num_nodes for batch in DataLoader(dataset, batch_size=2)]
    assert sizes == [8, 4]


def test_some_labelled_and_some_not_is_refused() -> None:
    frames = [labelled("H2O"), labelled("H2O")]
    del frames[1].arrays["forces"]
    with pytest.raises(ValueError, match="'forces', but structure 0 has it and structure 1 has"):
        from_ase(frames, 5.0)


def test_bad_structures_are_refused_by_number() -> None:
    bad = molecule("H2O")
    bad.positions[2, 1] = np.nan
    with pytest.raises(ValueError, match="structure 1: positions must be finite"):
        from_ase([molecule("H2O"), bad], 5.0)
    twice = Atoms("HH", [[0, 0, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"structure: atoms must be at least 0.001 Å apart"):
        from_ase(twice, 5.0)
    flat = Atoms("H", cell=[1, 1, 0], pbc=True)
    with pytest.raises(ValueError, match="structure: periodic cell vectors must span a non-zero"):
        from_ase(flat, 5.0)
    with pytest.raises(ValueError, match="at least one structure"):
        from_ase([], 5.0)


def test_total_charges_are_taken_along_and_default_to_zero() -> None:
    charged, neutral, other = molecule("OH"), molecule("CH4"), molecule("H2O")
    charged.info["charge"] = -1
    other.info["total_charge"] = 2.0
    assert from_ase(charged, 5.0).total_charge.tolist() == [-1.0]
    assert "total_charge" not in from_ase(neutral, 5.0)
    batch = from_ase([neutral, charged, other], 5.0)
    assert batch.total_charge.tolist() == [0.0, -1.0, 2.0]
    assert collate(list(StructureDataset([other, neutral], 5.0))).total_charge.tolist() == [
        2.0,
        0.0,
    ]
    charged.info["charge"] = "minus one"
    with pytest.raises(ValueError, match=r"info\['charge'\] must be the total charge, a number"):
        from_ase(charged, 5.0)
