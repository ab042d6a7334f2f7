"""SO(2) convolutions: equal to Clebsch-Gordan products with the harmonics of the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp import (
    FullyConnectedTensorProduct,
    Graph,
    Irreps,
    SO2Convolution,
    TensorProduct,
)
from eqtp.kernels.so2.weights import all_paths, from_path_weights, to_path_weights
from eqtp.kernels.tensor_product import tensor_product
from eqtp.nn.so2_convolution import Group
from eqtp.problem import TensorProductProblem
from eqtp.so3 import rand_matrix, spherical_harmonics, wigner_D

# Relative to the largest number. The bars of the issue: up to lmax 6, poles included.
TOLERANCES = {
    "values": 1e-12,
    "first": 1e-11,
    "second": 1e-10,
    "weights": 1e-12,
    "equivariance": 1e-12,
    "float32": 1e-5,
}

SPECIAL = torch.tensor(
    [[0, 1, 0], [0, -1, 0], [1e-9, 1, 0], [1e-9, -1, 0], [1e-4, 1, 0], [1, 0, 0], [0, 0, 1]],
    dtype=torch.float64,
)


def irreps_to(lmax: int, mul: int = 2, parity: str = "natural") -> Irreps:
    signs = [(-1) ** l if parity == "natural" else 1 for l in range(lmax + 1)]
    return Irreps([(mul, (l, sign)) for l, sign in enumerate(signs)])


def harmonics(vectors: Tensor, irreps: Irreps) -> Tensor:
    """The component-normalised harmonics of every block of some irreps."""
    everything = spherical_harmonics(irreps.lmax, vectors)
    return torch.cat([everything[..., ir.l**2 : (ir.l + 1) ** 2] for _, ir in irreps], -1)


def cg_product(
    problem: TensorProductProblem, graph: Graph | None = None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The definition, as a function of the edge vectors."""

    def function(x: Tensor, vectors: Tensor, weight: Tensor) -> Tensor:
        x2 = harmonics(vectors, problem.irreps_in2)
        return tensor_product(x, x2, weight, problem, graph=graph, backend="reference")

    return function


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    assert a.shape == b.shape
    assert float((a - b).detach().abs().max()) <= tolerance * (1 + float(b.detach().abs().max()))


def derivatives(
    function: Callable[..., Tensor], operands: list[Tensor], seed: int = 0
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Value, first and second derivatives along the same random directions."""
    generator = torch.Generator().manual_seed(seed)
    operands = [t.detach().clone().requires_grad_() for t in operands]
    out = function(*operands)
    direction = torch.randn(out.shape, generator=generator)
    direction.requires_grad_()
    first = torch.autograd.grad(out, operands, direction, create_graph=True)
    pairing = sum((g * torch.randn(g.shape, generator=generator)).sum() for g in first)
    assert isinstance(pairing, Tensor)
    return out, first, torch.autograd.grad(pairing, [*operands, direction])


def assert_same(
    function: Callable[..., Tensor], other: Callable[..., Tensor], operands: list[Tensor]
) -> None:
    """Values, first and second derivatives agree to the bars."""
    value, first, second = derivatives(function, operands)
    value_, first_, second_ = derivatives(other, operands)
    close(value, value_, TOLERANCES["values"])
    for got, wanted in zip(first, first_, strict=True):
        close(got, wanted, TOLERANCES["first"])
    for got, wanted in zip(second, second_, strict=True):
        close(got, wanted, TOLERANCES["second"])


@pytest.mark.parametrize("lmax", range(1, 7))
def test_path_weights_and_native_weights_are_a_bijection(lmax: int) -> None:
    problem = all_paths(irreps_to(lmax), irreps_to(lmax, 3))
    weight = torch.randn(2, problem.weight_numel)
    native = from_path_weights(problem, weight, lmax)
    close(to_path_weights(problem, native, lmax), weight, TOLERANCES["weights"])
    native = [torch.randn_like(matrix) for matrix in native]
    back = from_path_weights(problem, to_path_weights(problem, native, lmax), lmax)
    for got, wanted in zip(back, native, strict=True):
        close(got, wanted, TOLERANCES["weights"])


def test_every_normalisation_is_part_of_the_bijection() -> None:
    tp = TensorProduct(
        "3x0e+2x1o+2x1e",
        "0e+1o+2e+1e",
        "2x0e+4x1o",
        [
            (0, 0, 0, "uvw", True, 2.0),
            (1, 1, 0, "uvw", True),
            (1, 2, 1, "uvw", True, 0.5),
            (2, 1, 1, "uvw", True),
            (0, 1, 1, "uvw", True),
        ],
        internal_weights=False,
        method="so2",
    )
    weight = torch.randn(tp.weight_numel)
    native = from_path_weights(tp.problem, weight, 1)
    close(to_path_weights(tp.problem, native, 1), weight, TOLERANCES["weights"])


@pytest.mark.parametrize("lmax", range(1, 7))
def test_shared_mixing_weights_equal_cg(lmax: int) -> None:
    vectors = torch.cat([torch.randn(200, 3), SPECIAL])
    problem = all_paths(irreps_to(lmax, 1), irreps_to(lmax, 2))
    tp = make_product(problem)
    x, weight = torch.randn(len(vectors), problem.irreps_in1.dim), torch.randn(problem.weight_numel)
    assert_same(tp, cg_product(problem), [x, vectors, weight])


def make_product(problem: TensorProductProblem, **options: Any) -> TensorProduct:
    return TensorProduct(
        problem.irreps_in1,
        problem.irreps_in2,
        problem.irreps_out,
        problem.instructions,
        "none",
        "none",
        internal_weights=False,
        method="so2",
        **options,
    )


@pytest.mark.parametrize("mode", ["uvw", "uvu"])
def test_weights_per_edge_equal_cg_on_a_graph(mode: str) -> None:
    ends = [(0, 0, 0), (0, 2, 2), (1, 1, 1), (1, 2, 1), (1, 2, 3), (2, 1, 2), (2, 2, 2), (1, 0, 3)]
    tp = TensorProduct(
        "3x0e+3x1e+3x2e",
        "0e+1e+2e",
        "3x0e+3x1e+3x2e+3x1e",
        [(*blocks, mode, True) for blocks in ends],
        shared_weights=False,
        method="so2",
    )
    graph = Graph(torch.tensor([0, 1, 2, 2, 1, 3, 0]), torch.tensor([1, 0, 3, 0, 2, 0, 1]), 4)
    x, weight = torch.randn(4, tp.irreps_in1.dim), torch.randn(7, tp.weight_numel)
    assert_same(
        lambda x, r, w: tp(x, r, w, graph=graph),
        cg_product(tp.problem, graph),
        [x, SPECIAL, weight],
    )


def test_radial_and_shared_channelwise_weights() -> None:
    tp = TensorProduct(
        "4x0e+4x1o",
        "0e+1o",
        "4x1o+4x0e",
        [(0, 1, 0, "uvu", True), (1, 0, 0, "uvu", False), (1, 1, 1, "uvu", True)],
        internal_weights=False,
        method="so2",
    )
    x, vectors = torch.randn(7, 16), SPECIAL
    hidden, matrix = torch.randn(7, 3), torch.randn(3, tp.weight_numel)
    expected = cg_product(tp.problem)(x, vectors, hidden @ matrix)
    close(tp(x, vectors, radial=(hidden, matrix)), expected, TOLERANCES["values"])
    close(
        tp(x, vectors, matrix[0]),
        cg_product(tp.problem)(x, vectors, matrix[0]),
        TOLERANCES["values"],
    )


@pytest.mark.parametrize("m_max", [0, 1, 2, 3])
def test_truncated_convolutions_equal_cg_with_inverse_mapped_weights(m_max: int) -> None:
    conv = SO2Convolution(irreps_to(3), irreps_to(4, 3), m_max, group="SO3", internal_weights=False)
    x, vectors = torch.randn(27, conv.irreps_in.dim), torch.cat([torch.randn(20, 3), SPECIAL])
    weight = torch.randn(conv.weight_numel)
    reference = cg_product(conv.problem)
    assert_same(
        conv,
        lambda x, r, w: reference(x, r, conv.effective_path_weights(w)),
        [x, vectors, weight],
    )
    close(
        conv.from_path_weights(conv.effective_path_weights(weight)), weight, TOLERANCES["weights"]
    )


def rotated(x: Tensor, irreps: Irreps, R: Tensor, inversion: bool = False) -> Tensor:
    blocks = [
        wigner_D(ir.l, R) * (ir.p if inversion else 1) for mul, ir in irreps for _ in range(mul)
    ]
    matrix: Tensor = torch.block_diag(*blocks)
    return x @ matrix.T


@pytest.mark.parametrize("group", ["O3", "SO3"])
@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"),
    [("4x0e+3x1o+2x2e", "4x0e+2x1o+3x3o"), ("2x0e+2x0o+3x1o+2x1e", "2x0o+2x1e+1x2e+1x1o")],
)
def test_equivariance(irreps_in: str, irreps_out: str, group: Group) -> None:
    conv = SO2Convolution(irreps_in, irreps_out, 1, group=group)
    graph = Graph(torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 3, 0]), 4)
    x, vectors = torch.randn(4, conv.irreps_in.dim), torch.randn(4, 3)
    scale = torch.randn(4, conv.scale_numel)
    out = conv(x, vectors, graph=graph, scale=scale).detach()
    assert float(out.abs().max()) > 0.1
    R = rand_matrix()
    for inversion in (False, True) if group == "O3" else (False,):
        turned = conv(
            rotated(x, conv.irreps_in, R, inversion),
            vectors @ R.T * (-1 if inversion else 1),
            graph=graph,
            scale=scale,
        )
        close(turned, rotated(out, conv.irreps_out, R, inversion), TOLERANCES["equivariance"])
    if group == "SO3":  # natural parities and B: not equivariant under inversion
        inverted_x = rotated(x, conv.irreps_in, torch.eye(3), inversion=True)
        inverted = conv(inverted_x, -vectors, graph=graph, scale=scale).detach()
        expected = rotated(out, conv.irreps_out, torch.eye(3), inversion=True)
        assert float((inverted - expected).abs().max()) > 1e-3


def test_o3_leaves_out_the_parts_that_parity_forbids() -> None:
    natural = SO2Convolution("4x0e+4x1o", "4x0e+4x1o")
    assert natural.weight_numel == 8 * 8 + 4 * 4
    free = SO2Convolution("4x0e+4x1o", "4x0e+4x1o", group="SO3")
    assert free.weight_numel == 8 * 8 + 2 * 4 * 4
    mixed = SO2Convolution("4x0e", "4x0o")
    x = torch.randn(3, 4)
    assert bool((mixed(x, torch.randn(3, 3)) == 0).all())


def test_derivatives_in_scale_and_weights_per_edge() -> None:
    conv = SO2Convolution("2x0e+1x1o+1x2e", "1x0e+1x1o+1x3o", group="SO3", internal_weights=False)
    graph = Graph(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 2)
    operands = [
        t.requires_grad_()
        for t in (
            torch.randn(2, conv.irreps_in.dim),
            SPECIAL[[0, 2, 5]],
            torch.randn(3, conv.weight_numel),
            torch.randn(3, conv.scale_numel),
        )
    ]

    def function(x: Tensor, vectors: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = conv(x, vectors, weight, graph=graph, scale=scale)
        return out

    vectors = operands[1].detach() + 0.1 * torch.randn(3, 3)
    operands[1] = vectors.requires_grad_()
    torch.autograd.gradcheck(function, operands)
    torch.autograd.gradgradcheck(function, operands, fast_mode=True)


@pytest.mark.parametrize("lmax", [2, 5, 8])
def test_float32(lmax: int) -> None:
    irreps = irreps_to(lmax, 4)
    conv = SO2Convolution(irreps, irreps)
    vectors = torch.cat([torch.randn(50, 3), SPECIAL]).float()
    x = torch.randn(57, irreps.dim).float()
    exact = conv(x.double(), vectors.double())
    close(conv.float()(x, vectors).double(), exact, TOLERANCES["float32"])


def test_initial_weights_keep_variance_one() -> None:
    for group in ("O3", "SO3"):
        conv = SO2Convolution("16x0e+16x1o+16x2e", "16x0e+16x1o+16x2e", group=group)
        variance = conv(torch.randn(300, 144), torch.randn(300, 3)).square().mean()
        assert 0.85 < float(variance) < 1.15


def test_prune_and_explain() -> None:
    tp = make_product(all_paths(irreps_to(2), irreps_to(2)))
    weight = torch.randn(tp.weight_numel)
    keep = [0, 3, 5]
    pruned = tp.prune(keep)
    kept = tp.evaluator.prune_weight(weight, keep)
    zeroed = torch.zeros_like(weight)
    for index in keep:
        part = tp.problem.paths[index].weight_slice
        zeroed[part] = weight[part]
    x = torch.randn(7, 18)
    close(pruned(x, SPECIAL, kept), tp(x, SPECIAL, zeroed), TOLERANCES["values"])
    assert "so2" in tp.explain()
    assert tp.family == "so2"
    assert tp.weight_rank == "full"


def test_errors_name_the_rule() -> None:
    with pytest.raises(ValueError, match="one channel per block of irreps_in2"):
        TensorProduct("2x0e", "2x0e", "2x0e", [(0, 0, 0, "uvu", True)], method="so2")
    with pytest.raises(ValueError, match="all 'uvw' or all 'uvu'"):
        TensorProduct(
            "2x0e",
            "0e",
            "2x0e",
            [(0, 0, 0, "uvu", True), (0, 0, 0, "uvw", True)],
            method="so2",
        )
    with pytest.raises(ValueError, match="m_max must be from 0 to 1"):
        SO2Convolution("0e+1o", "0e+1o+2e", 2)
    conv = SO2Convolution("2x0e+1o", "2x0e", internal_weights=False)
    with pytest.raises(ValueError, match="weight must be given"):
        conv(torch.randn(1, 5), torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"scale must have shape \(1, 3\)"):
        conv(torch.randn(1, 5), torch.randn(1, 3), torch.randn(6), scale=torch.randn(1, 2))


def fused_case(group: Group) -> tuple[list[SO2Convolution], Graph, list[Tensor]]:
    """Convolutions by the C++ and the plain kernels, with a graph whose edges are not sorted."""
    convs = [
        SO2Convolution(
            "3x0e+2x1o+1x2e+2x1e",
            "2x0e+17x1o+1x3o",
            2,
            group=group,
            internal_weights=False,
            backend=backend,
        )
        for backend in ("auto", "torch")
    ]
    graph = Graph(torch.tensor([0, 1, 2, 2, 1, 3, 0]), torch.tensor([5, 0, 3, 0, 2, 0, 5]), 4, 6)
    conv = convs[0]
    shapes = [(4, conv.irreps_in.dim), (7, 3), (conv.weight_numel,), (7, conv.scale_numel)]
    return convs, graph, [SPECIAL if shape[1:] == (3,) else torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("group", ["O3", "SO3"])
def test_chunked_convolutions_equal_the_plain_ops(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eqtp.kernels.so2._fused.fused_chunk_rows", lambda *frames: 3)
    convs, graph, operands = fused_case(group)
    fused, plain = convs
    assert_same(
        lambda x, r, w, s: fused(x, r, w, graph=graph, scale=s),
        lambda x, r, w, s: plain(x, r, w, graph=graph, scale=s),
        operands,
    )
    assert_same(
        lambda x, r, w: fused(x, r, w, graph=graph),
        lambda x, r, w: plain(x, r, w, graph=graph),
        operands[:3],
    )


def test_third_derivatives_of_chunked_convolutions() -> None:
    (conv, plain), graph, operands = fused_case("SO3")
    directions = [torch.randn_like(t) for t in operands]
    results = []
    for module in (conv, plain):
        x, r, w, s = (t.clone().requires_grad_() for t in operands)
        out = module(x, r, w, graph=graph, scale=s).pow(2).sum()
        for order in range(3):
            grads = torch.autograd.grad(out, (x, r, w, s), create_graph=order < 2)
            if order < 2:
                pairs = zip(grads, directions, strict=True)
                out = torch.stack([(g * d).sum() for g, d in pairs]).sum()
        results.append(grads)
    for got, wanted in zip(*results, strict=True):
        close(got, wanted, TOLERANCES["second"])


def test_no_edges() -> None:
    conv = SO2Convolution("2x0e+2x1o", "3x1o")
    nothing = torch.zeros(0, dtype=torch.long)
    x, vectors = torch.randn(2, 8, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    out = conv(x, vectors, graph=Graph(nothing, nothing, 2, 4))
    assert out.shape == (4, 9)
    assert bool((out == 0).all())
    assert conv.weight is not None
    grads = torch.autograd.grad(out.sum(), (x, vectors, conv.weight))
    assert all(bool((grad == 0).all()) for grad in grads)


def test_only_directions_matter_and_a_zero_vector_passes_degree_0_only() -> None:
    conv = SO2Convolution("2x0e+2x1o", "2x0e+2x1o")
    x, vectors = torch.randn(3, 8), torch.randn(3, 3)
    close(conv(x, 1e5 * vectors), conv(x, vectors), TOLERANCES["values"])
    zero = torch.zeros(3, 3, requires_grad=True)
    out = conv(x, zero)
    assert bool((out[:, 2:] == 0).all())
    assert float(out[:, :2].detach().abs().max()) > 0
    (grad,) = torch.autograd.grad(out.sum(), zero)
    assert bool((grad == 0).all())


def test_refuses_operands_of_several_dtypes() -> None:
    conv = SO2Convolution("2x0e+2x1o", "2x0e+2x1o")
    x, vectors = torch.zeros(3, 8, dtype=torch.float32), torch.ones(3, 3, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"x and weights\[0\] must share dtype"):
        conv(x, vectors)
    tp = make_product(all_paths(irreps_to(1), irreps_to(1)))
    with pytest.raises(TypeError, match="x2 and weight must share dtype"):
        tp(x[:, : tp.irreps_in1.dim], vectors, torch.zeros(tp.weight_numel))
    with pytest.raises(ValueError, match="backend must be one of"):
        SO2Convolution("2x0e", "2x0e", backend="gpu")  # type: ignore[arg-type]


def test_so2_products_of_blocks_without_channels() -> None:
    tp = FullyConnectedTensorProduct("0x0e+4x1o", "0e+1o", "4x1o", method="so2")
    assert tp(torch.randn(5, 12), torch.randn(5, 3)).shape == (5, 12)
