"""The backend for MACE 1.0, in both public forms of its contract, against e3nn and definitions.

`mace_core`, which states the contract, is on no package index. What the backend reads of it is
written out here as its sources describe it: github.com/ACEsuit/mace, pull request 1740.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from e3nn import o3
from torch import Tensor

from eqtp.layout import Layout, to_layout
from eqtp.models.acceleration.mace_backend import KernelBackend
from eqtp.so3.symmetric_coupling import nested_coupling, symmetric_coupling

TOLERANCES = {
    "values": 1e-12,  # float64; two orders of summation leave 1e-15
    "gradients": 1e-11,  # first and second, of the largest element of each
    "float32": 2e-6,
}
ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 4


@dataclass(frozen=True)
class Descriptor:
    op: ClassVar[str] = ""
    precision: str = "float64"


@dataclass(frozen=True)
class LinearDescriptor(Descriptor):
    op: ClassVar[str] = "linear"
    irreps_in: str = "0e"
    irreps_out: str = "0e"
    has_bias: bool = False


@dataclass(frozen=True)
class ChannelwiseTPConvDescriptor(Descriptor):
    op: ClassVar[str] = "channelwise_tp_conv"
    irreps_node: str = "0e"
    irreps_edge: str = "0e"
    irreps_out: str = "0e"


@dataclass(frozen=True)
class SymmetricContractionDescriptor(Descriptor):
    op: ClassVar[str] = "symmetric_contraction"
    irreps_in: str = "0e"
    irreps_out: str = "0e"
    correlation: int = 1
    num_elements: int = 1
    num_features: int = 1
    basis: str = "reduced"


@dataclass(frozen=True)
class FullyConnectedTPDescriptor(Descriptor):
    op: ClassVar[str] = "fully_connected_tp"
    irreps_in1: str = "0e"
    irreps_in2: str = "0e"
    irreps_out: str = "0e"


@dataclass(frozen=True)
class SegmentReduceDescriptor(Descriptor):
    op: ClassVar[str] = "segment_reduce"
    reduction: str = "sum"


class SphericalHarmonicsDescriptor(Descriptor):
    op: ClassVar[str] = "spherical_harmonics"


class UnsupportedDescriptorError(RuntimeError):
    pass


@dataclass(frozen=True)
class BackendCapabilities:
    ops: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset({"cpu"})
    dtypes: frozenset[str] = frozenset({"float64"})
    layouts: frozenset[str] = frozenset({"mul_ir"})
    bases: frozenset[str] = frozenset({"reduced"})
    supports_double_backward: bool = False

    def supports(self, descriptor: Any) -> bool:
        return self.unsupported_reason(descriptor) is None

    def unsupported_reason(self, descriptor: Any) -> str | None:
        if descriptor.op not in self.ops or descriptor.precision not in self.dtypes:
            return "op or precision"
        return None

    def require(self, descriptor: Any, name: str) -> None:
        if not self.supports(descriptor):
            raise UnsupportedDescriptorError(f"{name}: {self.unsupported_reason(descriptor)}")


def wigner_3j_real(l1: int, l2: int, l3: int) -> Any:
    """e3nn's symbols; some with the other sign, as another library may have them."""
    return (o3.wigner_3j(l1, l2, l3) * (-1) ** (l1 * l2 * l3)).numpy()


def channelwise_paths(node: str, edge: str, out: str) -> list[Any]:
    wanted = {ir for _, ir in o3.Irreps(out)}
    paths = [
        SimpleNamespace(node_term=i, edge_term=j, irrep=ir)
        for i, (_, left) in enumerate(o3.Irreps(node))
        for j, (_, right) in enumerate(o3.Irreps(edge))
        for ir in left * right
        if ir in wanted
    ]
    return sorted(paths, key=lambda path: path.irrep)


def basis_of(coupling: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Couplings as [paths, components, *components of x] by irrep, mixed and scaled."""

    def build(irreps_in: str, degree: int, irreps_out: str) -> dict[str, Any]:
        found = {}
        for _, ir in o3.Irreps(irreps_out):
            dense = coupling(o3.Irreps(irreps_in), ir, degree).dense().movedim(-1, 0)
            generator = torch.Generator().manual_seed(degree)
            mixing = torch.randn(len(dense), len(dense), generator=generator, dtype=dense.dtype)
            found[str(ir)] = torch.einsum("pq,q...->p...", mixing, dense).numpy()
        return found

    return build


@pytest.fixture(params=["raw", "folded"])
def contract(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`mace_core` in one of its forms."""
    form: str = request.param
    normalization = "linear_path_normalization" if form == "raw" else "linear_weight_scale"
    modules: dict[str, dict[str, Any]] = {
        "kernels.capabilities": {
            "BackendCapabilities": BackendCapabilities,
            "UnsupportedDescriptorError": UnsupportedDescriptorError,
        },
        "kernels.canonical": {normalization: None},
        "kernels.paths": {"channelwise_paths": channelwise_paths},
        "clebsch_gordan.real_basis": {"wigner_3j_real": wigner_3j_real},
        "clebsch_gordan.reduced_basis": {
            "reduced_symmetric_tensor_product_basis": basis_of(symmetric_coupling),
            "full_symmetric_tensor_product_basis": basis_of(nested_coupling),
        },
    }
    for name, content in modules.items():
        module = ModuleType(f"mace_core.{name}")
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, f"mace_core.{name}", module)
    return form


def relative(value: Tensor, reference: Tensor) -> float:
    if reference.numel() == 0:
        return 0.0
    return float((value - reference).detach().abs().max() / reference.detach().abs().max())


def assert_same(
    found: Callable[..., Tensor], expected: Callable[..., Tensor], *arguments: Tensor
) -> None:
    """Values, first and second derivatives, the second as a force loss takes them."""
    arguments = tuple(argument.requires_grad_() for argument in arguments)
    results = []
    for function in (found, expected):
        out = function(*arguments)
        slope = torch.linspace(0.5, 1.5, out.numel()).view_as(out)
        first = torch.autograd.grad((out.square() * slope).sum(), arguments, create_graph=True)
        weighted = [(s.square() * torch.arange(1, s.numel() + 1).view_as(s)).sum() for s in first]
        loss = torch.stack(weighted).sum()
        second = torch.autograd.grad(loss, arguments, materialize_grads=True)
        results.append((out, first, second))
    assert relative(results[0][0], results[1][0]) < TOLERANCES["values"]
    for order in (1, 2):
        for mine, theirs in zip(results[0][order], results[1][order], strict=True):
            assert relative(mine, theirs) < TOLERANCES["gradients"]


def randomize(module: Any) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()


def linear_blocks(linear: o3.Linear, raw: bool) -> Tensor:
    """An e3nn map's weights in MACE's canonical order."""
    rows: dict[int, list[Tensor]] = {}
    for weight, instruction in zip(linear.weight_views(), linear.instructions, strict=True):
        factor = 1.0 if raw else instruction.path_weight
        rows.setdefault(instruction.i_out, []).append(factor * weight.T)
    return torch.cat([torch.cat(rows[i], dim=1).flatten() for i in sorted(rows)]).detach()


@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_linear_is_e3nns(contract: str, layout: Layout) -> None:
    irreps = "3x0e+2x1o+4x0e+1x2e", "2x0e+3x1o+1x0e"
    theirs = o3.Linear(*irreps, instructions=None, biases=False)
    descriptor = LinearDescriptor("float64", *irreps)
    object.__setattr__(descriptor, "layout", layout)
    ours = KernelBackend().make_linear(descriptor)
    canonical = linear_blocks(theirs, contract == "raw")
    ours.load_canonical({"weight": canonical, "bias": canonical[:0]})
    torch.testing.assert_close(ours.to_canonical()["weight"], canonical, rtol=0, atol=0)
    assert not ours.to_canonical()["bias"].numel()

    def mine(x: Tensor) -> Tensor:
        out = ours(to_layout(x, ours.irreps_in, "mul_ir", layout))
        return to_layout(out, ours.irreps_out, layout, "mul_ir")

    assert_same(mine, theirs, torch.randn(5, ours.irreps_in.dim))


def test_linear_has_biases_of_even_scalars(contract: str) -> None:
    irreps = "3x0e+2x1o", "2x0e+2x1o+1x0o+2x0e"
    ours = KernelBackend().make_linear(LinearDescriptor("float64", *irreps, has_bias=True))
    ours.initialize_weights(3)
    state = ours.to_canonical()
    assert state["bias"].tolist() == [0.0] * 4
    x = torch.randn(5, 9)
    plain = ours(x)
    ours.load_canonical(state | {"bias": torch.arange(1.0, 5.0)})
    shift = torch.tensor([1.0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 4])
    torch.testing.assert_close(ours(x), plain + shift)
    assert torch.autograd.grad(ours(x).sum(), [*ours.parameters()])[1].tolist() == [5.0] * 4


def test_fully_connected_product_is_e3nns(contract: str) -> None:
    irreps = "4x0e+4x1o", "3x0e", "2x0e+3x1o"
    theirs = o3.FullyConnectedTensorProduct(*irreps)
    ours = KernelBackend().make_fully_connected_tp(FullyConnectedTPDescriptor("float64", *irreps))
    views = list(theirs.weight_views())
    factor = 1.0 if contract == "raw" else (4 * 3) ** -0.5
    canonical = torch.cat([factor * v.permute(1, 2, 0).flatten(1) for v in views], dim=1).detach()
    ours.load_canonical({"weight": canonical})
    torch.testing.assert_close(ours.to_canonical()["weight"], canonical, rtol=0, atol=0)
    x = torch.randn(5, 16)
    assert_same(ours, theirs, x, torch.randn(5, 3))
    one_hot = torch.eye(3)[torch.tensor([0, 2, 1, 2, 0])]
    assert_same(lambda x: ours(x, one_hot), lambda x: theirs(x, one_hot), x)


def edges() -> tuple[Tensor, Tensor]:
    index = torch.randint(5, (2, 11))
    return index[0], index[1]


def messages(paths: list[tuple[int, int, int]], node: str, edge: str) -> Callable[..., Tensor]:
    """e3nn's product of nodes in layout "mul_ir", one block of the result per path, summed."""
    wide = [(CHANNELS, ir) for _, ir in o3.Irreps(node)]
    irreps = [(i, j, l) for i, j, l in paths]
    out = [
        (CHANNELS, o3.Irrep(l, o3.Irreps(node)[i].ir.p * o3.Irreps(edge)[j].ir.p))
        for i, j, l in irreps
    ]
    product = o3.TensorProduct(
        o3.Irreps(wide),
        edge,
        o3.Irreps(out),
        [(i, j, number, "uvu", True) for number, (i, j, _) in enumerate(irreps)],
        shared_weights=False,
        internal_weights=False,
    )
    signs = [
        float((-1) ** (o3.Irreps(node)[i].ir.l * o3.Irreps(edge)[j].ir.l * l))
        * odd_permutation_sign(o3.Irreps(node)[i].ir.l, o3.Irreps(edge)[j].ir.l, l)
        for i, j, l in irreps
    ]

    def compute(x: Tensor, y: Tensor, weight: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        signed = weight * torch.tensor(signs)[None, :, None]
        rows = product(x[src], y, signed.flatten(1))
        sums: Tensor = rows.new_zeros(len(x), rows.shape[1]).index_add(0, dst, rows)
        return sums

    return compute


def odd_permutation_sign(l1: int, l2: int, l3: int) -> float:
    """Of e3nn's symbol (l3, l1, l2), which MACE's order names, relative to (l1, l2, l3)."""
    other = o3.wigner_3j(l3, l1, l2).permute(1, 2, 0)
    return 1.0 if float((other * o3.wigner_3j(l1, l2, l3)).sum()) > 0 else -1.0


NODE, EDGE, OUT = "0e+1o+1e", "0e+1o+2e", "0e+1o+1e+2e"


def test_convolution_grouped_by_irrep_is_e3nns(contract: str) -> None:
    descriptor = ChannelwiseTPConvDescriptor("float64", NODE, EDGE, OUT)
    object.__setattr__(descriptor, "num_features", CHANNELS)
    ours = KernelBackend().make_channelwise_tp_conv(descriptor)
    paths = [(p.node_term, p.edge_term, p.irrep.l) for p in channelwise_paths(NODE, EDGE, OUT)]
    assert ours.num_paths == len(paths)
    src, dst = edges()
    theirs = messages(paths, NODE, EDGE)
    assert_same(
        lambda x, y, w: ours(x, y, w, src, dst, 5),
        lambda x, y, w: theirs(x, y, w, src, dst),
        torch.randn(5, 7 * CHANNELS),
        torch.randn(11, 9),
        torch.randn(11, len(paths), CHANNELS),
    )
    more = ours(torch.randn(5, 7 * CHANNELS), torch.randn(11, 9),
                torch.randn(11, len(paths), CHANNELS), src, dst, 8)  # fmt: skip
    assert more.shape[0] == 8


def test_convolution_by_channel_sums_paths_to_equal_irreps(contract: str) -> None:
    ours = KernelBackend().make_channelwise_tp_conv(
        ChannelwiseTPConvDescriptor("float64", NODE, EDGE, OUT)
    )
    node, edge, out = (o3.Irreps(irreps) for irreps in (NODE, EDGE, OUT))
    triples = [
        (i, j, k)
        for k, (_, ir) in enumerate(out)
        for i, (_, left) in enumerate(node)
        for j, (_, right) in enumerate(edge)
        if ir in left * right
    ]
    theirs = messages([(i, j, out[k].ir.l) for i, j, k in triples], NODE, EDGE)
    src, dst = edges()

    def expected(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        columns = x.split([ir.dim for _, ir in node], dim=2)
        flat = theirs(torch.cat([c.flatten(1) for c in columns], dim=1), y, weight, src, dst)
        sums = [flat.new_zeros(5, CHANNELS, ir.dim) for _, ir in out]
        blocks = flat.split([CHANNELS * out[k].ir.dim for _, _, k in triples], dim=1)
        for (_, _, k), block in zip(triples, blocks, strict=True):
            sums[k] = sums[k] + block.view(5, CHANNELS, -1)
        return torch.cat(sums, dim=2)

    assert_same(
        lambda x, y, w: ours(x, y, w, src, dst, 5),
        expected,
        torch.randn(5, CHANNELS, 7),
        torch.randn(11, 9),
        torch.randn(11, len(triples), CHANNELS),
    )


@pytest.mark.parametrize("basis", ["reduced", "full"])
@pytest.mark.parametrize("grouped", [False, True])
def test_contraction_is_its_definition(contract: str, basis: str, grouped: bool) -> None:
    irreps_in, irreps_out, degrees = o3.Irreps("0e+1o+2e"), o3.Irreps("1o+0e"), (1, 2, 3)
    descriptor = SymmetricContractionDescriptor(
        "float64", str(irreps_in), str(irreps_out), 3, 2, CHANNELS, basis
    )
    ours = KernelBackend().make_symmetric_contraction(descriptor)
    randomize(ours)
    build = basis_of(symmetric_coupling if basis == "reduced" else nested_coupling)
    tables = [build(str(irreps_in), n, str(ir))[str(ir)] for n in degrees for _, ir in irreps_out]
    state = ours.to_canonical()
    assert state["path_counts"].tolist() == [len(table) for table in tables]
    ours.load_canonical({key: value.clone() for key, value in state.items()})
    element = torch.tensor([0, 1, 1, 0, 1])
    blocks = state["weight"].split([len(table) for table in tables], dim=1)

    def expected(x: Tensor) -> Tensor:
        sums: dict[int, Tensor] = {}
        for number, (table, weight) in enumerate(zip(tables, blocks, strict=True)):
            value = torch.einsum("p...,npc->nc...", torch.tensor(table), weight[element])
            for _ in range(1 + number // 2):
                value = torch.einsum("nc...i,nci->nc...", value, x)
            sums[number % 2] = sums.get(number % 2, 0) + value
        return torch.cat([sums[0], sums[1]], dim=2)

    def mine(x: Tensor) -> Tensor:
        if not grouped:
            out: Tensor = ours(x, element)
            return out
        columns = [c.flatten(1) for c in x.split([ir.dim for _, ir in irreps_in], dim=2)]
        out = ours(torch.cat(columns, dim=1), element)
        pieces = out.split([CHANNELS * ir.dim for _, ir in irreps_out], dim=1)
        return torch.cat([piece.view(5, CHANNELS, -1) for piece in pieces], dim=2)

    x = torch.randn(5, CHANNELS, irreps_in.dim)
    assert_same(mine, expected, x)
    with pytest.raises(ValueError, match="paths"):
        ours.load_canonical(state | {"path_counts": state["path_counts"].flip(0)})
    single = ours.float()(x.float(), element)
    assert relative(single.double(), expected(x)) < TOLERANCES["float32"]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_segments_are_reduced(contract: str, reduction: str) -> None:
    ours = KernelBackend().make_segment_reduce(SegmentReduceDescriptor("float64", reduction))
    index = torch.tensor([0, 2, 2, 0, 3])

    def expected(values: Tensor) -> Tensor:
        matrix = torch.nn.functional.one_hot(index, 4).double().T
        divisor = matrix.sum(1, keepdim=True).clamp(min=1) if reduction == "mean" else 1
        return (matrix @ values) / divisor

    assert_same(lambda v: ours(v, index, 4), expected, torch.randn(5, 3))


def test_weights_have_first_and_second_gradients(contract: str) -> None:
    backend = KernelBackend()
    one_hot = torch.eye(2)[torch.tensor([0, 1, 1])]
    cases: list[tuple[Any, int, tuple[Tensor, ...]]] = [
        (backend.make_linear(LinearDescriptor("float64", "2x0e+2x1o", "3x0e+1x1o")), 8, ()),
        (
            backend.make_fully_connected_tp(
                FullyConnectedTPDescriptor("float64", "2x0e+2x1o", "2x0e", "3x0e+1x1o")
            ),
            8,
            (one_hot,),
        ),
        (
            backend.make_symmetric_contraction(
                SymmetricContractionDescriptor("float64", "0e+1o", "0e+1o", 2, 2, 2)
            ),
            8,
            (one_hot.argmax(dim=1),),
        ),
    ]
    for module, columns, others in cases:
        weight = torch.randn_like(module.weight).requires_grad_()
        x = torch.randn(3, columns, requires_grad=True)

        def compute(weight: Tensor, x: Tensor, module: Any = module, others: Any = others) -> Any:
            return torch.func.functional_call(module, {"weight": weight}, (x, *others))

        assert torch.autograd.gradcheck(compute, (weight, x))
        assert torch.autograd.gradgradcheck(compute, (weight, x))


def test_modules_compile_as_one_graph(contract: str) -> None:
    backend = KernelBackend()
    convolution = ChannelwiseTPConvDescriptor("float64", NODE, EDGE, OUT)
    object.__setattr__(convolution, "num_features", CHANNELS)
    conv = backend.make_channelwise_tp_conv(convolution)
    edge_operands = torch.randn(11, 9), torch.randn(11, conv.num_paths, CHANNELS), *edges(), 5
    linear = LinearDescriptor("float64", "3x0e+2x1o", "2x0e+3x1o", has_bias=True)
    skip = FullyConnectedTPDescriptor("float64", "3x0e+2x1o", "2x0e", "2x0e+3x1o")
    contraction = SymmetricContractionDescriptor("float64", "0e+1o", "0e+1o", 2, 2, 2)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (backend.make_linear(linear), (torch.randn(4, 9),)),
        (backend.make_fully_connected_tp(skip), (torch.randn(4, 9), torch.eye(2)[[0, 1, 1, 0]])),
        (backend.make_symmetric_contraction(contraction),
         (torch.randn(4, 8), torch.tensor([0, 1, 1, 0]))),
        (conv, (torch.randn(5, 7 * CHANNELS), *edge_operands)),
        (backend.make_segment_reduce(SegmentReduceDescriptor()),
         (torch.randn(4, 3), torch.tensor([0, 2, 2, 0]), 3)),
    ]  # fmt: skip
    for module, operands in cases:
        randomize(module)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        results = []
        for function in (compiled, module):
            x = operands[0].clone().requires_grad_()
            out = function(x, *operands[1:])
            results.append((out, *torch.autograd.grad(out.sin().sum(), x)))
        for mine, theirs in zip(*results, strict=True):
            assert relative(mine, theirs) < TOLERANCES["gradients"]


def test_fresh_weights_depend_on_the_seed_and_have_the_scale_of_the_format(contract: str) -> None:
    backend = KernelBackend()
    linear = backend.make_linear(LinearDescriptor("float64", "100x0e", "100x0e"))
    contraction = backend.make_symmetric_contraction(
        SymmetricContractionDescriptor("float64", "0e+1o+2e", "0e+1o", 3, 2, 400)
    )
    scale = 1.0 if contract == "raw" else 0.1
    for module in (linear, contraction):
        module.initialize_weights(1)
        first = module.to_canonical()["weight"].clone()
        module.initialize_weights(2)
        assert not torch.equal(module.to_canonical()["weight"], first)
        module.initialize_weights(1)
        assert torch.equal(module.to_canonical()["weight"], first)
    assert float(linear.weight.detach().std()) == pytest.approx(scale, rel=0.05)
    counts = contraction.to_canonical()["path_counts"].tolist()
    for block, count in zip(contraction.weight.split(counts, dim=1), counts, strict=True):
        wanted = 1 / count if contract == "raw" else 1.0
        assert float(block.detach().std()) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize(
    "descriptor",
    [
        SegmentReduceDescriptor("float64", "max"),
        FullyConnectedTPDescriptor("float64", "2x0e", "1o", "2x1o"),
        ChannelwiseTPConvDescriptor("float64", "2x0e", "1o", "1o"),
        ChannelwiseTPConvDescriptor("float64", "0e", "1o", "2e"),
        SymmetricContractionDescriptor("float64", "2x0e", "0e"),
        LinearDescriptor("bfloat16"),
        SphericalHarmonicsDescriptor(),
    ],
    ids=lambda descriptor: type(descriptor).__name__,
)
def test_what_is_not_computed_is_declined(contract: str, descriptor: Any) -> None:
    backend = KernelBackend()
    capabilities = backend.capabilities()
    assert capabilities.supports_double_backward
    assert not capabilities.supports(descriptor)
    assert capabilities.unsupported_reason(descriptor)
    make = getattr(backend, f"make_{descriptor.op}")
    if descriptor.op == "spherical_harmonics":
        assert make(descriptor) is None
    else:
        with pytest.raises(UnsupportedDescriptorError, match="eqtp"):
            make(descriptor)


def test_the_entry_point_loads() -> None:
    section = (ROOT / "pyproject.toml").read_text().split("mace.kernel_backends.torch")[1]
    name, value = section.splitlines()[1].replace('"', "").split(" = ")
    entry = importlib.metadata.EntryPoint(name, value, "mace.kernel_backends.torch")
    assert (entry.name, entry.load()) == ("eqtp", KernelBackend)
    assert entry.load()().name == "eqtp"
