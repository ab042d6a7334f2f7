"""TensorNet: message passing with 3x3 Cartesian tensors.

Simeon and De Fabritiis, "TensorNet: Cartesian Tensor Representations for Efficient Learning of
Molecular Potentials", arXiv 2306.06482 (NeurIPS 2023); total charges after arXiv 2403.05208. The
equations are those of torchmd-net 3.1, so `TensorNet.from_torchmd_net` carries weights over.

A node has a 3x3 matrix X = I + A + S per channel: a multiple of the unit matrix, an antisymmetric
and a symmetric traceless part. They are kept as the 1 + 3 + 5 numbers of degrees 0, 1 and 2 that
`eqtp.so3.convert` makes of them, "mul x 0e + mul x 1o + mul x 2e" in layout "ir_mul": a linear map
of A or S costs 3 or 5 columns instead of 9, and ||X||^2 is a sum of squares. A belongs to a polar
vector, so that an inversion transposes X.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.matrix import matrix_normalize, matrix_product
from eqtp.kernels.radial import Activation, RadialBasis, radial_network
from eqtp.models.blocks.energy import energy_and_derivatives
from eqtp.models.blocks.hyperparameters import check_at_least, check_elements, check_positive
from eqtp.models.blocks.matrix_linear import MatrixLinear, expand_parts
from eqtp.models.blocks.radial import ExpNormalBasis, cosine_cutoff
from eqtp.nn import ChannelwiseTensorProduct
from eqtp.so3 import spherical_harmonics

__all__ = ["TensorNet"]

Group = Literal["O(3)", "SO(3)"]


class TensorNet(nn.Module):
    """A TensorNet potential: energies, forces and stress of molecules and crystals.

    Edges within `r_max` and every atom's edge to itself make the matrices X of an atom; each of
    `num_layers` layers mixes the channels of the neighbours' parts, sums them with radial weights
    and multiplies the sum with the atom's own matrix: YM + MY under "O(3)", which inversions leave
    in place, 2YM under "SO(3)", which tells mirror images apart. The energy is read from the norms
    of the three parts.

    A total charge q of each structure, `data.total_charge` [G] (zero where there is none),
    multiplies the products by 1 + 0.1 q.

    Args:
        atomic_numbers: Elements the model knows.
        atomic_energies: Energy of the isolated atom of each element in eV, same order.
        r_max: Cutoff radius in Å.
        channels: Number of matrices per atom.
        num_layers: Number of layers after the embedding.
        num_rbf: Number of radial basis functions.
        group: "O(3)" or "SO(3)".
        scale: Factor of the interaction energy.
        shift: Energy per atom added to the interaction energy, in eV.
        backend: Which kernels to use, see `eqtp.backend`.

    Raises:
        ValueError: A hyperparameter is out of its range or lists differ in length.

    Example:
        >>> model = TensorNet(atomic_numbers=[1, 8], atomic_energies=[-13.6, -2041.0], channels=8)
        >>> sorted(model.hyperparameters)[:3]
        ['atomic_energies', 'atomic_numbers', 'backend']
    """

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        atomic_energies: Sequence[float],
        r_max: float = 5.0,
        channels: int = 64,
        num_layers: int = 2,
        num_rbf: int = 32,
        group: Group = "O(3)",
        scale: float = 1.0,
        shift: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "atomic_numbers": [int(z) for z in atomic_numbers],
            "atomic_energies": [float(energy) for energy in atomic_energies],
            "r_max": float(r_max),
            "channels": channels,
            "num_layers": num_layers,
            "num_rbf": num_rbf,
            "group": group,
            "scale": float(scale),
            "shift": float(shift),
            "backend": backend,
        }
        _validate(self.hyperparameters)
        self.atomic_numbers: list[int] = self.hyperparameters["atomic_numbers"]
        self.r_max = float(r_max)
        self.scale, self.shift = float(scale), float(shift)
        self.radial_basis = ExpNormalBasis(r_max, num_rbf)
        self.embedding = TensorEmbedding(len(self.atomic_numbers), channels, num_rbf, backend)
        self.layers = nn.ModuleList(
            Interaction(channels, num_rbf, group, backend) for _ in range(num_layers)
        )
        self.readout = Readout(channels)

    @classmethod
    def from_torchmd_net(
        cls, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> TensorNet:
        """An eqtp model with the weights of a TensorNet of torchmd-net.

        Args:
            state_dict: Of a `torchmdnet.models.model.TorchMD_Net`, or of a Lightning checkpoint.
            config: The arguments it was made with (its `input.yaml` or `hparams.yaml`).

        Raises:
            NotImplementedError: The model uses something this class does not have, by name.
            ValueError: Weights are missing, left over or of another shape.
        """
        from eqtp.models.tensornet_import import from_torchmd_net

        return from_torchmd_net(state_dict, config)

    def forward(
        self, data: Any, *, compute_forces: bool = True, compute_stress: bool = False
    ) -> dict[str, Tensor]:
        """Energies and their derivatives.

        Args:
            data: A PyG `Data` or `Batch`, see `eqtp.models.training.data.from_ase`; may have
                `total_charge` [G], in elementary charges.
            compute_forces: Whether to return the forces, -dE/dposition.
            compute_stress: Whether to return the stress, dE/dstrain / volume.

        Returns:
            "energy" [G] in eV (float64), "node_energy" [N] in eV (float64), "forces" [N, 3] in
            eV/Å, and "stress" [G, 3, 3] in eV/Å^3 when asked for. In training mode the
            derivatives can be differentiated again.

        Raises:
            ValueError: An element is unknown to the model, a position is not finite, or there is
                not one total charge per structure.
        """
        return energy_and_derivatives(
            self,
            data,
            compute_forces=compute_forces,
            compute_stress=compute_stress,
            per_graph={"total_charge": getattr(data, "total_charge", None)},
        )

    def node_energies(
        self,
        element: Int[Tensor, " nodes"],
        vectors: Float[Tensor, "edges 3"],
        graph: Graph,
        total_charge: Float[Tensor, " nodes"] | None = None,
    ) -> Float[Tensor, " nodes"]:
        """Interaction energy of each node in eV, without the isolated atoms' energies.

        Args:
            element: Index of each node's element in `atomic_numbers`.
            vectors: Edge vectors from sender to receiver in Å.
            graph: The edges, without the atoms' edges to themselves.
            total_charge: Total charge of each node's structure; None where all are neutral.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        basis = self.radial_basis
        radial = RadialBasis(lengths, basis.forward, basis.with_slope)
        at_zero = basis(lengths.new_zeros(1))
        cutoff = cosine_cutoff(lengths, self.r_max)[:, None]
        factor = None if total_charge is None else (1 + 0.1 * total_charge)[:, None]
        x = self.embedding(element, vectors, cutoff, radial, at_zero, graph)
        for layer in self.layers:
            x = layer(x, cutoff, radial, at_zero, graph, factor)
        energies: Tensor = self.scale * self.readout(x) + self.shift
        return energies

    def weight_decay_parameters(self) -> list[nn.Parameter]:
        """Parameters of the maps that mix the channels of matrices."""
        return [m.weight for m in self.modules() if isinstance(m, MatrixLinear)]


class BiasedRadialNetwork(nn.Module):
    """Multilayer perceptron of the edge length with biases, as `nn.Linear` has them.

        h = silu(h W_k + b_k) for every layer; only h W + b where there is one layer

    Args:
        sizes: Sizes of input, hidden layers and output.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    @property
    def layers(self) -> list[nn.Linear]:
        """The layers, in order."""
        return [linear for linear in self.linears if isinstance(linear, nn.Linear)]

    def forward(self, basis: RadialBasis) -> Float[Tensor, "edges size_out"]:
        """The network at every edge."""
        weights = [linear.weight.t() * linear.in_features**0.5 for linear in self.layers]
        biases = [linear.bias for linear in self.layers]
        activation = Activation(1.0, on_last=len(weights) > 1)
        return radial_network(basis, weights, activation, biases)

    def at(self, basis: Float[Tensor, "rows size_in"]) -> Float[Tensor, "rows size_out"]:
        """The network of given rows of the basis."""
        for linear in self.layers:
            basis = linear(basis)
            if len(self.layers) > 1:
                basis = silu(basis)
        return basis


class TensorEmbedding(nn.Module):
    """The first matrices of an atom, from the elements and directions of its neighbours."""

    def __init__(self, num_elements: int, channels: int, num_rbf: int, backend: Backend) -> None:
        super().__init__()
        self.channels = channels
        self.elements = nn.Embedding(num_elements, channels)
        self.pair = nn.Linear(2 * channels, channels)
        self.radial = BiasedRadialNetwork((num_rbf, 3 * channels))
        self.mix = MatrixLinear(channels)
        self.norm = nn.LayerNorm(channels)
        self.gates = nn.ModuleList(
            [nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, 3 * channels)]
        )
        self.convolution = ChannelwiseTensorProduct(
            Irreps([(channels, (0, 1))]),
            Irreps.spherical_harmonics(2),
            Irreps.spherical_harmonics(2),
            backend=backend,
            layout="ir_mul",
        )

    def forward(
        self,
        element: Int[Tensor, " nodes"],
        vectors: Float[Tensor, "edges 3"],
        cutoff: Float[Tensor, "edges 1"],
        radial: RadialBasis,
        at_zero: Float[Tensor, "1 num_rbf"],
        graph: Graph,
    ) -> Float[Tensor, "nodes dim"]:
        """X of every node.

        The pair's vector Z_ij = P z_i + Q z_j + b is not made for every edge: its two terms are
        taken out of the sum over neighbours and into the sender's features.
        """
        receiver, sender = self.pair.weight.split(self.channels, dim=1)
        of_receiver = (self.elements.weight @ receiver.t() + self.pair.bias)[element]
        of_sender = (self.elements.weight @ sender.t())[element]
        weights = self.radial(radial)
        harmonics = cutoff * _directions(vectors)
        own = torch.ones_like(of_sender)
        x = self.convolution(own, harmonics, weights, graph=graph)
        x = x * of_receiver.repeat(1, 9) + self.convolution(
            of_sender, harmonics, weights, graph=graph
        )
        scalar, rest = x.split([self.channels, 8 * self.channels], dim=1)
        self_weight = 3**0.5 * self.radial.at(at_zero)[:, : self.channels]
        x = torch.cat([scalar + self_weight * (of_receiver + of_sender), rest], dim=1)
        gates = self.norm(_square_norms(x, self.channels))
        for linear in self.gates:
            gates = silu(linear(gates))
        out: Tensor = self.mix(x) * expand_parts(gates)
        return out


class Interaction(nn.Module):
    """One layer: messages, the product with them, and the update."""

    def __init__(self, channels: int, num_rbf: int, group: Group, backend: Backend) -> None:
        super().__init__()
        self.channels, self.group = channels, group
        self.backend: Backend = backend
        self.radial = BiasedRadialNetwork((num_rbf, channels, 2 * channels, 3 * channels))
        self.mix_before = MatrixLinear(channels)
        self.mix_after = MatrixLinear(channels)
        self.convolution = ChannelwiseTensorProduct(
            Irreps([(channels, ir) for _, ir in Irreps.spherical_harmonics(2)]),
            "0e",
            Irreps.spherical_harmonics(2),
            backend=backend,
            layout="ir_mul",
        )

    def forward(
        self,
        x: Float[Tensor, "nodes dim"],
        cutoff: Float[Tensor, "edges 1"],
        radial: RadialBasis,
        at_zero: Float[Tensor, "1 num_rbf"],
        graph: Graph,
        factor: Float[Tensor, "nodes 1"] | None,
    ) -> Float[Tensor, "nodes dim"]:
        """The updated X; `factor` is 1 + 0.1 q."""
        x = matrix_normalize(x, backend=self.backend)
        y = self.mix_before(x)
        message = self.convolution(y, cutoff, self.radial(radial), graph=graph)
        message = message + y * expand_parts(self.radial.at(at_zero))
        kind: Literal["anticommutator", "product"]
        kind = "anticommutator" if self.group == "O(3)" else "product"
        product = matrix_product(y, message, kind, backend=self.backend)
        if kind == "product":
            product = 2 * product
        elif factor is not None:
            product = product * factor
        change = self.mix_after(matrix_normalize(product, backend=self.backend))
        square = matrix_product(change, change, "product", backend=self.backend)
        updated: Tensor = x + change + (square if factor is None else square * factor)
        return updated


class Readout(nn.Module):
    """Node energy from the squared norms of I, A and S."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.LayerNorm(3 * channels)
        self.linear = nn.Linear(3 * channels, channels)
        self.head = nn.ModuleList([nn.Linear(channels, channels // 2), nn.Linear(channels // 2, 1)])
        for linear in self.head.children():
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "nodes dim"]) -> Float[Tensor, " nodes"]:
        """One energy per node."""
        parts = x.view(len(x), 9, self.channels).square().split([1, 3, 5], dim=1)
        hidden = self.norm(torch.cat([part.sum(1) for part in parts], dim=1))
        hidden = silu(self.linear(hidden))
        hidden = silu(self.head[0](hidden))
        energy: Tensor = self.head[1](hidden).squeeze(1)
        return energy


def _directions(vectors: Float[Tensor, "edges 3"]) -> Float[Tensor, "edges 9"]:
    """The parts of E, of the skew matrix of the unit vector n, and of nn - E/3."""
    harmonics = spherical_harmonics(2, vectors, normalization="norm")
    factors = harmonics.new_tensor([3**0.5, *[-(2**0.5)] * 3, *[(2 / 3) ** 0.5] * 5])
    return harmonics * factors


def _square_norms(x: Float[Tensor, "nodes dim"], channels: int) -> Float[Tensor, "nodes channels"]:
    """||X||^2 of every channel."""
    return x.view(len(x), 9, channels).square().sum(1)


def _validate(hyperparameters: dict[str, Any]) -> None:
    """Refuses hyperparameters that make no model, before anything is built."""
    check_elements(hyperparameters)
    check_at_least(hyperparameters, {"channels": 2, "num_layers": 0, "num_rbf": 2})
    check_positive(hyperparameters, "r_max")
    if hyperparameters["group"] not in get_args(Group):
        raise ValueError(
            f"group must be one of {get_args(Group)}, got {hyperparameters['group']!r}"
        )
