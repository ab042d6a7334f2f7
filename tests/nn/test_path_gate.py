from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import eqtp
from eqtp.graph import Graph
from eqtp.nn import (
    ChannelwiseTensorProduct,
    FullyConnectedTensorProduct,
    PathGate,
    TensorProduct,
)
from eqtp.nn.explanation import flops_per_row

# Differences of a pruned product and the dense one with zero weights are exactly zero, but where
# torch multiplies matrices of which the pruned product has narrower ones: torch.bmm takes another
# routine below 400 multiplications and for a single row, and BLAS other kernels by width, with
# other roundings of sums of at most seven terms. "gates" compares one sum of a few numbers of
# order one with the formula.
TOLERANCES = {"gates": 1e-14}
MATRIX_TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6}

IRREPS = ("4x0e+4x1o+4x2e", "0e+1o+2e+3o", "0e+1o+2e+3o")


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def channelwise(**options: Any) -> TensorProduct:
    return ChannelwiseTensorProduct(*IRREPS, **options)


def uvw(**options: Any) -> TensorProduct:
    return FullyConnectedTensorProduct("3x0e+2x1o+2x2e", "2x0e+2x1o", "3x0e+2x1o+2x2e", **options)


def uuu(**options: Any) -> TensorProduct:
    paths = [(0, 0, 0, "uuu", True), (1, 1, 0, "uuu", True), (0, 1, 1, "uuu", True)]
    paths += [(1, 0, 1, "uuu", True), (1, 1, 2, "uuu", True)]
    return TensorProduct("4x0e+4x1o", "4x0e+4x1o", "4x0e+4x1o+4x2e", paths, **options)


def frozen(tp: TensorProduct, keep: float = 0.5) -> PathGate:
    gate = PathGate(tp, keep)
    with torch.no_grad():
        gate.scores.copy_(torch.randn_like(gate.scores))
    gate.freeze()
    return gate


def rows(tp: TensorProduct, count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, tp.irreps_in1.dim), torch.randn(count, tp.irreps_in2.dim)


def graph(num_nodes: int, num_edges: int) -> Graph:
    return Graph(
        torch.randint(num_nodes, (num_edges,)),
        torch.randint(num_nodes, (num_edges,)).sort().values,
        num_nodes,
    )


def assert_same_but_for_matrices(pruned: Tensor, dense: Tensor) -> None:
    tolerance = MATRIX_TOLERANCES[dense.dtype] * float(dense.detach().abs().max())
    assert (pruned - dense).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("make", [channelwise, uvw, uuu])
def test_pruned_is_dense_with_the_others_weights_zero(
    make: Any, backend: Any, dtype: torch.dtype
) -> None:
    """Frozen constants, and zeros change no sum."""
    tp = make(backend=backend, shared_weights=False, internal_weights=False)
    gate = frozen(tp).to(dtype)
    x1, x2 = (x.to(dtype) for x in rows(tp, 7))
    weight = torch.randn(7, tp.weight_numel, dtype=dtype)
    zeroed = gate.scale(weight)
    assert (zeroed == 0).any()
    pruned = gate.prune()
    assert 0 < len(pruned.problem.paths) < len(tp.problem.paths)
    small, dense = pruned(x1, x2, gate.prune_weight(weight)), tp(x1, x2, zeroed)
    assert torch.equal(gate(x1, x2, weight), small)
    if make is channelwise and backend == "torch":
        assert_same_but_for_matrices(small, dense)
    else:
        assert torch.equal(small, dense)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
@pytest.mark.parametrize("radial", [False, True])
def test_pruned_is_dense_on_a_graph(backend: Any, radial: bool) -> None:
    tp = channelwise(backend=backend)
    gate = frozen(tp)
    edges = graph(5, 23)
    x1, x2 = torch.randn(5, tp.irreps_in1.dim), torch.randn(23, tp.irreps_in2.dim)
    if radial:
        hidden, matrix = torch.randn(23, 6), torch.randn(6, tp.weight_numel)
        dense = tp(x1, x2, radial=(hidden, gate.scale(matrix)), graph=edges)
        pruned = gate.prune()(x1, x2, radial=(hidden, gate.prune_weight(matrix)), graph=edges)
        gated = gate(x1, x2, radial=(hidden, matrix), graph=edges)
    else:
        weight = torch.randn(23, tp.weight_numel)
        dense = tp(x1, x2, gate.scale(weight), graph=edges)
        pruned = gate.prune()(x1, x2, gate.prune_weight(weight), graph=edges)
        gated = gate(x1, x2, weight, graph=edges)
    assert torch.equal(gated, pruned)
    if backend == "torch" or (radial and backend == "reference"):  # blocks, hidden @ matrix
        assert_same_but_for_matrices(pruned, dense)
    else:
        assert torch.equal(pruned, dense)


@pytest.mark.parametrize("make", [uvw, uuu])
def test_weights_of_the_product_are_folded(make: Any) -> None:
    tp = make()
    gate = frozen(tp)
    x1, x2 = rows(tp, 5)
    pruned = gate.prune()
    assert isinstance(pruned.weight, torch.nn.Parameter)
    assert pruned.weight.numel() < tp.weight_numel
    assert torch.equal(pruned(x1, x2), gate(x1, x2))
    assert [name for name, _ in gate.named_parameters()] == ["scores", "tp.weight"]


def test_compact_leaves_out_what_is_zero() -> None:
    tp = channelwise()
    gate = frozen(tp)
    x1, x2 = rows(tp, 3)
    weight = torch.randn(3, tp.weight_numel)
    whole, small = gate.prune(), gate.prune(compact=True)
    assert small.irreps_out.dim < whole.irreps_out.dim == tp.irreps_out.dim
    kept = [tp.irreps_out.slices()[tp.problem.paths[index].i_out] for index in gate.selected()]
    out = whole(x1, x2, gate.prune_weight(weight))
    compact = small(x1, x2, gate.prune_weight(weight))
    assert torch.equal(compact, torch.cat([out[:, columns] for columns in kept], dim=1))
    assert int((out != 0).sum()) == compact.numel()


def test_constants_are_frozen() -> None:
    """Building the smaller product anew would normalise it anew: that must not happen."""
    tp = uvw()
    gate = frozen(tp)
    kept = [tp.problem.paths[index].coefficient for index in gate.selected()]
    assert [path.coefficient for path in gate.prune().problem.paths] == kept
    again = TensorProduct(
        tp.irreps_in1,
        tp.irreps_in2,
        tp.irreps_out,
        [tp.instructions[index][:5] for index in gate.selected()],
    )
    assert [path.coefficient for path in again.problem.paths] != kept


def test_keeping_everything_is_the_product_itself() -> None:
    tp = channelwise()
    gate = PathGate(tp, keep=1.0)
    assert (gate.coefficients() - 1).abs().max() < TOLERANCES["gates"]
    gate.freeze()
    assert gate.selected() == tuple(range(len(tp.problem.paths)))


def test_coefficients_are_the_published_ones() -> None:
    """c_p = alpha_p pi_p / sum over P of alpha_q pi_q, times the sum of all alpha."""
    gate = frozen(uvw(), keep=0.4)
    alpha = torch.tensor([path.coefficient for path in gate.tp.problem.paths])
    pi, chosen = gate.scores.detach().exp(), list(gate.selected())
    expected = torch.zeros_like(alpha)
    published = alpha[chosen] * pi[chosen] / (alpha[chosen] * pi[chosen]).sum()
    expected[chosen] = published * alpha.sum() / alpha[chosen]
    assert (gate.coefficients() - expected).abs().max() < TOLERANCES["gates"] * expected.max()
    with torch.no_grad():
        gate.scores.add_(800.0)  # exp would overflow
    assert (gate.coefficients() - expected).abs().max() < 1e-10 * expected.max()


def test_scores_learn_and_paths_that_are_not_selected_do_not() -> None:
    gate = PathGate(channelwise(), keep=0.3, random_steps=10, top_steps=10)
    gate.set_step(3)
    x1, x2 = rows(gate.tp, 4)
    weight = torch.randn(4, gate.tp.weight_numel, requires_grad=True)
    gate(x1, x2, weight).square().sum().backward()
    moved = set(gate.scores.grad.nonzero().flatten().tolist())  # type: ignore[union-attr]
    assert moved
    assert moved <= set(gate.selected())
    torch.autograd.gradcheck(lambda s, w: gate(x1, x2, w * s.exp().mean()), (gate.scores, weight))


def test_three_phases_follow_the_step() -> None:
    gate = PathGate(channelwise(), keep=0.5, random_steps=20, top_steps=5)
    with torch.no_grad():
        gate.scores.copy_(torch.randn_like(gate.scores))
    count = math.ceil(0.5 * len(gate.scores))
    drawn = set()
    for step in range(20):
        gate.set_step(step)
        assert gate.phase == "random"
        assert len(gate.selected()) == count
        drawn.add(gate.selected())
        for _ in range(3):  # forwards do not move anything
            gate(*rows(gate.tp, 1), torch.randn(1, gate.tp.weight_numel))
        assert gate.step == step
    assert len(drawn) > 10
    assert set().union(*drawn) == set(range(len(gate.scores)))
    gate.set_step(20)
    phases = [gate.phase]
    top = gate.selected()
    with torch.no_grad():
        gate.scores.neg_()
    assert gate.selected() != top
    gate.set_step(25)
    phases.append(gate.phase)
    assert phases == ["top", "frozen"]
    chosen = gate.selected()
    with torch.no_grad():
        gate.scores.neg_()
    gate.set_step(0)
    assert gate.selected() == chosen


def test_random_sets_depend_on_seed_and_step_only() -> None:
    """Two processes agree although their global generators stand elsewhere."""
    one, other = (PathGate(channelwise(), keep=0.4, seed=7) for _ in range(2))
    sets = []
    for step in range(8):
        torch.manual_seed(step)
        one.set_step(step)
        sets.append(one.selected())
    for step in reversed(range(8)):
        torch.manual_seed(100 + step)
        other.set_step(step)
        assert other.selected() == sets[step]
    different = PathGate(channelwise(), keep=0.4, seed=8)
    assert any(different.selected() != chosen for chosen in sets)


def test_evaluation_is_never_random() -> None:
    gate = PathGate(channelwise(), keep=0.4).eval()
    first = gate.selected()
    for step in range(5):
        gate.set_step(step)
        assert gate.selected() == first


def test_every_irrep_of_the_result_keeps_a_path() -> None:
    gate = frozen(channelwise(), keep=0.01)
    reached = {gate.tp.irreps_out[gate.tp.problem.paths[i].i_out].ir for i in gate.selected()}
    assert reached == {ir for _, ir in gate.tp.irreps_out}
    assert len(gate.selected()) == len(reached)


def test_the_best_paths_are_kept() -> None:
    tp = channelwise()
    gate = PathGate(tp, keep=0.5)
    with torch.no_grad():
        gate.scores.copy_(torch.randn(len(gate.scores)))
    gate.freeze()
    scores = gate.scores.tolist()
    for irrep in {ir for _, ir in tp.irreps_out}:
        of_irrep = [i for i, p in enumerate(tp.problem.paths) if tp.irreps_out[p.i_out].ir == irrep]
        assert max(of_irrep, key=lambda i: scores[i]) in gate.selected()
    dropped = [i for i in range(len(scores)) if i not in gate.selected()]
    assert min(dropped) >= 0
    assert max(scores[i] for i in dropped) < max(scores)


def test_the_state_dict_restores_step_set_and_phase() -> None:
    gate = PathGate(channelwise(), keep=0.5, random_steps=3, top_steps=3)
    gate.set_step(4)
    other = PathGate(channelwise(), keep=0.5, random_steps=3, top_steps=3)
    other.load_state_dict(gate.state_dict())
    assert (other.step, other.phase) == (4, "top")
    with torch.no_grad():
        gate.scores.copy_(torch.randn_like(gate.scores))
    gate.set_step(6)
    state = gate.state_dict()
    with torch.no_grad():
        gate.scores.neg_()  # what was kept must not be decided again
    other.load_state_dict(state)
    assert (other.step, other.phase, other.selected()) == (6, "frozen", gate.selected())
    assert all(isinstance(value, Tensor) for value in state.values())
    twin = copy.deepcopy(gate)
    assert twin.selected() == gate.selected()


def test_reports_name_paths_and_flops() -> None:
    gate = frozen(channelwise())
    sparse = flops_per_row(gate.tp.problem.prune(gate.selected()))
    text = gate.explain()
    assert f"{sparse:,} of {flops_per_row(gate.tp.problem):,} flops" in text
    assert text.count("kept") == len(gate.selected())
    by_path = [flops_per_row(gate.tp.problem.prune([index])) for index in range(len(gate.scores))]
    assert sum(by_path[index] for index in gate.selected()) == sparse


def test_what_cannot_be_gated_is_refused() -> None:
    unweighted = TensorProduct("2x0e", "2x0e", "2x0e", [(0, 0, 0, "uuu", False)])
    with pytest.raises(ValueError, match=r"weights on every path.*\[0\] have none"):
        PathGate(unweighted)
    with pytest.raises(ValueError, match=r"keep must be above 0.*got 0"):
        PathGate(channelwise(), keep=0)
    with pytest.raises(ValueError, match="random_steps=-1"):
        PathGate(channelwise(), random_steps=-1)
    with pytest.raises(ValueError, match="step must be at least 0"):
        PathGate(channelwise()).set_step(-1)
    with pytest.raises(RuntimeError, match=r"must be frozen, got phase 'random'"):
        PathGate(channelwise()).prune()
    with pytest.raises(AttributeError, match="not for force fields"):
        eqtp.PairGate  # noqa: B018
