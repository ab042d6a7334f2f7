"""Random structures on which an accelerated model is compared with the original."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["random_structures"]


def random_structures(numbers: Sequence[int]) -> Iterator[Atoms]:
    """A cluster and two crystals of random elements among `numbers`, always the same ones.

    Atoms are 0.9 Å apart at least, and the crystals are smaller than usual cutoffs, so that atoms
    are neighbours of their own images.
    """
    from ase import Atoms

    generator = torch.Generator().manual_seed(0)
    for num_atoms, edge in ((5, None), (4, 3.6), (6, 4.3)):
        sites = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3) * 1.7
        sites = sites[torch.randperm(8, generator=generator)[:num_atoms]]
        noise = 0.4 * torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64)
        chosen = torch.randint(len(numbers), (num_atoms,), generator=generator)
        atoms = Atoms([numbers[i] for i in chosen.tolist()], positions=(sites + noise).numpy())
        if edge is not None:
            atoms.set_cell([[edge, 0, 0], [0.2, edge, 0], [-0.1, 0.3, edge]])
            atoms.pbc = True
        yield atoms
