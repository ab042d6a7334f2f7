"""From node energies to energies, forces and stress: what every potential shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eqtp.graph import Graph
from eqtp.rows import gather_rows

__all__ = ["Potential", "energy_and_derivatives"]


class Potential(Protocol):
    """What a model offers: elements, isolated-atom energies, and node energies of edge vectors.

    A model with tensor targets has a module `tensor_heads`, and a method `node_outputs` that
    takes what `node_energies` takes and returns the tensors beside the energies.
    """

    atomic_numbers: list[int]
    hyperparameters: dict[str, Any]
    training: bool

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's weights."""
        ...

    @property
    def node_energies(self) -> Callable[..., Tensor]:
        """Interaction energy of each node in eV: (element, vectors, graph, **attributes)."""
        ...


def energy_and_derivatives(
    model: Potential,
    data: Any,
    *,
    compute_forces: bool,
    compute_stress: bool,
    per_graph: Mapping[str, Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """Energies, forces = -dE/dposition and stress = dE/dstrain / volume of a batch.

    Derivatives are those of the interaction energy only: the isolated atoms' energies are large
    and constant, and are added in float64 at the end. The strain acts on positions, edge shifts
    and cell alike.

    Args:
        model: The potential.
        data: See `eqtp.models.training.data.from_ase`.
        compute_forces: Whether to return forces.
        compute_stress: Whether to return the stress.
        per_graph: Further numbers of the structures, [G] each, that `node_energies` takes by these
            names as numbers of the nodes; None where the data have none.

    Raises:
        ValueError: An element is unknown, a position is not finite, stress without a cell, or a
            `per_graph` of another length, or a batch whose edges were not renumbered.
        TypeError: The data are of another dtype or on another device than the model.
    """
    positions: Tensor = data.positions
    _check_operands(model, data)
    element = _element_index(model.atomic_numbers, data.atomic_numbers)
    if not bool(torch.isfinite(positions).all()):
        bad = int((~torch.isfinite(positions)).any(1).nonzero()[0])
        raise ValueError(
            f"positions must be finite, got {positions[bad].tolist()} for atom {bad}: the input is "
            "damaged or a simulation has blown up"
        )
    num_graphs = data.cell.shape[0] if data.cell.ndim == 3 else 1
    volume = torch.linalg.det(data.cell.reshape(-1, 3, 3)).abs() if compute_stress else None
    if volume is not None and not bool((volume > 0).all()):
        raise ValueError("stress needs a periodic cell, got a cell of zero volume")
    batch = data.batch if data.batch is not None else torch.zeros_like(element)
    graph = Graph(data.edge_src, data.edge_dst, len(positions))
    attributes = {
        name: _at_nodes(name, values.to(positions.dtype), batch, num_graphs)
        for name, values in (per_graph or {}).items()
        if values is not None
    }

    with torch.set_grad_enabled(compute_forces or compute_stress or torch.is_grad_enabled()):
        if compute_forces and not positions.requires_grad:
            positions = positions.detach().requires_grad_()
        shift: Tensor = data.edge_shift
        moved, strain = positions, None
        if compute_stress:
            strain = positions.new_zeros(num_graphs, 3, 3).requires_grad_()
            symmetric = (strain + strain.mT) / 2
            moved = positions + _rows_times(positions, symmetric.index_select(0, batch))
            of_edge = batch.index_select(0, graph.edge_dst)
            shift = shift + _rows_times(shift, symmetric.index_select(0, of_edge))
        vectors = gather_rows(moved, graph.edge_dst) - gather_rows(moved, graph.edge_src) + shift
        heads: Any = getattr(model, "tensor_heads", None)
        tensors: dict[str, Tensor] = {}
        if heads is None:
            energies = model.node_energies(element, vectors, graph, **attributes)
        else:
            outputs: Any = model
            energies, tensors = outputs.node_outputs(element, vectors, graph, **attributes)
            tensors = heads.per_target(tensors, batch, num_graphs)
        interaction = energies.double()
        targets = [positions] * compute_forces + ([] if strain is None else [strain])
        gradients: list[Tensor] = []
        if targets:
            gradients += torch.autograd.grad(
                interaction.sum(), targets, create_graph=model.training, materialize_grads=True
            )
    isolated = torch.tensor(
        model.hyperparameters["atomic_energies"], dtype=torch.float64, device=positions.device
    )
    node_energy = interaction + isolated.index_select(0, element)
    if targets and not model.training:
        node_energy = node_energy.detach()  # its graph was freed with the derivatives
        tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    result = {
        "energy": node_energy.new_zeros(num_graphs).index_add(0, batch, node_energy),
        "node_energy": node_energy,
        **tensors,
    }
    if compute_forces:
        result["forces"] = -gradients[0]
    if volume is not None:
        result["stress"] = gradients[-1] / volume[:, None, None]
    return result


def _check_operands(model: Potential, data: Any) -> None:
    """Refuses data of another dtype or device, and edges that PyG did not renumber in a batch."""
    weight = next(iter(model.parameters()), data.positions)
    for name in ("positions", "edge_shift"):
        given: Tensor = getattr(data, name)
        if given.dtype != weight.dtype or given.device != weight.device:
            raise TypeError(
                f"data.{name} must have the model's dtype and device, {weight.dtype} on "
                f"{weight.device}, got {given.dtype} on {given.device}; convert one with .to()"
            )
    offsets = getattr(data, "_inc_dict", {}).get("edge_src")  # what PyG's Batch has added
    if offsets is not None and len(offsets) > 1 and not any(offsets.tolist()):
        raise ValueError(
            "edge_src and edge_dst of a batch must count the atoms of all structures, got each "
            "structure's own numbers: join structures of eqtp.models.training.data.from_ase, which "
            "PyG's Batch renumbers, or add the offsets"
        )


def _at_nodes(name: str, values: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """The number of each node's structure."""
    if values.shape != (num_graphs,):
        raise ValueError(
            f"{name} must have one number per structure ({num_graphs}), got shape "
            f"{tuple(values.shape)}"
        )
    return values.index_select(0, batch)


def _rows_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Each row times its own matrix."""
    return (rows[:, None, :] @ matrices).squeeze(1)


def _element_index(known: list[int], atomic_numbers: Tensor) -> Tensor:
    """Index of each atom's element in the model's list."""
    table = torch.full((max(*known, 118) + 1,), -1, device=atomic_numbers.device)
    table[torch.tensor(known, device=atomic_numbers.device)] = torch.arange(
        len(known), device=atomic_numbers.device
    )
    inside = (atomic_numbers >= 0) & (atomic_numbers < len(table))
    element = torch.where(inside, table[atomic_numbers.clamp(0, len(table) - 1)], -1)
    if bool((element < 0).any()):
        unknown = sorted(set(atomic_numbers[element < 0].tolist()))
        raise ValueError(
            f"the model knows the elements {known} (atomic numbers), the structure has {unknown}; "
            "train a model that includes them"
        )
    return element
