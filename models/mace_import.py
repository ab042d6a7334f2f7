"""Reads a live mace-torch model into `eqtp.models.MACE`.

Nothing of mace-torch or e3nn is imported: the model object brings all that is needed. What depends
on the e3nn version it was built with (the signs of some 3j symbols) is measured on the model's own
tensors: the couplings of its symmetric contractions are projected, not recomputed, and the paths of
its convolutions are compared with `eqtp.so3.wigner_3j`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eqtp.so3 import wigner_3j

if TYPE_CHECKING:
    from eqtp.models.mace import MACE, Interaction, ProductBasis

__all__ = ["from_mace"]

_BLOCK = "RealAgnosticResidualInteractionBlock"
_UNUSED = (
    "use_agnostic_product",
    "use_so3",
    "use_last_readout_only",
    "use_edge_irreps_first",
    "use_embedding_readout",
    "lammps_mliap",
)
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest accepted difference of interaction energies and forces, relative to their size, computed
in float64. Two orders of summation differ by 1e-12, and constants that were stored in float32 by
1e-8; a wrong sign or factor by 1e-2 or more."""


def from_mace(model: Any) -> MACE:
    """An eqtp model with the weights of a live mace-torch `ScaleShiftMACE`.

    Args:
        model: The mace-torch model; it is not changed.

    Returns:
        A model in the dtype of `model` with `basis="mace"`: its parameters correspond one to one,
        by name where mace-torch has the name.

    Raises:
        NotImplementedError: The model uses something that eqtp's MACE does not have; all of it
            is named.
        ValueError: Energies or forces differ from the model's on random structures.
    """
    from eqtp.models.mace import MACE

    problems = _unsupported(model)
    if problems:
        raise NotImplementedError(
            "this mace-torch model cannot be read, eqtp's MACE has no " + "; no ".join(problems)
        )
    radial = model.radial_embedding
    harmonics = [int(ir.l) for _, ir in model.interactions[0].edge_attrs_irreps]
    imported = MACE(
        atomic_numbers=model.atomic_numbers.tolist(),
        atomic_energies=model.atomic_energies_fn.atomic_energies.flatten().tolist(),
        avg_num_neighbors=float(model.interactions[0].avg_num_neighbors),
        r_max=float(model.r_max),
        num_bessel=len(radial.bessel_fn.bessel_weights),
        num_polynomial_cutoff=int(radial.cutoff_fn.p),
        max_ell=max(harmonics),
        correlation=_correlation(model.products[0]),
        num_interactions=len(model.interactions),
        hidden_irreps=str(model.products[0].linear.irreps_out),
        mlp_irreps=str(getattr(model.readouts[-1], "hidden_irreps", "16x0e")),
        radial_mlp=model.interactions[0].conv_tp_weights.hs[1:-1],
        scale=float(model.scale_shift.scale),
        shift=float(model.scale_shift.shift),
        basis="mace",
    ).to(model.node_embedding.linear.weight)
    source = dict(model.named_parameters())
    with torch.no_grad():
        imported.radial_embedding.bessel_weights.copy_(radial.bessel_fn.bessel_weights)
        for name, parameter in imported.named_parameters():
            if name in source:
                parameter.copy_(source[name].view_as(parameter))
        ours: Any  # the blocks of a ModuleList have no type of their own
        for ours, theirs in zip(imported.interactions, model.interactions, strict=True):
            ours.avg_num_neighbors = float(theirs.avg_num_neighbors)
            _match_signs(ours, theirs)
        for ours, theirs in zip(imported.products, model.products, strict=True):
            _match_couplings(ours, theirs)
    _compare(imported, model)
    return imported


def _unsupported(model: Any) -> list[str]:
    """What the model uses and eqtp's MACE lacks, in words."""
    name = type(model).__name__
    if name != "ScaleShiftMACE":
        return [f"model class {name!r} (only 'ScaleShiftMACE')"]
    found = [
        f"interaction block {type(block).__name__!r} (only {_BLOCK!r})"
        for block in model.interactions
        if type(block).__name__ != _BLOCK
    ]
    heads = list(getattr(model, "heads", None) or ["Default"])
    if len(heads) > 1:
        found.append(f"multi-head readout {heads}")
    if hasattr(model, "pair_repulsion_fn") or getattr(model, "pair_repulsion", False):
        found.append("ZBL pair repulsion (pair_repulsion)")
    if hasattr(model, "joint_embedding") or getattr(model, "embedding_specs", None):
        found.append("embedding of further inputs (embedding_specs)")
    radial = model.radial_embedding
    if hasattr(radial, "distance_transform"):
        found.append(f"distance transform {type(radial.distance_transform).__name__!r}")
    if type(radial.bessel_fn).__name__ != "BesselBasis":
        found.append(f"radial basis {type(radial.bessel_fn).__name__!r} (only 'BesselBasis')")
    if not getattr(model, "apply_cutoff", True):
        found.append("cutoff outside the radial basis (apply_cutoff=False)")
    if getattr(model, "edge_irreps", None) is not None:
        found.append(f"reduced edge irreps (edge_irreps='{model.edge_irreps}')")
    if any(not str(ir).startswith("0e") for _, ir in model.products[-1].linear.irreps_out):
        found.append("tensors in the last layer (keep_last_layer_irreps=True)")
    readouts = [type(readout).__name__ for readout in model.readouts]
    wanted = ["LinearReadoutBlock"] * (len(readouts) - 1) + ["NonLinearReadoutBlock"]
    if readouts != wanted:
        found.append(f"readouts {readouts} (only {wanted})")
    if len({_correlation(product) for product in model.products}) > 1:
        found.append("correlation that differs between layers")
    found += [f"option {flag}=True" for flag in _UNUSED if getattr(model, flag, False)]
    for block in model.interactions:
        for option in ("cueq_config", "oeq_config"):
            config = getattr(block, option, None)
            if config is not None and getattr(config, "enabled", True):
                found.append(f"accelerated layers ({option}); read the model before converting it")
    gate = getattr(model.readouts[-1], "non_linearity", None)
    acts = [getattr(act, "f", act) for act in getattr(gate, "acts", [])]
    if any(getattr(act, "__name__", "") != "silu" for act in acts):
        found.append(f"readout activation {acts} (only silu)")
    return sorted(set(found))


def _correlation(product: Any) -> int:
    """Highest order of a layer's couplings, read from their names."""
    contraction = product.symmetric_contractions.contractions[0]
    return max(
        int(name.removeprefix("U_matrix_"))
        for name, _ in contraction.named_buffers()
        if name.startswith("U_matrix_")
    )


def _match_signs(ours: Interaction, theirs: Any) -> None:
    """Turns the weights of convolution paths whose 3j symbol has the other sign."""
    buffers = {
        name.rsplit("_w3j_", 1)[1]: tensor
        for name, tensor in theirs.conv_tp.named_buffers()
        if "_w3j_" in name
    }
    problem = ours.conv_tp.problem
    last = getattr(ours.conv_tp_weights, f"layer{ours.conv_tp_weights.num_layers - 1}").weight
    for path in problem.paths:
        degrees = problem.degrees(path)
        stored = buffers.get("_".join(map(str, degrees)))
        if stored is not None and float((stored.double().cpu() * wigner_3j(*degrees)).sum()) < 0:
            last[:, path.weight_slice] *= -1


def _match_couplings(ours: ProductBasis, theirs: Any) -> None:
    """Reads the couplings U and their weights, order by order, for every result irrep."""
    contractions = theirs.symmetric_contractions.contractions
    for index, contraction in enumerate(contractions):
        top = ours.symmetric_contractions.correlation
        for order in range(1, top + 1):
            weight = (
                contraction.weights_max if order == top else contraction.weights[top - 1 - order]
            )
            coupling = getattr(contraction, f"U_matrix_{order}")
            ours.symmetric_contractions.set_coupling(index, order, coupling, weight)


def _compare(ours: MACE, theirs: nn.Module) -> None:
    """Energies and forces of both models on random clusters, in float64."""
    from copy import deepcopy

    from eqtp.models.training.data import from_ase

    tolerance = _TOLERANCES.get(next(ours.parameters()).dtype, 1e-5)
    theirs = deepcopy(theirs).double().eval()
    ours = deepcopy(ours).double().eval()
    isolated = torch.tensor(ours.hyperparameters["atomic_energies"], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for num_atoms in (2, 7, 12):
        atoms = _random_cluster(ours.atomic_numbers, num_atoms, generator)
        data = from_ase(atoms, ours.r_max, dtype=torch.float64)
        mine, other = ours(data), theirs(_mace_batch(data, ours.atomic_numbers))
        element = [ours.atomic_numbers.index(z) for z in atoms.numbers]
        pairs = {
            "energy": (
                (mine["node_energy"] - isolated[element]).sum(),
                other["interaction_energy"],
            ),
            "forces": (mine["forces"], other["forces"]),
        }
        for key, (a, b) in pairs.items():
            scale = max(float(b.detach().abs().max()), 1e-3)
            difference = float((a.detach() - b.detach()).abs().max()) / scale
            if not difference < tolerance:
                raise ValueError(
                    f"{key} of the imported model must equal mace-torch's to {tolerance:g}, "
                    f"got a relative difference of {difference:.1e} on a random cluster of "
                    f"{num_atoms} atoms; please report the model's configuration"
                )


def _random_cluster(numbers: list[int], num_atoms: int, generator: torch.Generator) -> Any:
    from ase import Atoms

    grid = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3) * 1.6
    sites = torch.randperm(27, generator=generator)[:num_atoms]
    noise = 0.3 * torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64)
    chosen = torch.randint(len(numbers), (num_atoms,), generator=generator)
    return Atoms(numbers=[numbers[i] for i in chosen], positions=(grid[sites] + noise).numpy())


def _mace_batch(data: Any, atomic_numbers: list[int]) -> dict[str, Tensor]:
    """The dictionary that mace-torch's models take."""
    known = torch.tensor(atomic_numbers)
    one_hot = (data.atomic_numbers[:, None] == known).to(data.positions.dtype)
    num_atoms = len(data.positions)
    return {
        "positions": data.positions.clone(),
        "node_attrs": one_hot,
        "edge_index": torch.stack([data.edge_src, data.edge_dst]),
        "shifts": data.edge_shift,
        "unit_shifts": torch.zeros_like(data.edge_shift),
        "cell": data.cell.reshape(-1, 3),
        "batch": torch.zeros(num_atoms, dtype=torch.long),
        "ptr": torch.tensor([0, num_atoms]),
        "head": torch.zeros(1, dtype=torch.long),
    }
