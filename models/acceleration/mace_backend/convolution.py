"""Sums over edges and segments of MACE: `channelwise_tp_conv` and `segment_reduce`."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irrep, Irreps
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.layout import Layout
from eqtp.models.acceleration.e3nn import relative_sign
from eqtp.models.acceleration.kept import graph_of
from eqtp.models.acceleration.mace_backend.conventions import (
    channels_first,
    components_first,
    layout_of,
)
from eqtp.problem import Path, TensorProductProblem

__all__ = ["ChannelwiseConvolution", "SegmentReduce", "paths_of"]


class ChannelwiseConvolution(nn.Module):
    """`channelwise_tp_conv`: product of senders and harmonics, summed at the receivers."""

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        super().__init__()
        self.paths = paths_of(descriptor)
        self.irreps = descriptor.irreps_node, descriptor.irreps_edge, descriptor.irreps_out
        self.grouped = hasattr(descriptor, "num_features")
        self.problems: dict[int, TensorProductProblem] = {}
        """By number of channels; a form that does not tell it must be called before compilation."""
        if self.grouped:
            self._prepare(descriptor.num_features)
        self.layout: Layout = layout_of(descriptor)
        self.backend: Backend = backend

    @property
    def num_paths(self) -> int:
        """Number of radial weights per edge and channel."""
        return len(self.paths)

    def _prepare(self, channels: int) -> None:
        self.problems[channels] = _problem(self.irreps, self.paths, channels, self.grouped)

    def forward(
        self,
        node_features: Tensor,
        edge_attributes: Tensor,
        radial_weights: Tensor,
        sender: Tensor,
        receiver: Tensor,
        num_nodes: int,
    ) -> Tensor:
        """Sums at the nodes, of radial weights [E, paths, C]; features as the module says."""
        channels = radial_weights.shape[2]
        if channels not in self.problems:
            self._prepare(channels)
        num_src = node_features.shape[0]
        if num_src == num_nodes:
            graph = graph_of(sender, receiver, num_nodes)
        else:
            graph = Graph(sender, receiver, num_src, num_nodes)
        out = channelwise_tensor_product(
            node_features if self.grouped else components_first(node_features),
            edge_attributes,
            radial_weights.flatten(1),
            self.problems[channels],
            graph=graph,
            layout=self.layout if self.grouped else "ir_mul",
            backend=self.backend,
        )
        return out if self.grouped else channels_first(out, channels)


_Paths = tuple[tuple[int, int, int, float], ...]


def paths_of(descriptor: Any) -> _Paths:
    """(block of nodes, block of edges, block of the result, coefficient), in order of weights."""
    node, edge, out = (
        [ir for _, ir in Irreps(irreps)]
        for irreps in (descriptor.irreps_node, descriptor.irreps_edge, descriptor.irreps_out)
    )
    if hasattr(descriptor, "num_features"):
        paths = importlib.import_module("mace_core.kernels.paths").channelwise_paths
        triples = [
            (path.node_term, path.edge_term, out.index(Irrep(str(path.irrep))))
            for path in paths(descriptor.irreps_node, descriptor.irreps_edge, descriptor.irreps_out)
        ]
    else:
        triples = [
            (i, j, k)
            for k, ir in enumerate(out)
            for i, left in enumerate(node)
            for j, right in enumerate(edge)
            if ir in left * right
        ]
    return tuple((i, j, k, _coefficient(node[i], edge[j], out[k])) for i, j, k in triples)


def _coefficient(node: Irrep, edge: Irrep, out: Irrep) -> float:
    """sqrt(2l + 1), with the sign of MACE's 3j symbol relative to eqtp's."""
    basis = importlib.import_module("mace_core.clebsch_gordan.real_basis")
    symbol = torch.tensor(basis.wigner_3j_real(out.l, node.l, edge.l), dtype=torch.float64)
    return math.sqrt(out.dim) * relative_sign(symbol.permute(1, 2, 0), (node.l, edge.l, out.l))


def _problem(
    irreps: tuple[str, str, str], paths: _Paths, channels: int, apart: bool
) -> TensorProductProblem:
    """The product for so many channels, its paths in blocks of their own or summed."""
    node, edge, out = ([ir for _, ir in Irreps(text)] for text in irreps)
    if apart:
        out = [out[path[2]] for path in paths]
    return TensorProductProblem(
        Irreps([(channels, ir) for ir in node]),
        Irreps([(1, ir) for ir in edge]),
        Irreps([(channels, ir) for ir in out]),
        tuple(
            Path(
                i_in1=i,
                i_in2=j,
                i_out=number if apart else k,
                mode="uvu",
                has_weight=True,
                path_weight=1.0,
                coefficient=coefficient,
                weight_shape=(channels, 1),
                weight_start=number * channels,
            )
            for number, (i, j, k, coefficient) in enumerate(paths)
        ),
    )


class SegmentReduce(nn.Module):
    """`segment_reduce`: sums or means of rows that share an index; zero where there is none."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.mean = descriptor.reduction == "mean"

    def forward(self, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
        """[num_segments, ...] of values [N, ...] with segments [N]."""
        total = values.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, values)
        if not self.mean:
            return total
        count = values.new_zeros(num_segments).index_add(0, index, values.new_ones(len(index)))
        return total / count.clamp(min=1).view(-1, *[1] * (values.ndim - 1))
