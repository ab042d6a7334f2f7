"""TensorNet written out: full 3x3 matrices, an edge of every atom to itself, nothing fused.

The published equations in plain torch, independent of what `eqtp.models.TensorNet` makes of them:
the tests hold the model against it, and the benchmark runs it beside the model. What is kept per
edge is what torchmd-net 3.1 keeps without its Warp kernels: scalars, vectors and 3x3 matrices.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from eqtp.graph import Graph
from eqtp.models.blocks.energy import energy_and_derivatives
from eqtp.models.tensornet import TensorNet

__all__ = ["PlainTensorNet"]


class PlainTensorNet(nn.Module):
    """The equations with the parameters of a model, which both share.

    Args:
        model: Whose parameters and hyperparameters to take.
    """

    def __init__(self, model: TensorNet) -> None:
        super().__init__()
        self.model = model
        self.atomic_numbers = model.atomic_numbers
        self.hyperparameters = model.hyperparameters

    def forward(self, data: Any, *, compute_forces: bool = True) -> dict[str, Tensor]:
        """As `TensorNet.forward`."""
        return energy_and_derivatives(
            self,
            data,
            compute_forces=compute_forces,
            compute_stress=False,
            per_graph={"total_charge": getattr(data, "total_charge", None)},
        )

    def node_energies(
        self, element: Tensor, vectors: Tensor, graph: Graph, total_charge: Tensor | None = None
    ) -> Tensor:
        """As `TensorNet.node_energies`."""
        model, num_nodes = self.model, len(element)
        loops = torch.arange(num_nodes)
        src, dst = torch.cat([graph.edge_src, loops]), torch.cat([graph.edge_dst, loops])
        lengths = vectors.norm(dim=1)
        units = torch.cat([vectors / lengths[:, None], vectors.new_zeros(num_nodes, 3)])
        lengths = torch.cat([lengths, lengths.new_zeros(num_nodes)])
        cutoff = 0.5 * (torch.cos(math.pi * lengths / model.r_max) + 1) * (lengths < model.r_max)
        rbf = self._rbf(lengths, cutoff)
        charge = vectors.new_zeros(num_nodes) if total_charge is None else total_charge
        factor = (1 + 0.1 * charge)[:, None, None, None]

        x = self._embedding(element, units, cutoff, rbf, src, dst)
        layer: Any
        for layer in model.layers:
            f = rbf
            for linear in layer.radial.linears:
                f = silu(f @ linear.weight.t() + linear.bias)
            f = (f * cutoff[:, None]).view(len(f), 3, -1)
            x = x / (_norm(x) + 1)[:, None, None]
            y_parts = _mix(_decompose(x), layer.mix_before.weight)
            y, message = _compose(y_parts), _compose(_messages(y_parts, f, src, dst))
            if layer.group == "O(3)":
                product = factor * (_matmul(y, message) + _matmul(message, y))
            else:
                product = 2 * _matmul(y, message)
            parts = [part / (_norm(product) + 1)[:, None, None] for part in _decompose(product)]
            change = _compose(_mix(parts, layer.mix_after.weight))
            x = x + change + factor * _matmul(change, change)
        energies: Tensor = model.scale * self._readout(x) + model.shift
        return energies

    def _rbf(self, lengths: Tensor, cutoff: Tensor) -> Tensor:
        basis = self.model.radial_basis
        offset = torch.exp(-5 / self.model.r_max * lengths)[:, None] - basis.means
        return cutoff[:, None] * torch.exp(-basis.betas * offset**2)

    def _embedding(
        self, element: Tensor, units: Tensor, cutoff: Tensor, rbf: Tensor, src: Tensor, dst: Tensor
    ) -> Tensor:
        block = self.model.embedding
        z = block.elements.weight[element]
        pair = torch.cat([z[dst], z[src]], dim=1) @ block.pair.weight.t() + block.pair.bias
        (linear,) = block.radial.layers
        radial = (rbf @ linear.weight.t() + linear.bias).view(len(rbf), 3, -1)
        weights = radial * (cutoff[:, None] * pair)[:, None]
        outer = units[:, :, None] * units[:, None, :]
        scalar = _sum_at(dst, weights[:, 0], len(element))
        vector = _sum_at(dst, weights[:, 1, None] * units[..., None], len(element))
        tensor = _sum_at(dst, weights[:, 2, None, None] * outer[..., None], len(element))
        parts = [_unit_matrix(scalar), _skew(vector), tensor - _trace_part(tensor)]
        gates = block.norm(_norm(_compose(parts)))
        layer: Any
        for layer in block.gates:
            gates = silu(gates @ layer.weight.t() + layer.bias)
        gates = gates.view(len(gates), 3, -1)
        mixed = _mix(parts, block.mix.weight)
        return _compose([part * gates[:, k, None, None] for k, part in enumerate(mixed)])

    def _readout(self, x: Tensor) -> Tensor:
        readout: Any = self.model.readout
        norms = torch.cat([_norm(part) for part in _decompose(x)], dim=1)
        hidden = readout.norm(norms)
        hidden = silu(hidden @ readout.linear.weight.t() + readout.linear.bias)
        first, last = readout.head
        hidden = silu(hidden @ first.weight.t() + first.bias)
        energy: Tensor = (hidden @ last.weight.t() + last.bias).squeeze(1)
        return energy


def _unit_matrix(scalar: Tensor) -> Tensor:
    return scalar[:, None, None] * torch.eye(3, dtype=scalar.dtype)[None, :, :, None]


def _skew(vector: Tensor) -> Tensor:
    """The matrix of the cross product with a vector."""
    x, y, z = vector.unbind(1)
    zero = torch.zeros_like(x)
    entries = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1)
    return entries.view(len(vector), 3, 3, -1)


def _vector(skew: Tensor) -> Tensor:
    entries = (skew[:, 2, 1] - skew[:, 1, 2], skew[:, 0, 2] - skew[:, 2, 0])
    return torch.stack([*entries, skew[:, 1, 0] - skew[:, 0, 1]], 1) / 2


def _sum_at(dst: Tensor, edges: Tensor, num_nodes: int) -> Tensor:
    return edges.new_zeros(num_nodes, *edges.shape[1:]).index_add(0, dst, edges)


def _trace_part(x: Tensor) -> Tensor:
    return _unit_matrix(x.diagonal(dim1=1, dim2=2).mean(-1))


def _decompose(x: Tensor) -> list[Tensor]:
    scalar = _trace_part(x)
    skew = 0.5 * (x - x.transpose(1, 2))
    return [scalar, skew, x - skew - scalar]


def _compose(parts: list[Tensor]) -> Tensor:
    return parts[0] + parts[1] + parts[2]


def _norm(x: Tensor) -> Tensor:
    return (x**2).sum((1, 2))


def _mix(parts: list[Tensor], weights: Tensor) -> list[Tensor]:
    return [part @ weight for part, weight in zip(parts, weights, strict=True)]


def _messages(parts: list[Tensor], f: Tensor, src: Tensor, dst: Tensor) -> list[Tensor]:
    scalar, skew, tensor = parts
    trace, num_nodes = scalar[:, 0, 0], len(scalar)
    vector = _vector(skew)
    return [
        _unit_matrix(_sum_at(dst, f[:, 0] * trace.index_select(0, src), num_nodes)),
        _skew(_sum_at(dst, f[:, 1, None] * vector.index_select(0, src), num_nodes)),
        _sum_at(dst, f[:, 2, None, None] * tensor.index_select(0, src), num_nodes),
    ]


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return (a.permute(0, 3, 1, 2) @ b.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
