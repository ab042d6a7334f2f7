"""Swaps for mace-torch: the convolution on a graph and the symmetric contraction.

The convolution takes the place that mace-torch's interaction blocks have for fused ones: a block
with the attribute `conv_fusion` hands features of nodes and the edges to `conv_tp` and gets sums at
the receivers back. Everything else a block does, densities, cutoffs, gates and exchanges, stays its
own. A block that ignores the attribute gets the plain product from the same swap.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.kernels.channelwise import channelwise_tensor_product, supports
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.layout import to_layout
from eqtp.models.acceleration.e3nn import Product
from eqtp.models.acceleration.kept import elements_of, graph_of
from eqtp.models.acceleration.structures import random_structures
from eqtp.models.acceleration.swap import Swap, inherits_forward
from eqtp.models.mace import MAX_STORED_WEIGHTS
from eqtp.so3.symmetric_coupling import SymmetricCoupling, project_coupling
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["Contraction", "Convolution", "batch", "observe", "swaps_for"]


def swaps_for(model: nn.Module, backend: Backend) -> Iterator[tuple[str, Swap | str]]:
    """Names of modules with their swaps, or why there is none, in words."""
    blocks = sys.modules.get("mace.modules.blocks")
    contractions = sys.modules.get("mace.modules.symmetric_contraction")
    if blocks is None or contractions is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, blocks.InteractionBlock):
            convolution = _convolution(module, backend)
            yield f"{name}.conv_tp", convolution
            if isinstance(convolution, Convolution) and convolution.block is not None:
                radial = module.conv_tp_weights
                if RadialWeights.fits(radial):
                    yield f"{name}.conv_tp_weights", RadialWeights(radial)
        elif isinstance(module, contractions.SymmetricContraction):
            yield name, _contraction(module, backend, contractions)
        elif type(module).__module__.startswith(("cuequivariance", "openequivariance")):
            yield name, f"{type(module).__qualname__} is accelerated by another library"


def _convolution(block: Any, backend: Backend) -> Swap | str:
    conv_tp = block.conv_tp
    o3 = sys.modules["e3nn"].o3
    if not isinstance(conv_tp, o3.TensorProduct) or not inherits_forward(conv_tp, o3.TensorProduct):
        return f"{type(conv_tp).__qualname__} is not e3nn's tensor product"
    try:
        forward = type(block).forward
        fused = (
            "forward" not in block.__dict__
            and forward.__module__ == "mace.modules.blocks"
            and "conv_fusion" in forward.__code__.co_consts
        )
        swap = Convolution(conv_tp, block if fused else None, backend)
    except NotImplementedError as error:
        return str(error)
    return swap if supports(swap.problem) else "its paths are not channelwise"


class Convolution(Product):
    """A block's `conv_tp`: product of sender and harmonics, summed at the receivers."""

    def __init__(self, module: Any, block: Any, backend: Backend) -> None:
        super().__init__(module, backend)
        self.block = block
        self.kind = "convolution, not fused" if block is None else "convolution"

    def __call__(
        self, x: Tensor, y: Tensor, weight: Any = None, edge_index: Tensor | None = None
    ) -> Tensor:
        """Sums at nodes [N, dim] with edge_index [2, E], otherwise the product row by row."""
        if edge_index is None:
            return super().__call__(x, y, weight)
        factors = weight if isinstance(weight, Factors) else None
        return channelwise_tensor_product(
            x,
            y,
            self.weights(weight) if factors is None else None,
            self.problem,
            radial=factors,
            graph=graph_of(edge_index[0], edge_index[1], len(x)),
            backend=self.backend,
        )

    def definition(self, *args: Any) -> Tensor:
        """Gather, product, and sum."""
        if len(args) == 3:
            return super().definition(*args)
        x, y, weight, (sender, receiver) = args
        messages = super().definition(x[sender], y, weight)
        return messages.new_zeros(len(x), messages.shape[1]).index_add(0, receiver, messages)

    def arguments(self) -> tuple[Any, ...]:
        """Seven edges between four nodes."""
        x, y, weight = super().arguments()
        return x[:4], y, weight, torch.randint(4, (2, len(y)))

    def install(self) -> None:
        """Also tells the block to hand over nodes and edges, where it is one that can."""
        super().install()
        if self.block is not None:
            self.block.__dict__["conv_fusion"] = True

    def remove(self) -> None:
        """The block gathers and sums itself again."""
        super().remove()
        if self.block is not None:
            del self.block.__dict__["conv_fusion"]


class Factors(NamedTuple):
    """Weights of edges that are not computed: hidden @ matrix."""

    hidden: Tensor
    matrix: Tensor

    def __mul__(self, factor: Any) -> Factors:
        """Scales the weights of every edge; blocks with the cutoff outside do."""
        return Factors(self.hidden * factor, self.matrix)


class RadialWeights(Swap):
    """A block's `conv_tp_weights`: leaves the last layer of a large graph to the convolution."""

    kind = "radial network"

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether it is e3nn's network, linear in its last layer."""
        networks = sys.modules.get("e3nn.nn._fc")
        return (
            networks is not None
            and isinstance(module, networks.FullyConnectedNet)
            and inherits_forward(module, networks.FullyConnectedNet)
            and all(inherits_forward(layer, networks._Layer) for layer in module)
            and module[-1].act is None
        )

    def __call__(self, inputs: Tensor) -> Any:
        """The weights, or their factors where they are many."""
        size = len(inputs) * self.module[-1].weight.shape[1]
        return self.original(inputs) if size <= MAX_STORED_WEIGHTS else self.factors(inputs)

    def factors(self, inputs: Tensor) -> Factors:
        """The last hidden layer and the matrix."""
        *hidden, last = self.module
        for layer in hidden:
            inputs = layer(inputs)
        return Factors(inputs, last.weight / (last.h_in * last.var_in / last.var_out) ** 0.5)

    def compared(self, *args: Any) -> Tensor:
        """The product of the factors."""
        hidden, matrix = self.factors(*args)
        return hidden @ matrix

    def arguments(self) -> tuple[Any, ...]:
        """Seven edges."""
        return (torch.randn(7, self.module[0].weight.shape[0]),)


def _contraction(module: Any, backend: Backend, contractions: Any) -> Swap | str:
    own = (module, *module.contractions)
    classes = (contractions.SymmetricContraction, contractions.Contraction)
    if not all(inherits_forward(part, *classes) for part in own):
        return f"{type(module).__qualname__} has a forward of its own"
    try:
        return Contraction(module, backend)
    except (NotImplementedError, ValueError) as error:
        return str(error)


class Contraction(Swap):
    """`symmetric_contractions`: powers of the messages with weights for every element.

    The couplings U of the module are written in eqtp's orthonormal basis, once; its parameters stay
    the weights, and gradients reach them through that change of basis.
    """

    kind = "symmetric contraction"

    def __init__(self, module: Any, backend: Backend) -> None:
        super().__init__(module)
        self.backend: Backend = backend
        first = module.contractions[0]
        self.problem = SymmetricContractionProblem.from_irreps(
            str(module.irreps_in), str(module.irreps_out), int(first.correlation)
        )
        if len({int(part.correlation) for part in module.contractions}) > 1:
            raise NotImplementedError("its correlation differs between irreps")
        couplings = iter(self.problem.couplings())
        self.projection = torch.block_diag(
            *(
                _projection(getattr(part, f"U_matrix_{degree}"), next(couplings)[1])
                for part in module.contractions
                for degree in range(1, self.problem.correlation + 1)
            )
        )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The contraction of x [N, channels, components] with one-hot elements y."""
        elements = None if y.requires_grad else elements_of(y)
        if elements is None:
            result: Tensor = self.original(x, y)
            return result
        weight = torch.cat(
            [
                weight.index_select(0, elements.present)
                for part in self.module.contractions
                for weight in (*reversed(part.weights), part.weights_max)
            ],
            dim=1,
        )
        channels, components = x.shape[1:]
        out = symmetric_contraction(
            x.transpose(1, 2).reshape(len(x), components * channels),
            self.projection.to(weight).T @ weight,
            elements.position,
            self.problem,
            layout="ir_mul",
            backend=self.backend,
        )
        return to_layout(out, self.problem.irreps_out, "ir_mul", "mul_ir")

    def arguments(self) -> tuple[Any, ...]:
        """Three nodes of random elements."""
        num_elements = self.module.contractions[0].weights_max.shape[0]
        element = nn.functional.one_hot(torch.randint(num_elements, (3,)), num_elements)
        x = torch.randn(3, self.problem.num_channels, self.problem.dim_in)
        return x, element.to(x)


def _projection(u: Tensor, coupling: SymmetricCoupling) -> Tensor:
    """A module's couplings in eqtp's basis, [paths of the module, paths of the basis]."""
    projection: Tensor = project_coupling(u.detach().cpu(), coupling)
    return projection


def batch(model: Any, atoms: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The input of mace-torch's models for a structure."""
    from eqtp.models.training.data import from_ase

    device = next(model.parameters()).device
    data = from_ase(atoms, float(model.r_max), dtype=torch.float64)
    cell = data.cell.reshape(3, 3)
    periodic = bool(torch.linalg.det(cell).abs() > 0)
    inverse = torch.linalg.inv(cell) if periodic else torch.zeros_like(cell)
    numbers = torch.as_tensor(model.atomic_numbers).cpu()
    result = {
        "positions": data.positions.to(dtype),
        "node_attrs": (data.atomic_numbers[:, None] == numbers).to(dtype),
        "edge_index": torch.stack([data.edge_src, data.edge_dst]),
        "shifts": data.edge_shift.to(dtype),
        "unit_shifts": (data.edge_shift @ inverse).round().to(dtype),
        "cell": cell.to(dtype),
        "batch": torch.zeros(len(data.positions), dtype=torch.long),
        "ptr": torch.tensor([0, len(data.positions)]),
        "head": torch.zeros(1, dtype=torch.long),
    }
    return {name: value.to(device) for name, value in result.items()}


def observe(model: Any) -> list[dict[str, Tensor]] | None:
    """Energies, forces and stress of random structures, by name.

    None for a model of another library, and for one that needs more input than a structure.

    Energies are those of the interaction where the model tells them apart: the isolated atoms' are
    larger by orders of magnitude, and no swap has a part in them.
    """
    models = sys.modules.get("mace.modules.models")
    if models is None or not isinstance(model, models.MACE):
        return None
    if getattr(model, "embedding_specs", None):
        return None
    results = []
    for atoms in random_structures([int(z) for z in model.atomic_numbers]):
        output = model(
            batch(model, atoms, torch.get_default_dtype()), compute_stress=bool(atoms.pbc.any())
        )
        energy = output.get("interaction_energy", output["energy"])
        found = {"energy": energy, "forces": output["forces"], "stress": output["stress"]}
        results.append({k: v.detach() for k, v in found.items() if v is not None})
    return results
