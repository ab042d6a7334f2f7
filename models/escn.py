"""ESCN: SO(2) convolutions in the frames of edges, after eSCN-MD (eSEN, UMA).

Passaro and Zitnick, "Reducing SO(3) Convolutions to SO(2) for Efficient Equivariant GNNs", ICML
2023 (arXiv 2302.03655); Fu et al., "Learning Smooth and Expressive Interatomic Potentials for
Physical Property Prediction" (arXiv 2502.12147).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.models.blocks.edge_convolution import EdgeConvolution
from eqtp.models.blocks.edge_features import EdgeNetwork, GaussianBasis, SineBasis
from eqtp.models.blocks.energy import energy_and_derivatives
from eqtp.models.blocks.equivariant_norm import EquivariantRMSNorm
from eqtp.models.blocks.feed_forward import GridFeedForward, SpectralFeedForward
from eqtp.models.blocks.hyperparameters import check_at_least, check_elements, check_positive
from eqtp.models.blocks.radial import polynomial_cutoff
from eqtp.nn import ChannelwiseTensorProduct, Linear
from eqtp.so3 import spherical_harmonics

__all__ = ["ESCN"]


class ESCN(nn.Module):
    """An eSCN potential: energies, forces and stress of molecules and crystals.

    Nodes carry `channels` features of every degree up to `lmax`. Each of `num_layers` layers adds
    messages, made from both ends' features in the frame of the edge (SO(2) convolution, gate, SO(2)
    convolution, envelope), and then a feed-forward network of each node; both act on normalised
    features. The energy is a sum of node energies, read from the scalars of the last layer. Forces
    are the energy's derivatives; both are smooth where an atom crosses the cutoff.

    Args:
        atomic_numbers: Elements the model knows.
        atomic_energies: Energy of the isolated atom of each element in eV, same order.
        avg_num_neighbors: Mean number of neighbours in the training set; scales the messages.
        r_max: Cutoff radius in Å.
        lmax: Largest degree of the features.
        m_max: Largest order in the frames of edges, at most lmax; `lmax` when None. Fewer are
            cheaper and keep the equivariance exact.
        channels: Channels of every degree.
        hidden_channels: Channels inside messages and feed-forward networks; `channels` when None.
        num_layers: Number of layers.
        edge_channels: Hidden size of the radial networks.
        radial_basis: Functions of the length: "gaussian" or "bessel".
        num_rbf: Number of radial functions.
        num_polynomial_cutoff: Order p of the envelope.
        feed_forward: "spectral" (linear, gate, linear) or "grid" (with products on the sphere).
        group: "O(3)": mirror images have the same energy by construction; "SO(3)": eSCN's, eSEN's
            and UMA's choice, which learns that and costs twice as much for orders above 0.
        scale: Factor of the interaction energy (the RMS of the training forces).
        shift: Energy per atom added to the interaction energy, in eV.
        backend: Which kernels to use, see `eqtp.backend`.

    Raises:
        ValueError: A hyperparameter is out of its range or lists differ in length.

    Example:
        >>> model = ESCN(atomic_numbers=[1, 8], atomic_energies=[-13.6, -2041.0],
        ...              avg_num_neighbors=2.0, lmax=2, channels=8, num_layers=2)
        >>> sorted(model.hyperparameters)[:3]
        ['atomic_energies', 'atomic_numbers', 'avg_num_neighbors']
    """

    def __init__(
        self,
        *,
        atomic_numbers: Sequence[int],
        atomic_energies: Sequence[float],
        avg_num_neighbors: float,
        r_max: float = 5.0,
        lmax: int = 3,
        m_max: int | None = 2,
        channels: int = 64,
        hidden_channels: int | None = None,
        num_layers: int = 3,
        edge_channels: int = 64,
        radial_basis: Literal["gaussian", "bessel"] = "gaussian",
        num_rbf: int = 32,
        num_polynomial_cutoff: int = 5,
        feed_forward: Literal["spectral", "grid"] = "spectral",
        group: Literal["O(3)", "SO(3)"] = "O(3)",
        scale: float = 1.0,
        shift: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "atomic_numbers": [int(z) for z in atomic_numbers],
            "atomic_energies": [float(energy) for energy in atomic_energies],
            "avg_num_neighbors": float(avg_num_neighbors),
            "r_max": float(r_max),
            "lmax": lmax,
            "m_max": m_max,
            "channels": channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "edge_channels": edge_channels,
            "radial_basis": radial_basis,
            "num_rbf": num_rbf,
            "num_polynomial_cutoff": num_polynomial_cutoff,
            "feed_forward": feed_forward,
            "group": group,
            "scale": float(scale),
            "shift": float(shift),
            "backend": backend,
        }
        _validate(self.hyperparameters)
        self.atomic_numbers: list[int] = self.hyperparameters["atomic_numbers"]
        self.r_max = float(r_max)
        self.lmax = lmax
        self.num_polynomial_cutoff = num_polynomial_cutoff
        self.scale, self.shift = float(scale), float(shift)

        num_elements = len(self.atomic_numbers)
        basis = {"gaussian": GaussianBasis, "bessel": SineBasis}[radial_basis]
        self.radial_basis = basis(r_max, num_rbf)
        self.embedding = nn.Parameter(torch.randn(num_elements, channels))
        self.edge_degree = EdgeDegreeEmbedding(
            num_elements,
            lmax,
            channels,
            radial_sizes=(num_rbf, edge_channels, edge_channels),
            avg_num_neighbors=avg_num_neighbors,
            backend=backend,
        )
        # The scalars that the energy reads are made from scalars, but for the grid's products: the
        # last layer's other degrees would only rescale them through the norms.
        last = lmax if feed_forward == "grid" else 0
        self.layers = nn.ModuleList(
            Layer(
                num_elements,
                lmax,
                lmax if layer < num_layers - 1 else last,
                lmax if m_max is None else m_max,
                channels,
                hidden_channels or channels,
                radial_sizes=(num_rbf, edge_channels, edge_channels),
                avg_num_neighbors=avg_num_neighbors,
                feed_forward=feed_forward,
                group=group,
                backend=backend,
            )
            for layer in range(num_layers)
        )
        self.norm = EquivariantRMSNorm(last, channels)
        self.readout = Readout(channels)

    def forward(
        self, data: Any, *, compute_forces: bool = True, compute_stress: bool = False
    ) -> dict[str, Tensor]:
        """Energies and their derivatives.

        Args:
            data: A PyG `Data` or `Batch`, see `eqtp.models.training.data.from_ase`.
            compute_forces: Whether to return the forces, -dE/dposition.
            compute_stress: Whether to return the stress, dE/dstrain / volume.

        Returns:
            "energy" [G] in eV (float64), "node_energy" [N] in eV (float64), "forces" [N, 3] in
            eV/Å, and "stress" [G, 3, 3] in eV/Å^3 when asked for. In training mode the
            derivatives can be differentiated again.

        Raises:
            ValueError: An element is unknown to the model, or a position is not finite.
        """
        return energy_and_derivatives(
            self, data, compute_forces=compute_forces, compute_stress=compute_stress
        )

    def node_energies(
        self, element: Int[Tensor, " nodes"], vectors: Float[Tensor, "edges 3"], graph: Graph
    ) -> Float[Tensor, " nodes"]:
        """Interaction energy of each node in eV, without the isolated atoms' energies.

        Args:
            element: Index of each node's element in `atomic_numbers`.
            vectors: Edge vectors from sender to receiver in Å.
            graph: The edges.
        """
        edges = self._edges(element, vectors, graph)
        embedded = self.embedding.index_select(0, element)
        x = self.edge_degree(embedded, edges)
        x = torch.cat([x[:, :1] + embedded.unsqueeze(1), x[:, 1:]], 1)
        for layer in self.layers:
            x = layer(x, edges)
        energy: Tensor = self.readout(self.norm(x)[:, 0])
        return self.scale * energy + self.shift

    def weight_decay_parameters(self) -> list[nn.Parameter]:
        """Every matrix of messages and feed-forward networks; no norms, biases or embeddings."""
        kept = re.compile(r"layers.*(first|second|weight)")
        return [p for name, p in self.named_parameters() if kept.match(name)]

    def _edges(self, element: Tensor, vectors: Tensor, graph: Graph) -> Edges:
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        ends = [element.index_select(0, side) for side in (graph.edge_src, graph.edge_dst)]
        return Edges(
            graph=graph,
            reverse=Graph.of_checked(graph.edge_dst, graph.edge_src, graph.num_dst, graph.num_src),
            vectors=vectors,
            basis=self.radial_basis(lengths),
            envelope=polynomial_cutoff(lengths, self.r_max, self.num_polynomial_cutoff),
            pair=ends[0] * len(self.atomic_numbers) + ends[1],
        )


@dataclass(frozen=True)
class Edges:
    """What every layer needs to know of the edges.

    Attributes:
        graph: The edges.
        reverse: The edges with the ends exchanged.
        vectors: From sender to receiver, [E, 3].
        basis: Radial functions, [E, num_rbf].
        envelope: 1 at no distance, 0 from the cutoff on, [E].
        pair: Number of the pair of elements, [E].
    """

    graph: Graph
    reverse: Graph
    vectors: Tensor
    basis: Tensor
    envelope: Tensor
    pair: Tensor


class EdgeDegreeEmbedding(nn.Module):
    """First features of every degree: what neighbours of which elements stand where.

        x_nlmc = sum_e R_elc(r_e) Y_lm(r_e) z_c(sender) envelope(r_e) / sqrt(avg_num_neighbors)

    In the frame of the edge these are numbers of order 0 alone, so that rotating them back amounts
    to a product with harmonics.
    """

    def __init__(
        self,
        num_elements: int,
        lmax: int,
        channels: int,
        *,
        radial_sizes: tuple[int, ...],
        avg_num_neighbors: float,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.lmax, self.channels = lmax, channels
        self.scale = avg_num_neighbors**-0.5
        self.radial = EdgeNetwork(num_elements, (*radial_sizes, channels * (lmax + 1)))
        harmonics = Irreps.spherical_harmonics(lmax)
        self.product = ChannelwiseTensorProduct(
            Irreps([(channels, (0, 1))]),
            harmonics,
            Irreps([(channels, ir) for _, ir in harmonics]),
            backend=backend,
            layout="ir_mul",
        )

    def forward(
        self, embedded: Float[Tensor, "nodes channels"], edges: Edges
    ) -> Float[Tensor, "nodes components channels"]:
        """The features, in layout "ir_mul"."""
        harmonics = spherical_harmonics(self.lmax, edges.vectors, normalization="component")
        weight = self.radial(edges.basis, edges.pair) * edges.envelope[:, None]
        summed: Tensor = self.product(embedded, harmonics * self.scale, weight, graph=edges.graph)
        return summed.view(len(embedded), -1, self.channels)


class Layer(nn.Module):
    """Messages, then a feed-forward network, each added to the features up to `lmax_out`."""

    def __init__(
        self,
        num_elements: int,
        lmax: int,
        lmax_out: int,
        m_max: int,
        channels: int,
        hidden_channels: int,
        *,
        radial_sizes: tuple[int, ...],
        avg_num_neighbors: float,
        feed_forward: Literal["spectral", "grid"],
        group: Literal["O(3)", "SO(3)"],
        backend: Backend,
    ) -> None:
        super().__init__()
        network = {"spectral": SpectralFeedForward, "grid": GridFeedForward}[feed_forward]
        self.norm_1 = EquivariantRMSNorm(lmax, channels)
        self.convolution = EdgeConvolution(
            lmax,
            lmax_out,
            m_max,
            channels,
            hidden_channels,
            avg_num_neighbors=avg_num_neighbors,
            parity=group == "O(3)",
            backend=backend,
        )
        self.radial = EdgeNetwork(num_elements, (*radial_sizes, self.convolution.radial_size))
        self.norm_2 = EquivariantRMSNorm(lmax_out, channels)
        self.feed_forward = network(lmax_out, channels, hidden_channels)

    def forward(
        self, x: Float[Tensor, "nodes components channels"], edges: Edges
    ) -> Float[Tensor, "nodes components_out channels"]:
        """The features after the layer."""
        radial = self.radial(edges.basis, edges.pair)
        messages = self.convolution(
            self.norm_1(x), edges.vectors, radial, edges.envelope, edges.graph, edges.reverse
        )
        x = x[:, : messages.shape[1]] + messages
        out: Tensor = x + self.feed_forward(self.norm_2(x))
        return out


class Readout(nn.Module):
    """Node energy as a small network of the scalars: two hidden layers with SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(f"{channels}x0e", f"{size}x0e", biases=True, layout="ir_mul")
            for size in (channels, channels, 1)
        )

    def forward(self, scalars: Float[Tensor, "nodes channels"]) -> Float[Tensor, " nodes"]:
        """One energy per node."""
        first, second, last = self.layers
        energy: Tensor = last(silu(second(silu(first(scalars))))).squeeze(1)
        return energy


def _validate(hyperparameters: dict[str, Any]) -> None:
    """Refuses hyperparameters that make no model, before anything is built."""
    check_elements(hyperparameters)
    limits = dict.fromkeys(("channels", "hidden_channels", "num_layers", "edge_channels"), 1)
    limits |= {"lmax": 0, "m_max": 0, "num_rbf": 2, "num_polynomial_cutoff": 2}
    check_at_least(hyperparameters, limits)
    check_positive(hyperparameters, "r_max", "avg_num_neighbors")
    lmax, m_max = hyperparameters["lmax"], hyperparameters["m_max"]
    if m_max is not None and m_max > lmax:
        raise ValueError(f"m_max must be at most lmax ({lmax}), got {m_max}")
    choices = {
        "radial_basis": ("gaussian", "bessel"),
        "feed_forward": ("spectral", "grid"),
        "group": ("O(3)", "SO(3)"),
    }
    for name, known in choices.items():
        if hyperparameters[name] not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}, got {hyperparameters[name]!r}"
            )
