"""The potential as an ASE calculator, with a neighbour list that is reused while atoms move little.

`VerletList` keeps the pairs within `r_max + skin`; until an atom has moved by more than `skin / 2`
no pair outside of it can have come within `r_max` (L. Verlet, Phys. Rev. 159, 98 (1967)). At
every step the pairs beyond `r_max` are filtered out, so that a result never depends on the age of
the list.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.data import chemical_symbols
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from eqtp.models.blocks.tensor_heads import parse_targets
from eqtp.models.io import load
from eqtp.models.training.neighbors import MIN_DISTANCE, neighbor_list
from eqtp.models.training.structure import Structure, total_charge

if TYPE_CHECKING:
    from ase import Atoms
    from torch import nn

SKIN = 0.5
"""Å. 3BPA at 300 K outruns it in 15 fs (30 steps), so that a build of 0.4 ms costs 0.014 ms a step;
a skin of 1 Å lasts 40 fs, but filtering its pairs costs 0.06 ms more at every step (one core)."""

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of xx, yy, zz, yz, xz, xy: ASE's order of the stress."""


class VerletList:
    """The edges of a moving structure, rebuilt only when an atom may have crossed the skin.

    Args:
        r_max: Cutoff, Å.
        skin: How much farther the kept pairs reach, Å; 0 rebuilds at every move.
        device: Where the edges are wanted.

    Attributes:
        num_builds: How often the list was built.

    Example:
        >>> import numpy as np
        >>> pairs = VerletList(r_max=2.0, skin=0.5)
        >>> cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
        >>> for x in (1.9, 2.1, 2.0 - 1e-9):
        ...     src, dst, shift = pairs(np.array([[0.0, 0.0, 0.0], [x, 0.0, 0.0]]), cell, pbc)
        ...     print(src.tolist(), dst.tolist(), pairs.num_builds)
        [1, 0] [0, 1] 1
        [] [] 1
        [1, 0] [0, 1] 1
    """

    def __init__(self, r_max: float, skin: float, device: torch.device | str = "cpu") -> None:
        if not (r_max > 0 and skin >= 0):
            raise ValueError(
                f"r_max must be positive and skin not negative (Å), got r_max={r_max}, skin={skin}"
            )
        self.r_max = r_max
        self.skin = skin
        self.device = torch.device(device)
        self.num_builds = 0

    def __call__(
        self,
        positions: Float64[np.ndarray, "num_atoms 3"],
        cell: Float64[np.ndarray, "3 3"],
        pbc: Bool[np.ndarray, " 3"],
    ) -> tuple[
        Int64[Tensor, " num_edges"], Int64[Tensor, " num_edges"], Float64[Tensor, "num_edges 3"]
    ]:
        """Returns `(src, dst, shift)` of the edges shorter than `r_max`, shift in Å.

        Edges are sorted by dst, then src, then periodic image, whatever the age of the list.

        Raises:
            ValueError: Two atoms are at one place, or the periodic cell has no volume.
        """
        if self._is_stale(positions, cell, pbc):
            self._build(positions, cell, pbc)
        return self._filter(torch.from_numpy(positions).to(self.device))

    def _is_stale(
        self,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
    ) -> bool:
        if not self.num_builds or positions.shape != self._positions.shape:
            return True
        if not (np.array_equal(cell, self._cell) and np.array_equal(pbc, self._pbc)):
            return True
        moved = positions - self._positions
        return float(np.einsum("ni,ni->n", moved, moved).max()) > (self.skin / 2) ** 2

    def _build(
        self,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
    ) -> None:
        src, dst, image = neighbor_list(positions, cell, pbc, self.r_max + self.skin)
        self._src = torch.from_numpy(src).to(self.device)
        self._dst = torch.from_numpy(dst).to(self.device)
        self._shift = torch.from_numpy(image @ cell).to(self.device)
        self._positions, self._cell, self._pbc = positions.copy(), cell.copy(), pbc.copy()
        self.num_builds += 1

    def _filter(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vector = positions.index_select(0, self._dst) - positions.index_select(0, self._src)
        squared = (vector + self._shift).square().sum(1)
        if len(squared) and float(squared.min()) < MIN_DISTANCE**2:
            edge = int(squared.argmin())
            raise ValueError(
                f"atoms must be at least {MIN_DISTANCE} Å apart, got"
                f" {float(squared[edge]) ** 0.5:.1e} Å between atoms {int(self._src[edge])} and"
                f" {int(self._dst[edge])}: remove one of them"
            )
        kept = (squared < self.r_max**2).nonzero().squeeze(1)
        return (
            self._src.index_select(0, kept),
            self._dst.index_select(0, kept),
            self._shift.index_select(0, kept),
        )


class Calculator(AseCalculator):
    """A potential for ASE: energy, free energy, forces, stress (periodic) and atomic energies.

    Energies and forces are always computed, the stress with them whenever the structure is
    periodic with a volume, so that one evaluation serves every later question. Tensor targets of
    the model are properties by their names: `atoms.get_dipole_moment()` asks for one "dipole".

    Args:
        path_or_model: A file of `eqtp.models.save`, the folder of a run, or a model (it is copied,
            so that switching off its parameters' gradients does not disturb a training).
        device: "auto" takes a GPU where there is one.
        dtype: Floating-point type to compute in, such as `torch.float32` or "float32"; None keeps
            the model's own. Results are always float64 arrays.
        skin: Extra reach of the neighbour list, Å.

    Raises:
        FileNotFoundError, ValueError: As `eqtp.models.load`; ValueError for an unknown dtype.

    Example:
        >>> import eqtp
        >>> from ase.build import molecule
        >>> model = eqtp.models.MACE(
        ...     atomic_numbers=[1, 8], atomic_energies=[-13.6, -2041.8], avg_num_neighbors=2.0,
        ...     hidden_irreps="4x0e", radial_mlp=(8,), max_ell=1, correlation=2)
        >>> water = molecule("H2O")
        >>> water.calc = eqtp.Calculator(model, device="cpu")
        >>> water.get_forces().shape
        (3, 3)
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        path_or_model: str | os.PathLike[str] | nn.Module,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str | None = None,
        *,
        skin: float = SKIN,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        wanted = _floating_dtype(dtype)
        model: Any  # the models' protocol: r_max, atomic_numbers, forward(data, ...)
        if isinstance(path_or_model, torch.nn.Module):
            model = copy.deepcopy(path_or_model).to(device=device, dtype=wanted)
        else:
            model = load(path_or_model, dtype=wanted, device=device)
        self.model = model.eval().requires_grad_(False)
        self._targets = parse_targets(model.hyperparameters.get("tensor_targets"))
        self.implemented_properties = [*self.implemented_properties, *self._targets]
        self.device = torch.device(device)
        self.dtype = next(p.dtype for p in model.parameters() if p.dtype.is_floating_point)
        self.verlet_list = VerletList(float(model.r_max), skin, self.device)
        self._numbers = np.empty(0, dtype=np.int64)
        self._atomic_numbers = torch.empty(0, dtype=torch.int64)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fills `self.results` for `atoms`; called by ASE.

        Raises:
            ValueError: There are no atoms, an element the model does not know, a position that is
                not finite, two atoms at one place, or a periodic cell without a volume.
            PropertyNotImplementedError: The stress of a structure without a periodic volume.
        """
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        atoms = cast("Atoms", self.atoms)
        self._check(atoms)
        periodic = bool(atoms.pbc.any()) and atoms.cell.volume > 0
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                "stress needs a periodic cell with a volume, got"
                f" pbc={atoms.pbc.tolist()}, cell={atoms.cell.array.tolist()}"
            )
        out = self.model(self._structure(atoms), compute_forces=True, compute_stress=periodic)
        energy = float(out["energy"])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": _to_numpy(out["node_energy"]),
            "forces": _to_numpy(out["forces"]),
        }
        if periodic:
            self.results["stress"] = _to_numpy(out["stress"][0])[_VOIGT]
        for name, target in self._targets.items():
            self.results[name] = _to_numpy(out[name] if target.per == "atom" else out[name][0])

    def _structure(self, atoms: Atoms) -> Structure:
        """The graph of `atoms` on the model's device."""
        positions, cell = atoms.positions, atoms.cell.array
        src, dst, shift = self.verlet_list(positions, cell, atoms.pbc)
        charge = total_charge(atoms)
        charges = {} if charge is None else {"total_charge": self._tensor(np.array([charge]))}
        return Structure(
            atomic_numbers=self._atomic_numbers,
            positions=self._tensor(positions),
            edge_src=src,
            edge_dst=dst,
            edge_shift=shift.to(self.dtype),
            cell=self._tensor(cell)[None],
            pbc=torch.from_numpy(atoms.pbc).to(self.device)[None],
            batch=torch.zeros_like(self._atomic_numbers),
            num_nodes=len(atoms),
            **charges,
        )

    def _check(self, atoms: Atoms) -> None:
        """Refuses what the model cannot compute, before any work."""
        if not len(atoms):
            raise ValueError("a structure must have at least one atom, got an empty Atoms object")
        finite = np.isfinite(atoms.positions)
        if not finite.all():
            bad = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise ValueError(
                f"positions must be finite, got {atoms.positions[bad].tolist()} for atom {bad}"
                f" ({atoms.symbols[bad]}): the input is damaged or a simulation has blown up"
            )
        if not np.isfinite(atoms.cell.array).all():
            raise ValueError(
                f"the cell must be finite, got {atoms.cell.array.tolist()}: set a cell"
            )
        if np.array_equal(atoms.numbers, self._numbers):
            return
        unknown = sorted(set(atoms.numbers.tolist()) - set(self.model.atomic_numbers))
        if unknown:
            raise ValueError(
                f"elements must be among those the model was trained on"
                f" ({_symbols(self.model.atomic_numbers)}), got {_symbols(unknown)}: use a model"
                " trained on them"
            )
        self._numbers = atoms.numbers.copy()
        self._atomic_numbers = torch.from_numpy(self._numbers).to(self.device, torch.int64)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)


def _floating_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The torch type of a name such as "float32"."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None:
        return None
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype must be a floating-point type, got {dtype!r}: use 'float32'")
    return found


def _symbols(numbers: Sequence[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in numbers)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().to("cpu", torch.float64).numpy()
    return array
