"""eqtp as a kernel backend of MACE 1.0, in the entry point group `mace.kernel_backends.torch`.

MACE 1.0 gives a backend the description of an operation when a model is built and gets a module
back. Its contract is not released; this file follows what was public on 22 November 2026:
github.com/ACEsuit/mace, issues 1560, 1567 and 1568, pull request 1740 ("kernel spec version 1.0"),
and the template of a backend on its author's branch. Where these differ both forms are served:

    linear, fully_connected_tp   raw weights, divided by sqrt(fan in) in the forward pass, or with
                                 that factor folded in; told apart by what
                                 `mace_core.kernels.canonical` defines
    channelwise_tp_conv          features [N, C, dim], paths to equal irreps summed, or, where the
                                 descriptor has `num_features`, features grouped by irrep
                                 [N, C dim], one block of the result per path
    symmetric_contraction        features [N, C, dim] or grouped by irrep [N, C dim]

Weights cross the border in MACE's canonical layout only: linear maps [copy of the result, copy of
the operand], the contraction [element, path, channel], paths by body order and then by irrep of the
result, for the couplings that `mace_core.clebsch_gordan` builds. `mace_core` is imported when MACE
calls, not before. Harmonics and radial basis are left to MACE's reference.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.irreps import Irrep, Irreps
from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.linear import linear
from eqtp.kernels.linear.op import LinearProblem
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.kernels.tensor_product import tensor_product
from eqtp.layout import Layout, to_layout
from eqtp.models.acceleration.e3nn import relative_sign
from eqtp.models.acceleration.kept import elements_of, graph_of
from eqtp.problem import Path, TensorProductProblem
from eqtp.so3.symmetric_coupling import project_coupling, symmetric_coupling
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = [
    "ChannelwiseConvolution",
    "ElementProduct",
    "KernelBackend",
    "LinearMap",
    "SegmentReduce",
    "SymmetricContraction",
]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class KernelBackend:
    """What MACE's registry gets: factories from descriptors to modules.

    Args:
        backend: Which of eqtp's kernels the modules use, see `eqtp.backend`.
    """

    name = "eqtp"

    def __init__(self, backend: Backend = "auto") -> None:
        self.backend: Backend = backend

    def capabilities(self) -> Any:
        """MACE's `BackendCapabilities`, with eqtp's own limits in `supports`."""
        contract = importlib.import_module("mace_core.kernels.capabilities")

        class Capabilities(contract.BackendCapabilities):  # type: ignore[name-defined, misc]
            def supports(self, descriptor: Any) -> bool:
                return super().supports(descriptor) and _obstacle(descriptor) is None

            def unsupported_reason(self, descriptor: Any) -> str | None:
                inherited = getattr(super(), "unsupported_reason", lambda _: None)
                return inherited(descriptor) or _obstacle(descriptor)

        fields = {field.name for field in dataclasses.fields(contract.BackendCapabilities)}
        values = {
            "ops": frozenset(_OPERATIONS.values()),
            "devices": frozenset({"cpu", "cuda"}),
            "dtypes": frozenset(_DTYPES),
            "layouts": frozenset({"mul_ir"}),
            "activation_layouts": frozenset({"mul_ir", "ir_mul"}),
            "native_layout": "ir_mul",
            "bases": frozenset({"reduced", "full"}),
            "supports_double_backward": True,
            "spec_version": "1.0",
        }
        return Capabilities(**{name: value for name, value in values.items() if name in fields})

    def make_linear(self, descriptor: Any) -> LinearMap:
        """A linear map between equal irreps, with a bias of the even scalars where asked for."""
        self._check(descriptor)
        return LinearMap(descriptor)

    def make_channelwise_tp_conv(self, descriptor: Any) -> ChannelwiseConvolution:
        """Gather, channelwise product and sum at the receivers, in one kernel."""
        self._check(descriptor)
        return ChannelwiseConvolution(descriptor, self.backend)

    def make_symmetric_contraction(self, descriptor: Any) -> SymmetricContraction:
        """Polynomials of every node's features with weights of its element."""
        self._check(descriptor)
        return SymmetricContraction(descriptor, self.backend)

    def make_fully_connected_tp(self, descriptor: Any) -> ElementProduct:
        """One linear map for each of several scalars."""
        self._check(descriptor)
        return ElementProduct(descriptor, self.backend)

    def make_segment_reduce(self, descriptor: Any) -> SegmentReduce:
        """Sums or means of rows."""
        self._check(descriptor)
        return SegmentReduce(descriptor)

    def make_spherical_harmonics(self, descriptor: Any) -> None:
        """Left to MACE's reference."""

    def make_radial_basis(self, descriptor: Any) -> None:
        """Left to MACE's reference."""

    def make_interaction_layer(self, descriptors: Sequence[Any]) -> None:
        """A layer is built operation by operation."""

    def _check(self, descriptor: Any) -> None:
        self.capabilities().require(descriptor, self.name)


_OPERATIONS = {
    "LinearDescriptor": "linear",
    "ChannelwiseTPConvDescriptor": "channelwise_tp_conv",
    "SymmetricContractionDescriptor": "symmetric_contraction",
    "FullyConnectedTPDescriptor": "fully_connected_tp",
    "SegmentReduceDescriptor": "segment_reduce",
}


def _obstacle(descriptor: Any) -> str | None:
    """Why eqtp does not compute an operation, None where it does."""
    operation = _OPERATIONS.get(type(descriptor).__name__)
    if operation is None:
        return "eqtp leaves it to the reference"
    if operation == "segment_reduce":
        reductions = ("sum", "mean")
        known = descriptor.reduction in reductions
        return None if known else f"its reductions are {reductions}"
    if operation == "fully_connected_tp" and any(
        ir != Irrep("0e") for _, ir in Irreps(descriptor.irreps_in2)
    ):
        return f"irreps_in2 must be even scalars, got '{descriptor.irreps_in2}'"
    if operation == "symmetric_contraction":
        return _repeated(descriptor, "irreps_in", "irreps_out")
    if operation == "channelwise_tp_conv":
        return _repeated(descriptor, "irreps_node", "irreps_edge") or (
            None if _paths(descriptor) else "it has no path"
        )
    return None


def _repeated(descriptor: Any, *names: str) -> str | None:
    for name in names:
        irreps = getattr(descriptor, name)
        if any(mul != 1 for mul, _ in Irreps(irreps)):
            return f"{name} must have each irrep once per channel, got '{irreps}'"
    return None


def _weights_are_raw() -> bool:
    """Whether sqrt(fan in) is divided by in the forward pass, not folded into weights."""
    canonical = importlib.import_module("mace_core.kernels.canonical")
    return hasattr(canonical, "linear_path_normalization")


def _draw(weight: Tensor, seed: int) -> Tensor:
    """Standard normal numbers that depend on the seed alone, not on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)


def _layout(descriptor: Any) -> Layout:
    layout: Layout = getattr(descriptor, "layout", "mul_ir")
    return layout


class _Maps(nn.Module):
    """Weights of linear maps, one for each of several scalars, in eqtp's order."""

    canonical: Tensor
    draw_scale: Tensor

    def __init__(
        self, descriptor: Any, irreps_in: str, irreps_out: str, num_scalars: int = 1
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = Irreps(irreps_in), Irreps(irreps_out)
        self.layout: Layout = _layout(descriptor)
        problem = LinearProblem.from_irreps(self.irreps_in, self.irreps_out, num_scalars)
        raw = _weights_are_raw()
        paths = tuple(p if raw else p._replace(scale=1.0) for p in problem.paths)
        self.problem = dataclasses.replace(problem, paths=paths)
        dtype = _DTYPES[descriptor.precision]
        self.weight = nn.Parameter(torch.zeros(problem.weight_numel, dtype=dtype))
        self.register_buffer("canonical", _canonical_order(problem), persistent=False)
        scale = torch.ones_like(self.weight.detach())
        if not raw:
            for path in problem.paths:
                numel = path.mul_in * num_scalars * path.mul_out
                scale[path.weight : path.weight + numel] = path.scale
        self.register_buffer("draw_scale", scale, persistent=False)

    def to_canonical(self) -> dict[str, Tensor]:
        """The weights in MACE's order."""
        return {"weight": self.weight.detach()[self.canonical]}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights in MACE's order."""
        given = state["weight"]
        if given.shape != self.canonical.shape:
            raise ValueError(
                f"weight must have shape {tuple(self.canonical.shape)}, got {tuple(given.shape)}"
            )
        self.weight[self.canonical] = given.to(self.weight)

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights at the scale of MACE's format."""
        self.weight.copy_(_draw(self.weight, seed) * self.draw_scale)


def _canonical_order(problem: LinearProblem) -> Tensor:
    """Where MACE's weights [scalar, (copy of the result, copy of x)] are among eqtp's."""
    blocks: dict[int, list[Tensor]] = {}
    for path in problem.paths:
        shape = path.mul_in, problem.num_elements, path.mul_out
        index = path.weight + torch.arange(math.prod(shape)).view(shape)
        blocks.setdefault(path.out, []).append(index.permute(1, 2, 0))
    rows = [torch.cat(blocks[out], dim=2).flatten(1) for out in sorted(blocks)]
    return torch.cat(rows, 1) if rows else torch.zeros(problem.num_elements, 0, dtype=torch.long)


class LinearMap(_Maps):
    """`linear`: channels of equal irreps are mixed, and even scalars get a bias."""

    bias_columns: Tensor

    def __init__(self, descriptor: Any) -> None:
        super().__init__(descriptor, descriptor.irreps_in, descriptor.irreps_out)
        self.canonical = self.canonical[0]
        columns = [
            torch.arange(columns.start, columns.stop)
            for (_, ir), columns in zip(self.irreps_out, self.irreps_out.slices(), strict=True)
            if descriptor.has_bias and ir == Irrep("0e")
        ]
        index = torch.cat(columns) if columns else torch.zeros(0, dtype=torch.long)
        self.register_buffer("bias_columns", index, persistent=False)
        self.bias = nn.Parameter(self.weight.new_zeros(len(index))) if len(index) else None

    def forward(self, features: Tensor) -> Tensor:
        """The map of rows [N, dim]."""
        x = to_layout(features, self.irreps_in, self.layout, "ir_mul")
        out = linear(x, self.weight, self.problem)
        out = to_layout(out, self.irreps_out, "ir_mul", self.layout)
        if self.bias is None:
            return out
        return out.index_add(1, self.bias_columns, self.bias.expand(len(out), -1))

    def to_canonical(self) -> dict[str, Tensor]:
        """Weights and biases in MACE's order."""
        bias = self.weight.new_zeros(0) if self.bias is None else self.bias
        return super().to_canonical() | {"bias": bias.detach()}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights and biases in MACE's order."""
        super().load_canonical(state)
        if state["bias"].shape != self.bias_columns.shape:
            raise ValueError(
                f"bias must have one value for each of {len(self.bias_columns)} even scalars, "
                f"got shape {tuple(state['bias'].shape)}"
            )
        if self.bias is not None:
            self.bias.copy_(state["bias"])

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights; biases start at zero."""
        super().initialize_weights(seed)
        if self.bias is not None:
            self.bias.zero_()


class ElementProduct(_Maps):
    """`fully_connected_tp`: product with scalars, as a rule the one-hot element of every node.

    One-hot attributes choose a linear map by its index. Other attributes, those that a gradient is
    asked of and compiled programs take the general product.
    """

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        scalars = Irreps(descriptor.irreps_in2)
        super().__init__(descriptor, descriptor.irreps_in1, descriptor.irreps_out, scalars.dim)
        self.backend: Backend = backend
        columns_in = {rows.start: i for i, rows in enumerate(self.irreps_in.slices())}
        columns_out = {rows.start: i for i, rows in enumerate(self.irreps_out.slices())}
        paths = tuple(
            Path(
                i_in1=columns_in[path.x],
                i_in2=0,
                i_out=columns_out[path.out],
                mode="uvw",
                has_weight=True,
                path_weight=1.0,
                coefficient=path.scale * math.sqrt(path.dim),  # w3j(l, 0, l) = 1 / sqrt(2l + 1)
                weight_shape=(path.mul_in, scalars.dim, path.mul_out),
                weight_start=path.weight,
            )
            for path in self.problem.paths
        )
        self.product = TensorProductProblem(
            self.irreps_in, Irreps(f"{scalars.dim}x0e"), self.irreps_out, paths
        )

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """The product of rows [N, dim] and [N, scalars]."""
        x = to_layout(features, self.irreps_in, self.layout, "ir_mul")
        elements = None if torch.compiler.is_compiling() else elements_of(attributes)
        if elements is not None:
            out = linear(x, self.weight, self.problem, elements.element)
        else:
            out = tensor_product(
                x, attributes, self.weight, self.product, layout="ir_mul", backend=self.backend
            )
        return to_layout(out, self.irreps_out, "ir_mul", self.layout)


class ChannelwiseConvolution(nn.Module):
    """`channelwise_tp_conv`: product of senders and harmonics, summed at the receivers."""

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        super().__init__()
        self.paths = _paths(descriptor)
        self.irreps = descriptor.irreps_node, descriptor.irreps_edge, descriptor.irreps_out
        self.grouped = hasattr(descriptor, "num_features")
        self.problems: dict[int, TensorProductProblem] = {}
        """By number of channels; a form that does not tell it must be called before compilation."""
        if self.grouped:
            self._prepare(descriptor.num_features)
        self.layout: Layout = _layout(descriptor)
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
            node_features if self.grouped else _components_first(node_features),
            edge_attributes,
            radial_weights.flatten(1),
            self.problems[channels],
            graph=graph,
            layout=self.layout if self.grouped else "ir_mul",
            backend=self.backend,
        )
        return out if self.grouped else _channels_first(out, channels)


def _components_first(x: Tensor) -> Tensor:
    """[N, C, dim] as rows in layout "ir_mul"."""
    return x.transpose(1, 2).reshape(x.shape[0], -1)


def _channels_first(x: Tensor, channels: int) -> Tensor:
    """Rows in layout "ir_mul" as [N, C, dim]."""
    return x.view(x.shape[0], -1, channels).transpose(1, 2)


_Paths = tuple[tuple[int, int, int, float], ...]


def _paths(descriptor: Any) -> _Paths:
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


class SymmetricContraction(nn.Module):
    """`symmetric_contraction`: MACE's couplings written in eqtp's orthonormal basis, once."""

    mixing: Tensor

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        super().__init__()
        channels = descriptor.num_features
        self.problem = SymmetricContractionProblem.from_irreps(
            Irreps([(channels, ir) for _, ir in Irreps(descriptor.irreps_in)]),
            Irreps([(channels, ir) for _, ir in Irreps(descriptor.irreps_out)]),
            descriptor.correlation,
        )
        self.layout: Layout = _layout(descriptor)
        self.backend: Backend = backend
        mixing, self.path_counts = _mixing(descriptor)
        dtype = _DTYPES[descriptor.precision]
        self.register_buffer("mixing", mixing.to(dtype), persistent=False)
        shape = descriptor.num_elements, len(mixing), channels
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))

    def forward(self, features: Tensor, element: Tensor) -> Tensor:
        """Polynomials of features [N, C, dim] or [N, C dim] with weights of elements [N]."""
        apart = features.ndim == 3
        out = symmetric_contraction(
            _components_first(features) if apart else features,
            self.mixing.T @ self.weight,
            element,
            self.problem,
            layout="ir_mul" if apart else self.layout,
            backend=self.backend,
        )
        return _channels_first(out, self.problem.num_channels) if apart else out

    def to_canonical(self) -> dict[str, Tensor]:
        """The weights [element, path, channel], and how many paths each block has."""
        return {"weight": self.weight.detach(), "path_counts": torch.tensor(self.path_counts)}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights for the same couplings."""
        counts = state["path_counts"].tolist()
        if counts != self.path_counts or state["weight"].shape != self.weight.shape:
            raise ValueError(
                f"weight must have shape {tuple(self.weight.shape)} with {self.path_counts} paths, "
                f"got {tuple(state['weight'].shape)} with {counts}"
            )
        self.weight.copy_(state["weight"])

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights at the scale of MACE's format: 1 / paths of a block where they are raw."""
        self.weight.copy_(_draw(self.weight, seed))
        if _weights_are_raw():
            for block in self.weight.split(self.path_counts, dim=1):
                block.div_(max(block.shape[1], 1))


def _mixing(descriptor: Any) -> tuple[Tensor, list[int]]:
    """MACE's couplings in eqtp's basis [paths of MACE, paths of eqtp], and MACE's path counts."""
    library = importlib.import_module("mace_core.clebsch_gordan.reduced_basis")
    build: Callable[..., Any] = getattr(
        library, f"{descriptor.basis}_symmetric_tensor_product_basis"
    )
    irreps_in, irreps_out = Irreps(descriptor.irreps_in), Irreps(descriptor.irreps_out)
    blocks: dict[tuple[int, int], Tensor] = {}
    for degree in range(1, descriptor.correlation + 1):
        for i, (_, ir) in enumerate(irreps_out):
            given = torch.tensor(build(descriptor.irreps_in, degree, str(ir))[str(ir)])
            shape = (len(given), ir.dim, *[irreps_in.dim] * degree)
            dense = given.double().view(shape).movedim(0, -1)
            blocks[i, degree] = project_coupling(dense, symmetric_coupling(irreps_in, ir, degree))
    ours = sorted(blocks)
    columns = dict(zip(ours, _spans([blocks[key].shape[1] for key in ours]), strict=True))
    counts = [len(block) for block in blocks.values()]
    mixing = torch.zeros(sum(counts), sum(block.shape[1] for block in blocks.values())).double()
    for (key, block), rows in zip(blocks.items(), _spans(counts), strict=True):
        mixing[rows, columns[key]] = block
    return mixing, counts


def _spans(sizes: Sequence[int]) -> list[slice]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


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
