"""MACE: higher-order equivariant message passing.

Batatia et al., "MACE: Higher Order Equivariant Message Passing Neural Networks for Fast and
Accurate Force Fields", arXiv 2206.07697. Parameter names, normalisations and orders are those of
mace-torch's ScaleShiftMACE, so `eqtp.models.mace_import` carries weights over one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.radial import RadialBasis
from eqtp.models.blocks.element_linear import ElementLinear
from eqtp.models.blocks.energy import energy_and_derivatives
from eqtp.models.blocks.hyperparameters import check_at_least, check_elements, check_positive
from eqtp.models.blocks.path_gates import ConvolutionGate
from eqtp.models.blocks.radial import SILU_GAIN, BesselBasis, RadialNetwork
from eqtp.models.blocks.tensor_heads import TensorHeads, parse_targets, with_irreps_of
from eqtp.nn import ChannelwiseTensorProduct, Linear, SymmetricContraction, TensorProduct
from eqtp.nn.symmetric_contraction import ContractionMethod
from eqtp.problem import parse_irreps
from eqtp.so3 import spherical_harmonics

__all__ = ["MACE"]

MAX_STORED_WEIGHTS = 1 << 26
"""Radial weights of a layer beyond which they are made inside the product, tile by tile.

Stored, they are computed once per distinct length: radial network and product of a training step
took 68 ms instead of 93 (2,246 edges, 128 channels, one thread). 2^26 are 256 MiB in float32.
"""


class MACE(nn.Module):
    """A MACE potential: energies, forces and stress of molecules and crystals.

    Each of `num_interactions` layers sums messages over neighbours within `r_max` (a channelwise
    tensor product of node features with spherical harmonics, weighted by a radial network) and
    raises the sum to powers up to `correlation` (a symmetric contraction). The energy is a sum of
    node energies, read from the invariant part of every layer.

    Args:
        atomic_numbers: Elements the model knows.
        atomic_energies: Energy of the isolated atom of each element in eV, same order.
        avg_num_neighbors: Mean number of neighbours in the training set; scales the messages.
        r_max: Cutoff radius in Å.
        num_bessel: Number of radial basis functions.
        num_polynomial_cutoff: Order p of the smooth cutoff.
        max_ell: Largest degree of the spherical harmonics.
        correlation: Body order minus one of the features, at least 1.
        num_interactions: Number of layers.
        hidden_irreps: Node features, one multiplicity for all, e.g. "32x0e+32x1o".
        mlp_irreps: Hidden scalars of the last readout, e.g. "16x0e".
        radial_mlp: Hidden sizes of the radial network.
        scale: Factor of the interaction energy (the RMS of the training forces).
        shift: Energy per atom added to the interaction energy, in eV.
        basis: Couplings of the symmetric contraction: "independent", or "mace" (mace-torch's).
        product: How the sums are raised to powers. "cg": a weight for every coupling. "gaunt": as a
            function on the sphere, with weights per degree and power (MACE-Gaunt; Luo et al., ICLR
            2024, arXiv:2401.10216). "gaunt_iterated": the same with a projection and weights after
            every product. At max_ell 3 the polynomials of degree 3 with results 0e, 1o, 2e have 8,
            12, 14 couplings: "gaunt_iterated" spans all, "gaunt" 8, 9, 9; degree 4: 23, 31, 46
            against 17, 15, 18. An element and channel have 13 weights for a result 0e with "cg"
            (29 for 0e+1o), 7 (10) with "gaunt" and 15 (18) with "gaunt_iterated".
        tensor_targets: Cartesian tensors to predict beside the energy, name -> fields of
            `models.blocks.tensor_heads.TensorTarget`: {"dipole": {"formula": "i", "unit": "e Å"}}.
            `forward` returns them by name. Their irreps must be among `hidden_irreps`.
        paths: Paths that each layer's convolution keeps, None for all; what `prune_paths` writes.
        backend: Which kernels to use, see `eqtp.backend`.

    Raises:
        ValueError: A hyperparameter is out of its range or lists differ in length.

    Example:
        >>> model = MACE(atomic_numbers=[1, 8], atomic_energies=[-13.6, -2041.0],
        ...              avg_num_neighbors=2.0, hidden_irreps="8x0e+8x1o", max_ell=2)
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
        num_bessel: int = 8,
        num_polynomial_cutoff: int = 5,
        max_ell: int = 3,
        correlation: int = 3,
        num_interactions: int = 2,
        hidden_irreps: str = "32x0e+32x1o",
        mlp_irreps: str = "16x0e",
        radial_mlp: Sequence[int] = (64, 64, 64),
        scale: float = 1.0,
        shift: float = 0.0,
        basis: Literal["independent", "mace"] = "independent",
        product: ContractionMethod = "cg",
        tensor_targets: Mapping[str, Mapping[str, Any]] | None = None,
        paths: Sequence[Sequence[int] | None] | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        hidden, mlp = parse_irreps(hidden_irreps), parse_irreps(mlp_irreps)
        targets = parse_targets(tensor_targets)
        self.hyperparameters: dict[str, Any] = {
            "atomic_numbers": [int(z) for z in atomic_numbers],
            "atomic_energies": [float(energy) for energy in atomic_energies],
            "avg_num_neighbors": float(avg_num_neighbors),
            "r_max": float(r_max),
            "num_bessel": num_bessel,
            "num_polynomial_cutoff": num_polynomial_cutoff,
            "max_ell": max_ell,
            "correlation": correlation,
            "num_interactions": num_interactions,
            "hidden_irreps": str(hidden),
            "mlp_irreps": str(mlp),
            "radial_mlp": [int(size) for size in radial_mlp],
            "scale": float(scale),
            "shift": float(shift),
            "basis": basis,
            "product": product,
            "tensor_targets": {name: asdict(target) for name, target in targets.items()},
            "paths": None if paths is None else [None if p is None else list(p) for p in paths],
            "backend": backend,
        }
        _validate(self.hyperparameters, hidden, mlp)
        self.atomic_numbers: list[int] = self.hyperparameters["atomic_numbers"]
        self.r_max = float(r_max)
        self.max_ell = max_ell
        self.scale, self.shift = float(scale), float(shift)

        num_elements, channels = len(self.atomic_numbers), hidden[0].mul
        scalars = Irreps([(channels, (0, 1))])
        harmonics = Irreps.spherical_harmonics(max_ell)
        self.node_embedding = NodeEmbedding(num_elements, channels)
        self.radial_embedding = BesselBasis(r_max, num_bessel, num_polynomial_cutoff)
        self.interactions = nn.ModuleList()
        self.products = nn.ModuleList()
        self.readouts = nn.ModuleList()
        features = scalars
        layers: list[Irreps] = []
        for layer in range(num_interactions):
            last = layer == num_interactions - 1
            target = with_irreps_of(scalars, hidden, targets) if last else hidden
            self.interactions.append(
                Interaction(
                    features,
                    harmonics,
                    target,
                    num_elements=num_elements,
                    radial_sizes=(num_bessel, *radial_mlp),
                    avg_num_neighbors=avg_num_neighbors,
                    paths=None if paths is None else paths[layer],
                    backend=backend,
                )
            )
            self.products.append(
                ProductBasis(
                    Irreps([(channels, ir) for _, ir in harmonics]),
                    target,
                    correlation=correlation,
                    num_elements=num_elements,
                    basis=basis,
                    method=product,
                    backend=backend,
                )
            )
            self.readouts.append(NonLinearReadout(target, mlp) if last else LinearReadout(target))
            features = target
            layers.append(target)
        self.tensor_heads = TensorHeads(targets, layers) if targets else None

    @classmethod
    def from_mace(cls, model: Any) -> MACE:
        """An eqtp model with the weights of a live mace-torch model.

        Args:
            model: A `ScaleShiftMACE`; it is not changed.

        Raises:
            NotImplementedError: The model uses something this class does not have, by name.
            ValueError: Energies or forces differ from the model's on random structures.
        """
        from eqtp.models.mace_import import from_mace

        return from_mace(model)

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
            eV/Å, and "stress" [G, 3, 3] in eV/Å^3 when asked for; tensor targets by their names,
            [G, 3, ..., 3] or [N, 3, ..., 3]. In training mode the derivatives can be
            differentiated again.

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

        Arguments as `node_outputs`.
        """
        return self.node_outputs(element, vectors, graph)[0]

    def node_outputs(
        self, element: Int[Tensor, " nodes"], vectors: Float[Tensor, "edges 3"], graph: Graph
    ) -> tuple[Float[Tensor, " nodes"], dict[str, Tensor]]:
        """Interaction energy of each node in eV, and the tensor targets of each node.

        Args:
            element: Index of each node's element in `atomic_numbers`.
            vectors: Edge vectors from sender to receiver in Å.
            graph: The edges.
        """
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        harmonics = spherical_harmonics(self.max_ell, vectors, normalization="component")
        embedding = self.radial_embedding
        radial = RadialBasis(lengths, embedding.forward, embedding.with_slope)
        features = self.node_embedding(element)
        energies, layers = [], []
        for interaction, product, readout in zip(
            self.interactions, self.products, self.readouts, strict=True
        ):
            message, shortcut = interaction(features, element, harmonics, radial, graph)
            features = product(message, element) + shortcut
            energies.append(readout(features))
            layers.append(features)
        tensors = self.tensor_heads(layers) if self.tensor_heads is not None else {}
        return self.scale * torch.stack(energies).sum(0) + self.shift, tensors

    def weight_decay_parameters(self) -> list[nn.Parameter]:
        """Parameters that MACE's recipe decays: messages' linear maps, all of the products."""
        decayed: list[nn.Parameter] = []
        for interaction, product in zip(self.interactions, self.products, strict=True):
            decayed.append(interaction.get_parameter("linear.weight"))
            decayed.extend(product.parameters())
        return decayed


class NodeEmbedding(nn.Module):
    """One learned vector of scalars per element, e3nn's Linear of the one-hot element."""

    def __init__(self, num_elements: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Module()
        self.linear.weight = nn.Parameter(torch.randn(num_elements * channels))
        self.num_elements = num_elements

    def forward(self, element: Int[Tensor, " nodes"]) -> Float[Tensor, "nodes channels"]:
        """W[element] / sqrt(num_elements)."""
        weight = self.linear.get_parameter("weight").view(self.num_elements, -1)
        table: Tensor = weight / self.num_elements**0.5
        return table.index_select(0, element)


class Interaction(nn.Module):
    """Message passing: mace-torch's RealAgnosticResidualInteractionBlock.

    Attributes:
        gate: Lets the paths of the convolution compete, see `models.blocks.path_gates`; or None.
    """

    gate: ConvolutionGate | None

    def __init__(
        self,
        irreps_in: Irreps,
        harmonics: Irreps,
        hidden: Irreps,
        *,
        num_elements: int,
        radial_sizes: tuple[int, ...],
        avg_num_neighbors: float,
        paths: Sequence[int] | None,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.gate = None
        self.avg_num_neighbors = avg_num_neighbors
        irreps_out = Irreps([(irreps_in[0].mul, ir) for _, ir in harmonics])
        self.linear_up = Linear(irreps_in, irreps_in, layout="ir_mul")
        self.conv_tp: TensorProduct = ChannelwiseTensorProduct(
            irreps_in, harmonics, irreps_out, backend=backend, layout="ir_mul"
        )
        if paths is not None:
            self.conv_tp = self.conv_tp.prune(paths, compact=True)
        self.conv_tp_weights = RadialNetwork((*radial_sizes, self.conv_tp.weight_numel))
        self.linear = Linear(self.conv_tp.irreps_out, irreps_out, layout="ir_mul")
        self.skip_tp = ElementLinear(irreps_in, hidden, num_elements)

    def forward(
        self,
        features: Float[Tensor, "nodes dim_in"],
        element: Int[Tensor, " nodes"],
        harmonics: Float[Tensor, "edges dim_harmonics"],
        radial: RadialBasis,
        graph: Graph,
    ) -> tuple[Float[Tensor, "nodes dim_message"], Float[Tensor, "nodes dim_hidden"]]:
        """The summed messages and the shortcut of the node's own features."""
        network, product, last = self.conv_tp_weights, self.conv_tp, None
        mix: Callable[[Tensor], Tensor] = self.linear
        if self.gate is not None:
            product, last, mix = self.gate.parts(network.weights[-1], self.linear)
        stored = radial.is_compiled and graph.num_edges * product.weight_numel <= MAX_STORED_WEIGHTS
        message = product(
            self.linear_up(features),
            harmonics,
            network(radial, last) if stored else None,
            radial=None if stored else network.factors(radial, last),
            graph=graph,
        )
        return mix(message) / self.avg_num_neighbors, self.skip_tp(features, element)


class ProductBasis(nn.Module):
    """Symmetric powers of the messages: mace-torch's EquivariantProductBasisBlock."""

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        *,
        correlation: int,
        num_elements: int,
        basis: Literal["independent", "mace"],
        method: ContractionMethod,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.symmetric_contractions = SymmetricContraction(
            irreps_in,
            irreps_out,
            correlation,
            num_elements,
            basis=basis,
            method=method,
            backend=backend,
            layout="ir_mul",
        )
        self.linear = Linear(irreps_out, irreps_out, layout="ir_mul")

    def forward(
        self, message: Float[Tensor, "nodes dim_message"], element: Int[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes dim_out"]:
        """Contracts the messages and mixes the channels."""
        mixed: Tensor = self.linear(self.symmetric_contractions(message, element))
        return mixed


class LinearReadout(nn.Module):
    """Node energy as a linear map of the invariant features."""

    def __init__(self, irreps_in: Irreps) -> None:
        super().__init__()
        self.linear = Linear(irreps_in, "1x0e", layout="ir_mul")

    def forward(self, features: Float[Tensor, "nodes dim"]) -> Float[Tensor, " nodes"]:
        """One energy per node."""
        energy: Tensor = self.linear(features).squeeze(1)
        return energy


class NonLinearReadout(nn.Module):
    """Node energy as a small network of the invariant features."""

    def __init__(self, irreps_in: Irreps, irreps_hidden: Irreps) -> None:
        super().__init__()
        self.linear_1 = Linear(irreps_in, irreps_hidden, layout="ir_mul")
        self.linear_2 = Linear(irreps_hidden, "1x0e", layout="ir_mul")

    def forward(self, features: Float[Tensor, "nodes dim"]) -> Float[Tensor, " nodes"]:
        """One energy per node."""
        energy: Tensor = self.linear_2(SILU_GAIN * silu(self.linear_1(features))).squeeze(1)
        return energy


def _validate(hyperparameters: dict[str, Any], hidden: Irreps, mlp: Irreps) -> None:
    """Refuses hyperparameters that make no model, before anything is built."""
    check_elements(hyperparameters)
    if hidden.dim == 0 or str(hidden[0].ir) != "0e" or len({mul for mul, _ in hidden}) != 1:
        raise ValueError(
            "hidden_irreps must start with scalars and have one multiplicity for all, "
            f"e.g. '32x0e+32x1o', got '{hidden}'"
        )
    if any(str(ir) != "0e" for _, ir in mlp) or mlp.dim == 0:
        raise ValueError(f"mlp_irreps must be scalars, e.g. '16x0e', got '{mlp}'")
    product, basis = hyperparameters["product"], hyperparameters["basis"]
    if product not in get_args(ContractionMethod):
        raise ValueError(f"product must be one of {get_args(ContractionMethod)}, got {product!r}")
    if product != "cg" and basis != "independent":
        raise ValueError(f"basis={basis!r} needs product='cg', got product={product!r}")
    check_at_least(
        hyperparameters,
        {
            "num_bessel": 1,
            "num_polynomial_cutoff": 2,
            "max_ell": 0,
            "correlation": 1,
            "num_interactions": 1,
        },
    )
    paths, layers = hyperparameters["paths"], hyperparameters["num_interactions"]
    if paths is not None and len(paths) != layers:
        raise ValueError(f"paths must have one entry per layer ({layers}), got {len(paths)}")
    check_positive(hyperparameters, "r_max", "avg_num_neighbors")
