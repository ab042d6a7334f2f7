"""The modules: e3nn's signature, defaults and numbers, and what eqtp adds."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from e3nn import o3

from eqtp.graph import Graph
from eqtp.layout import to_layout
from eqtp.nn import (
    ChannelwiseTensorProduct,
    ElementwiseTensorProduct,
    FullTensorProduct,
    FullyConnectedTensorProduct,
    TensorProduct,
)

TOLERANCES = {"float64": 1e-12}  # relative to the largest element; a few rounding errors

ARGUMENTS: tuple[str, str, str, list[tuple[Any, ...]]] = (
    "3x0e+2x1o", "0e+2x1o", "3x1o+2x0e+4x1e",
    [(0, 1, 0, "uvu", True, 2.0), (1, 1, 1, "uvu", False), (1, 1, 2, "uvw", True)],
)  # fmt: skip
CHANNELWISE: tuple[str, str, str] = ("8x0e+8x1o", "0e+1o+2e", "0e+1o")


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        got, expected, rtol=0.0, atol=TOLERANCES["float64"] * max(scale, 1e-3)
    )


def random_inputs(tp: TensorProduct, *batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*batch, tp.irreps_in1.dim), torch.randn(*batch, tp.irreps_in2.dim)


@pytest.mark.parametrize("irrep_normalization", ["component", "norm", "none"])
@pytest.mark.parametrize("path_normalization", ["element", "path", "none"])
def test_positional_arguments_are_e3nns(irrep_normalization: Any, path_normalization: Any) -> None:
    tp = TensorProduct(*ARGUMENTS, irrep_normalization, path_normalization)
    rival = o3.TensorProduct(
        *ARGUMENTS,
        irrep_normalization=irrep_normalization,
        path_normalization=path_normalization,
    )
    x1, x2 = random_inputs(tp, 5)
    assert tp.weight is not None
    assert tp.weight.shape == rival.weight.shape
    assert_close(tp(x1, x2, rival.weight), rival(x1, x2))


def test_variances() -> None:
    variances = {"in1_var": [2.0, 3.0], "in2_var": [0.5, 4.0], "out_var": [1.0, 2.0, 5.0]}
    tp = TensorProduct(*ARGUMENTS, **variances)  # type: ignore[arg-type]
    rival = o3.TensorProduct(*ARGUMENTS, **variances)
    x1, x2 = random_inputs(tp, 5)
    assert_close(tp(x1, x2, rival.weight), rival(x1, x2))


@pytest.mark.parametrize(
    ("internal", "shared", "owns"),
    [(None, None, True), (None, True, True), (None, False, False), (False, None, False),
     (False, True, False), (True, True, True)],
)  # fmt: skip
def test_who_owns_the_weights_as_in_e3nn(internal: Any, shared: Any, owns: bool) -> None:
    options = {"internal_weights": internal, "shared_weights": shared}
    tp = TensorProduct(*ARGUMENTS, **options)
    rival = o3.TensorProduct(*ARGUMENTS, **options)
    assert tp.internal_weights == rival.internal_weights == owns
    assert tp.shared_weights == rival.shared_weights
    assert len(list(tp.parameters())) == len(list(rival.parameters())) == int(owns)


def test_same_seed_gives_e3nns_weights() -> None:
    torch.manual_seed(3)
    tp = TensorProduct(*ARGUMENTS)
    torch.manual_seed(3)
    rival = o3.TensorProduct(*ARGUMENTS)
    assert tp.weight is not None
    assert torch.equal(tp.weight, rival.weight)


def test_attributes() -> None:
    tp = TensorProduct(*ARGUMENTS)
    assert (str(tp.irreps_in1), str(tp.irreps_in2)) == ("3x0e+2x1o", "1x0e+2x1o")
    assert str(tp.irreps_out) == "3x1o+2x0e+4x1e"
    assert tp.instructions[0] == (0, 1, 0, "uvu", True, 2.0)
    assert tp.weight_numel == 6 + 16
    assert tp.weight_rank == "full"
    assert tp.problem.weight_numel == tp.weight_numel


@pytest.mark.parametrize(
    ("batch1", "batch2"), [((), ()), ((2, 3), (2, 3)), ((4, 1), (5,)), ((3,), ()), ((0, 2), (2,))]
)
def test_leading_dimensions_broadcast(batch1: tuple[int, ...], batch2: tuple[int, ...]) -> None:
    tp = TensorProduct(*ARGUMENTS)
    rival = o3.TensorProduct(*ARGUMENTS)
    x1, _ = random_inputs(tp, *batch1)
    _, x2 = random_inputs(tp, *batch2)
    expected = rival(x1, x2)
    got = tp(x1, x2, rival.weight)
    assert got.shape == expected.shape
    assert_close(got, expected)


def test_weights_broadcast_too() -> None:
    tp = TensorProduct(*ARGUMENTS, shared_weights=False)
    rival = o3.TensorProduct(*ARGUMENTS, shared_weights=False)
    x1, x2 = random_inputs(tp, 4)
    weight = torch.randn(3, 1, tp.weight_numel)
    assert_close(tp(x1, x2, weight), rival(x1, x2, weight))


@pytest.mark.parametrize("family", ["tensor_product", "channelwise"])
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
def test_graph_and_layout(family: str, layout: Any) -> None:
    """Both kernel families: the graph form is gather, product, sum; layouts agree."""
    tp: TensorProduct
    if family == "channelwise":
        tp = ChannelwiseTensorProduct(*CHANNELWISE, layout=layout)
    else:
        tp = TensorProduct(*ARGUMENTS, layout=layout, shared_weights=False)
    assert tp.family == family
    plain = TensorProduct(
        tp.irreps_in1, tp.irreps_in2, tp.irreps_out, tp.instructions, shared_weights=False,
        backend="reference",
    )  # fmt: skip
    graph = Graph(torch.tensor([0, 2, 1, 0, 2]), torch.tensor([3, 0, 0, 3, 1]), 3, 5)
    x1 = torch.randn(3, tp.irreps_in1.dim, requires_grad=True)
    x2 = torch.randn(5, tp.irreps_in2.dim, requires_grad=True)
    weight = torch.randn(5, tp.weight_numel, requires_grad=True)
    messages = plain(x1[graph.edge_src], x2, weight)
    expected = messages.new_zeros(5, tp.irreps_out.dim).index_add(0, graph.edge_dst, messages)
    got = tp(
        to_layout(x1, tp.irreps_in1, "mul_ir", layout),
        to_layout(x2, tp.irreps_in2, "mul_ir", layout),
        weight,
        graph=graph,
    )
    got = to_layout(got, tp.irreps_out, layout, "mul_ir")
    assert_close(got, expected)
    direction = torch.randn_like(got)
    inputs = (x1, x2, weight)
    grads = torch.autograd.grad(got, inputs, direction)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs, direction), strict=True):
        assert_close(a, b)


def test_family_follows_the_problem() -> None:
    assert ChannelwiseTensorProduct(*CHANNELWISE).family == "channelwise"
    assert TensorProduct(*ARGUMENTS).family == "tensor_product"


def test_radial_is_a_product_of_matrices() -> None:
    tp = ChannelwiseTensorProduct(*CHANNELWISE)
    graph = Graph(torch.tensor([0, 2, 1]), torch.tensor([1, 0, 0]), 3)
    x1, x2 = torch.randn(3, tp.irreps_in1.dim), torch.randn(3, tp.irreps_in2.dim)
    hidden, matrix = torch.randn(3, 7), torch.randn(7, tp.weight_numel)
    expected = tp(x1, x2, hidden @ matrix, graph=graph)
    fused = tp(x1, x2, radial=(hidden, matrix), graph=graph)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="got both"):
        tp(x1, x2, hidden @ matrix, radial=(hidden, matrix), graph=graph)
    with pytest.raises(ValueError, match=r"radial=\(hidden \[rows, H\], matrix \[H, 40\]\)"):
        tp(x1, x2, radial=(hidden, matrix[:5]), graph=graph)


def test_effective_path_weights_of_cg_are_the_weights() -> None:
    tp = TensorProduct(*ARGUMENTS)
    weight = torch.randn(5, tp.weight_numel)
    assert tp.effective_path_weights(weight) is weight
    assert tp.effective_path_weights() is tp.weight
    with pytest.raises(ValueError, match="weight must have 22 columns"):
        tp.effective_path_weights(weight[:, 1:])


def test_weight_views_are_e3nns() -> None:
    tp = TensorProduct(*ARGUMENTS)
    rival = o3.TensorProduct(*ARGUMENTS)
    weight = torch.randn(5, tp.weight_numel)
    ours, theirs = list(tp.weight_views()), list(rival.weight_views(tp.weight))
    assert [view.shape for view in ours] == [view.shape for view in theirs]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert tp.weight_view_for_instruction(2, weight).shape == (5, 2, 2, 4)
    with pytest.raises(ValueError, match="instruction 1 has no weights"):
        tp.weight_view_for_instruction(1)


@pytest.mark.parametrize("keep", [[0], [2, 0], [1], [], [0, 1, 2]])
def test_prune_equals_zero_weights(keep: list[int]) -> None:
    arguments = (*ARGUMENTS[:3], [(*i[:4], True) for i in ARGUMENTS[3]])
    tp = TensorProduct(*arguments)
    pruned = tp.prune(keep)
    assert tp.weight is not None
    weight = tp.weight.detach().clone()
    for index, path in enumerate(tp.problem.paths):
        if index not in keep:
            weight[path.weight_slice] = 0.0
    x1, x2 = random_inputs(tp, 6)
    assert_close(pruned(x1, x2), tp(x1, x2, weight))
    assert len(pruned.instructions) == len(keep)
    with pytest.raises(ValueError, match="keep must list path indices"):
        tp.prune([3])


def test_prune_leaves_the_module_alone() -> None:
    tp = TensorProduct(*ARGUMENTS)
    pruned = tp.prune([0])
    assert pruned.weight is not None
    assert tp.weight is not None
    before = tp.weight.detach().clone()
    with torch.no_grad():
        pruned.weight.zero_()
    assert torch.equal(tp.weight, before)


def test_explain_says_what_runs() -> None:
    text = ChannelwiseTensorProduct(*CHANNELWISE, backend="torch").explain()
    for word in ("cg", "channelwise", "backend", "flops", "bytes", "paths     5", "nonzero"):
        assert word in text
    assert "stores hidden @ matrix for every edge" in text
    text = TensorProduct(*ARGUMENTS, backend="reference").explain()
    assert "reference: asked for by name" in text
    assert "tensor_product" in text


@pytest.mark.parametrize("method", ["gaunt", "gaunt_full", "matrix"])
@pytest.mark.parametrize("whole", [True, False])
def test_explain_names_the_method_and_its_costs(method: str, whole: bool) -> None:
    """Products that run as they are, and those that run path by path."""
    irreps = "2x0e+2x1o+2x2e"
    paths = [
        (i, j, k, "uuu", True)
        for i in range(3)
        for j in range(3)
        for k in range(3)
        if abs(i - j) <= k <= i + j and (i + j + k) % 2 == 0 and (whole or i > 0)
    ]
    tp = TensorProduct(irreps, irreps, irreps, paths, method=method)
    text = tp.explain()
    for word in (f"method    {method} (", "kernel", "backend", "flops", "bytes"):
        assert word in text
    assert f"{tp.weight_numel * 8:,} for weights per row" in text


def test_explain_is_of_where_the_operands_are() -> None:
    pytest.importorskip("triton")
    tp = ChannelwiseTensorProduct(*CHANNELWISE)
    assert "backend   triton" not in tp.explain()
    assert "backend   triton" in ChannelwiseTensorProduct(*CHANNELWISE, backend="triton").explain()
    assert "torch.float32" in tp.explain(like=torch.zeros(1, dtype=torch.float32))


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("on_graph", [False, True])
def test_blocks_without_channels(backend: Any, on_graph: bool) -> None:
    """A path between empty blocks adds nothing; rows are kept where there is no other."""
    graph = Graph(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1]), 3) if on_graph else None
    for in1, paths in (
        ("0x0e+4x1o", [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True)]),
        ("0x0e+4x1o", [(0, 0, 0, "uvu", True)]),
    ):
        tp = TensorProduct(in1, "0e", in1, paths, backend=backend)
        out = tp(torch.randn(3, 12), torch.ones(3, 1), graph=graph)
        assert out.shape == (3, 12)
        assert out.isfinite().all()


def test_copies_and_pickles() -> None:
    tp = TensorProduct(*ARGUMENTS)
    x1, x2 = random_inputs(tp, 4)
    expected = tp(x1, x2)
    for twin in (copy.deepcopy(tp), pickle.loads(pickle.dumps(tp))):
        assert torch.equal(twin(x1, x2), expected)
    other = TensorProduct(*ARGUMENTS)
    other.load_state_dict(tp.state_dict())
    assert torch.equal(other(x1, x2), expected)


def test_to_dtype_keeps_the_constants_exact() -> None:
    tp = TensorProduct(*ARGUMENTS)
    x1, x2 = random_inputs(tp, 4)
    expected = tp(x1, x2, torch.ones(tp.weight_numel))
    twin = copy.deepcopy(tp).float()
    assert twin(x1.float(), x2.float()).dtype == torch.float32
    assert torch.equal(twin.double()(x1, x2, torch.ones(tp.weight_numel)), expected)


@pytest.mark.parametrize(
    ("irreps_in1", "irreps_in2", "target"),
    [CHANNELWISE, ("4x0e+4x0o+4x1o+4x1e", "0e+1o+2e+3o", "0e+0o+1o+1e+2e"), ("3x2e", "2x1o", "1o")],
)
def test_channelwise_has_maces_paths(irreps_in1: str, irreps_in2: str, target: str) -> None:
    """Paths, order and normalisation of MACE's `tp_out_irreps_with_instructions`."""
    wanted = o3.Irreps(target)
    blocks: list[tuple[int, Any]] = []
    instructions: list[tuple[Any, ...]] = []
    for i, (mul, ir1) in enumerate(o3.Irreps(irreps_in1)):
        for j, (_, ir2) in enumerate(o3.Irreps(irreps_in2)):
            for ir_out in ir1 * ir2:
                if ir_out in wanted:
                    instructions.append((i, j, len(blocks), "uvu", True))
                    blocks.append((mul, ir_out))
    out, permutation, _ = o3.Irreps(blocks).sort()
    instructions = sorted(
        [(i, j, permutation[k], mode, train) for i, j, k, mode, train in instructions],
        key=lambda ins: ins[2],
    )
    tp = ChannelwiseTensorProduct(irreps_in1, irreps_in2, target)
    assert tp.irreps_out == out
    assert [ins[:5] for ins in tp.instructions] == instructions
    rival = o3.TensorProduct(
        irreps_in1, irreps_in2, out, instructions, shared_weights=False, internal_weights=False
    )
    x1, x2 = random_inputs(tp, 5)
    weight = torch.randn(5, tp.weight_numel)
    assert_close(tp(x1, x2, weight), rival(x1, x2, weight))


PAIRS: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = [
    (FullyConnectedTensorProduct, o3.FullyConnectedTensorProduct,
     ("2x0e+3x1o", "0e+2x1o", "4x1o+2x0e+1x1e"), {}),
    (FullyConnectedTensorProduct, o3.FullyConnectedTensorProduct,
     ("2x0e+3x1o", "0e+2x1o", "4x1o+2x0e"), {"path_normalization": "path"}),
    (FullTensorProduct, o3.FullTensorProduct, ("2x0e+3x1o+1x2e+2x2e", "0e+2x1o"), {}),
    (FullTensorProduct, o3.FullTensorProduct,
     ("2x0e+3x1o", "0e+2x1o"), {"filter_ir_out": ["1o", "0e"], "irrep_normalization": "norm"}),
    (ElementwiseTensorProduct, o3.ElementwiseTensorProduct,
     ("5x1o+5x1e", "3x1e+4x0e+3x2o"), {}),
    (ElementwiseTensorProduct, o3.ElementwiseTensorProduct,
     ("5x1o+2x1o+3x1e", "10x1e"), {"filter_ir_out": ["0e", "0o"]}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "arguments", "options"), PAIRS)
def test_standard_products_equal_e3nns(
    ours: Any, theirs: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    tp, rival = ours(*arguments, **options), theirs(*arguments, **options)
    assert isinstance(tp, TensorProduct)
    assert tp.irreps_in1 == rival.irreps_in1
    assert tp.irreps_out == rival.irreps_out
    assert tp.weight_numel == rival.weight_numel
    x1, x2 = random_inputs(tp, 5)
    weight = rival.weight if rival.weight_numel > 0 else None
    assert_close(tp(x1, x2, weight), rival(x1, x2))


@pytest.mark.parametrize(
    ("ours", "theirs", "third"),
    [
        (FullyConnectedTensorProduct, o3.FullyConnectedTensorProduct, "4x1o+2x0e"),
        (FullTensorProduct, o3.FullTensorProduct, ["1o", "0e"]),
        (ElementwiseTensorProduct, o3.ElementwiseTensorProduct, ["1o", "0e"]),
    ],
)
@pytest.mark.parametrize("normalization", ["norm", None])
def test_standard_products_take_e3nns_positions(
    ours: Any, theirs: Any, third: Any, normalization: str | None
) -> None:
    arguments = "3x0e+2x1o", "5x1o", third, normalization
    tp, rival = ours(*arguments), theirs(*arguments)
    x1, x2 = random_inputs(tp, 5)
    weight = rival.weight if rival.weight_numel > 0 else None
    assert_close(tp(x1, x2, weight), rival(x1, x2))


def test_elementwise_needs_as_many_channels() -> None:
    with pytest.raises(ValueError, match="as many channels, got '3x1o' \\(3\\) and '2x0e' \\(2\\)"):
        ElementwiseTensorProduct("3x1o", "2x0e")


BAD_CALLS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "columns": ((torch.zeros(4, 8), torch.zeros(4, 7)), ValueError, "x1 must have 9 columns"),
    "broadcast": ((torch.zeros(4, 9), torch.zeros(3, 7)), ValueError, "must broadcast"),
    "dtype": ((torch.zeros(4, 9), torch.zeros(4, 7).float()), TypeError, "share dtype"),
    "weight": ((torch.zeros(4, 9), torch.zeros(4, 7), torch.zeros(3)), ValueError, "weight must"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_rejects_bad_calls(name: str) -> None:
    arguments, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        TensorProduct(*ARGUMENTS)(*arguments)


def test_rejects_a_radial_network_of_another_dtype() -> None:
    tp = ChannelwiseTensorProduct(*CHANNELWISE)
    radial = torch.zeros(4, 3), torch.zeros(3, tp.weight_numel, dtype=torch.float32)
    with pytest.raises(TypeError, match="hidden and matrix must share dtype"):
        tp(torch.zeros(4, 32), torch.zeros(4, 9), radial=radial)


def test_rejects_missing_weights() -> None:
    x1, x2 = torch.zeros(4, 9), torch.zeros(4, 7)
    with pytest.raises(ValueError, match="weight must be given"):
        TensorProduct(*ARGUMENTS, internal_weights=False)(x1, x2)
    with pytest.raises(ValueError, match="one row of 22 per row of x2"):
        TensorProduct(*ARGUMENTS, shared_weights=False)(x1, x2, torch.zeros(22))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"internal_weights": True, "shared_weights": False}, ValueError, "needs shared_weights"),
        ({"passes": 2}, ValueError, "belong to the methods 'gaunt' and 'gaunt_full'"),
        ({"evaluation": "fft"}, ValueError, "evaluation must be one of"),
        ({"method": "clebsch"}, ValueError, "method must be one of"),
        ({"layout": "irmul"}, ValueError, "layout must be one of"),
        ({"backend": "gpu"}, ValueError, "backend must be one of"),
        ({"irrep_normalization": "l2"}, ValueError, "irrep_normalization must be one of"),
        ({"path_normalization": "l2"}, ValueError, "path_normalization must be one of"),
    ],
)
def test_rejects_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TensorProduct(*ARGUMENTS, **options)
