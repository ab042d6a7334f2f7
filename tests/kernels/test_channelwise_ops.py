"""The channelwise ops in the hands of torch: compile, export, torch.func, autocast, opcheck."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from eqtp.backend import Backend
from eqtp.graph import Graph
from eqtp.kernels.channelwise import _cpu, _ops, channelwise_tensor_product
from eqtp.kernels.channelwise import _cpu as channelwise_cpu
from eqtp.kernels.codegen.edges import chunk_edges, edges_of, graph_of
from eqtp.kernels.codegen.triton_items import items_of
from eqtp.kernels.tensor_product import _cpu as tensor_product_cpu
from eqtp.kernels.tensor_product import reference as definition
from eqtp.nn.tensor_product import TensorProduct
from eqtp.problem import TensorProductProblem

TOLERANCE = 1e-12
"""float64; sums of at most a few hundred terms of size one, gradients of size ten."""

NUM_NODES, NUM_EDGES, NUM_HIDDEN = 5, 17, 3
BACKENDS: list[Backend] = ["cpu", "torch"]
FORMS = ["rows", "shared", "graph", "radial"]


def make_product(backend: Backend = "auto") -> TensorProduct:
    """Two paths into one block, a path without weights, a block of x1 that no path reads."""
    return TensorProduct(
        "3x0e+2x1o+3x1o",
        "0e+1o",
        "3x1o+3x0e+3x1e",
        [
            (0, 1, 0, "uvu", True),
            (2, 0, 0, "uvu", False),
            (2, 1, 1, "uvu", True),
            (2, 1, 2, "uvu", True),
        ],
        shared_weights=False,
        internal_weights=False,
        backend=backend,
    )


def make_graph(num_edges: int = NUM_EDGES, num_nodes: int = NUM_NODES) -> Graph:
    src, dst = torch.randint(num_nodes, (2, num_edges))
    return Graph(src, dst, num_nodes)


def make_operands(
    tp: TensorProduct, num_edges: int = NUM_EDGES, num_nodes: int = NUM_NODES
) -> tuple[Tensor, Tensor, Tensor]:
    """Operands of a product on a graph; of rows if `num_nodes` is `num_edges`."""
    return (
        torch.randn(num_nodes, tp.irreps_in1.dim, requires_grad=True),
        torch.randn(num_edges, tp.irreps_in2.dim, requires_grad=True),
        torch.randn(num_edges, tp.weight_numel, requires_grad=True),
    )


def value_and_gradients(
    function: Callable[..., Tensor], operands: tuple[Tensor, ...]
) -> list[Tensor]:
    out = function(*operands)
    return [out, *torch.autograd.grad((out.sin() * out).sum(), operands)]


def close(ours: Any, expected: Any) -> None:
    scale = max(float(t.detach().abs().max()) for t in expected if t.numel())
    torch.testing.assert_close(list(ours), list(expected), rtol=0, atol=TOLERANCE * max(scale, 1.0))


def op_arguments(form: str, backend: Backend) -> tuple[tuple[Any, ...], list[Tensor], str]:
    """Slots, edges and problem of the ops."""
    tp = make_product(backend)
    graph = make_graph() if form in ("graph", "radial") else None
    rows = NUM_NODES if graph is not None else NUM_EDGES
    x, y, w = make_operands(tp, NUM_EDGES, rows)
    m = None
    if form == "radial":
        w = torch.randn(NUM_EDGES, NUM_HIDDEN, requires_grad=True)
        m = torch.randn(NUM_HIDDEN, tp.weight_numel, requires_grad=True)
    if form == "shared":
        w = w[:1].detach().requires_grad_()
    return (x, y, w, m), edges_of(graph, backend), tp.problem.text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str, backend: Backend) -> None:
    if form == "radial" and not _ops.takes_radial(backend):
        pytest.skip("no kernel for radial factors")
    slots, edges, problem = op_arguments(form, backend)
    dim_out = make_product().irreps_out.dim
    num_dst = NUM_NODES if edges else NUM_EDGES
    g = torch.randn(num_dst, dim_out, requires_grad=True)
    v = [None if t is None else torch.randn_like(t).requires_grad_() for t in slots]
    given = [t is not None for t in slots]
    ops, product = torch.ops.eqtp, (problem, backend)
    for op, arguments in (
        (ops.channelwise, (*slots, edges, num_dst, *product)),
        (ops.channelwise_backward, (g, *slots, edges, *product, given)),
        (ops.channelwise_backward, (g, *slots, edges, *product, [False, True, False, False])),
        (ops.channelwise_double_backward, (*v, g, *slots, edges, *product, [True, *given])),
        (
            ops.channelwise_double_backward,
            (
                None,
                v[1],
                None,
                None,
                g,
                *slots,
                edges,
                *product,
                [False, False, True, False, False],
            ),
        ),
    ):
        torch.library.opcheck(op.default, arguments)


def test_opcheck_of_edges() -> None:
    graph = make_graph()
    for backend in (*BACKENDS, "triton"):
        arguments = (graph.edge_src, graph.edge_dst, NUM_NODES, NUM_NODES, backend)
        torch.library.opcheck(torch.ops.eqtp.edges.default, arguments)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("num_edges", [0, 10, 2000])
def test_a_graph_survives_its_tensors(num_edges: int, dtype: torch.dtype) -> None:
    src, dst = torch.randint(NUM_NODES, (2, num_edges), dtype=dtype)
    graph = Graph(src, dst, NUM_NODES + 1, NUM_NODES)
    size, chunk = (graph.num_src, graph.num_dst), chunk_edges(num_edges)
    copies = {name: graph_of(edges_of(graph, name), *size, name) for name in ("cpu", "triton")}
    cpu, triton = copies["cpu"], copies["triton"]
    assert cpu is not None
    assert triton is not None
    assert set(vars(cpu)) >= {"by_receiver"}
    pairs = [*zip(graph.by_receiver, cpu.by_receiver, strict=True)]
    pairs += zip(graph.sender_sums(chunk), cpu.sender_sums(chunk), strict=True)
    for end in ("receiver", "sender"):
        items, same = items_of(graph, end), items_of(triton, end)
        assert same.number == items.number
        assert (same.pointers is None) == (items.pointers is None)
        pairs += [(t, same.tensors[name]) for name, t in items.tensors.items()]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_problem_survives_its_text() -> None:
    problem = make_product().problem
    assert TensorProductProblem.of_text(problem.text) == problem


def test_families_cut_edges_alike() -> None:
    """Else the sums at senders that ops are given would not be those that kernels ask for."""
    for number in (0, 1, 17, 2048, 100_000, 10_000_000):
        cut = {module.chunk_edges(number) for module in (channelwise_cpu, tensor_product_cpu)}
        assert cut == {chunk_edges(number)}


@pytest.mark.parametrize("name", ["graph", "rows"])
def test_radial_factors_to_third_order(name: str) -> None:
    tp, graph = make_product("cpu"), make_graph(6)
    x1, x2, _ = make_operands(tp, 6, NUM_NODES if name == "graph" else 6)
    given = graph if name == "graph" else None
    hidden = torch.randn(6, NUM_HIDDEN, requires_grad=True)
    matrix = torch.randn(NUM_HIDDEN, tp.weight_numel, requires_grad=True)
    operands = (x1, x2, hidden, matrix)

    def ours(x1: Tensor, x2: Tensor, hidden: Tensor, matrix: Tensor) -> Tensor:
        return channelwise_tensor_product(
            x1, x2, None, tp.problem, radial=(hidden, matrix), graph=given, backend="cpu"
        )

    def exact(x1: Tensor, x2: Tensor, hidden: Tensor, matrix: Tensor) -> Tensor:
        return definition.tensor_product(x1, x2, hidden @ matrix, tp.problem, graph=given)

    values: list[Tensor] = [(f(*operands) ** 2).sum() for f in (ours, exact)]
    for _ in range(3):
        pair = [torch.autograd.grad(value, operands, create_graph=True) for value in values]
        close(*pair)
        values = [sum(((t / 10) ** 3).sum() for t in grads) for grads in pair]  # type: ignore[misc]


def test_third_order_runs_kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The derivative of the second gradients along four directions is four of them."""
    tp, graph = make_product("cpu"), make_graph()
    operands = make_operands(tp)
    value = tp(*operands, graph=graph).pow(2).sum()
    for _ in range(2):
        grads = torch.autograd.grad(value, operands, create_graph=True)
        value = torch.stack([t.pow(3).sum() for t in grads]).sum()
    wanted = wanted_results(monkeypatch)
    torch.autograd.grad(grads[0].sum(), operands)
    assert sum(names[0].endswith("2") for names in wanted) >= 4


def wanted_results(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the C++ backend is asked for, call by call."""
    run, made = _cpu.run, []

    def record(problem: Any, graph: Any, operands: Any, wanted: list[str]) -> Any:
        made.append(wanted)
        return run(problem, graph, operands, wanted)

    monkeypatch.setattr(_cpu, "run", record)
    return made


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on forces: weights need gradients, yet the pass of the forces is not for them."""
    tp, graph = make_product("cpu"), make_graph()
    x1, positions, weight = make_operands(tp)
    wanted = wanted_results(monkeypatch)
    energy = tp(x1, positions.sin(), weight.exp(), graph=graph).pow(2).sum()
    (force,) = torch.autograd.grad(energy, positions, create_graph=True)
    assert wanted == [["out"], ["grad_y"]]
    torch.autograd.grad(force.pow(2).sum(), weight)
    assert sorted(wanted[2:]) == [["grad_g2", "grad_w2"], ["grad_w"]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["rows", "given", "closure", "made", "used_before"])
def test_compiles_as_one_graph(how: str, backend: Backend) -> None:
    tp, graph = make_product(backend), make_graph()
    operands = make_operands(tp, NUM_EDGES, NUM_EDGES if how == "rows" else NUM_NODES)
    if how == "used_before":
        tp(*operands, graph=graph)
    src, dst = graph.edge_src, graph.edge_dst

    functions: dict[str, Callable[..., Tensor]] = {
        "given": lambda x1, x2, w, g, s, d: tp(x1, x2, w, graph=g),
        "rows": lambda x1, x2, w, g, s, d: tp(x1, x2, w),
        "closure": lambda x1, x2, w, g, s, d: tp(x1, x2, w, graph=graph),
        "made": lambda x1, x2, w, g, s, d: tp(x1, x2, w, graph=Graph(s, d, x1.shape[0])),
    }
    function = functions["given" if how == "used_before" else how]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    ours = value_and_gradients(lambda *t: compiled(*t, graph, src, dst), operands)
    expected = value_and_gradients(lambda *t: function(*t, graph, src, dst), operands)
    close(ours, expected)


def test_two_layers_in_one_compiled_function() -> None:
    """Each product is a constant of its own, and the graph's orders are made once."""
    first = make_product("cpu")
    second = TensorProduct(
        first.irreps_out, "0e+1o", "3x0e", [(0, 1, 0, "uvu", True)], backend="cpu"
    )
    graph = make_graph()
    operands = make_operands(first)

    def function(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = second(first(x1, x2, weight, graph=graph), x2, graph=graph)
        return out

    made: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        made.extend(str(node.target) for node in module.graph.nodes if "edges" in str(node.target))
        return module.forward

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    close([compiled(*operands)], [function(*operands)])
    assert len(made) == 1


def test_one_program_for_any_number_of_edges() -> None:
    tp, counter = make_product("cpu"), CompileCounterWithBackend("aot_eager")

    def function(x1: Tensor, x2: Tensor, w: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        out: Tensor = tp(x1, x2, w, graph=Graph(src, dst, x1.shape[0]))
        return out

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for num_edges, num_nodes in ((17, 5), (40, 5), (3, 9), (6000, 30)):
        graph = make_graph(num_edges, num_nodes)
        edges = graph.edge_src, graph.edge_dst
        operands = make_operands(tp, num_edges, num_nodes)
        for tensor in (*operands, *edges):
            torch._dynamo.mark_dynamic(tensor, 0)
        ours = value_and_gradients(lambda *t, e=edges: compiled(*t, *e), operands)
        close(ours, value_and_gradients(lambda *t, e=edges: function(*t, *e), operands))
    assert counter.frame_count == 1


def test_one_program_for_all_graphs_given() -> None:
    tp, counter = make_product("cpu"), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *t: tp(*t[:3], graph=t[3]), fullgraph=True, backend=counter, dynamic=True
    )
    for num_edges, num_nodes in ((17, 5), (40, 5), (3, 9), (6000, 30)):
        graph = make_graph(num_edges, num_nodes)
        operands = make_operands(tp, num_edges, num_nodes)
        ours = value_and_gradients(lambda *t, g=graph: compiled(*t, g), operands)
        close(ours, value_and_gradients(lambda *t, g=graph: tp(*t, graph=g), operands))
    assert counter.frame_count == 1


def test_edges_are_checked_in_compiled_functions() -> None:
    tp = make_product("cpu")
    operands = make_operands(tp)
    src, dst = torch.randint(NUM_NODES, (2, NUM_EDGES))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(src: Tensor, dst: Tensor) -> Tensor:
        out: Tensor = tp(*operands, graph=Graph(src, dst, NUM_NODES))
        return out

    function(src, dst)
    with pytest.raises(ValueError, match=r"edge_src must hold node indices in \[0, 5\)"):
        function(src + 1, dst)


def forces(tp: TensorProduct, graph: Graph) -> Callable[..., Tensor]:
    def function(x1: Tensor, x2: Tensor, weight: Tensor) -> Tensor:
        def energy(x2: Tensor) -> Tensor:
            return tp(x1, x2, weight, graph=graph).sin().sum()  # type: ignore[no-any-return]

        force: Tensor = torch.func.grad(energy)(x2)
        return force

    return function


def test_training_on_forces_compiles_with_func_grad() -> None:
    """The derivative inside of the compiled function, the parameters' outside."""
    function = forces(make_product("cpu"), make_graph())
    operands = make_operands(make_product())
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    close(value_and_gradients(compiled, operands), value_and_gradients(function, operands))


def test_second_gradients_do_not_pass_compiled_functions() -> None:
    """torch's rule, not ours; when it falls, the documentation is to be changed."""
    tp, graph = make_product("cpu"), make_graph()
    x1, x2, weight = make_operands(tp)
    compiled = torch.compile(lambda *t: tp(*t, graph=graph), fullgraph=True, backend="aot_eager")
    energy = compiled(x1, x2, weight).pow(2).sum()
    (force,) = torch.autograd.grad(energy, x2, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        force.sum().backward()


@pytest.mark.slow
def test_inductor() -> None:
    tp, graph = make_product("cpu"), make_graph()
    operands = make_operands(tp)

    def function(*t: Tensor) -> Tensor:
        return tp(*t, graph=graph).sin() * 2  # type: ignore[no-any-return]

    compiled = torch.compile(function, fullgraph=True)
    close(value_and_gradients(compiled, operands), value_and_gradients(function, operands))


class Layer(nn.Module):
    """A module with a product, as a user writes it."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.tp = make_product(backend)

    def forward(self, x1: Tensor, x2: Tensor, weight: Tensor, graph: Graph) -> Tensor:
        out: Tensor = self.tp(x1, x2, weight, graph=graph)
        return out


class LayerOfEdges(Layer):
    """The same with edges as tensors."""

    def forward(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor, weight: Tensor, src: Tensor, dst: Tensor
    ) -> Tensor:
        return super().forward(x1, x2, weight, Graph(src, dst, x1.shape[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_any_number_of_edges(strict: bool, backend: Backend) -> None:
    layer, dim = LayerOfEdges(backend), torch.export.Dim
    edges, nodes = dim("edges", min=2), dim("nodes", min=2)

    def arguments(num_edges: int, num_nodes: int) -> tuple[Tensor, ...]:
        graph = make_graph(num_edges, num_nodes)
        operands = make_operands(layer.tp, num_edges, num_nodes)
        return *(t.detach() for t in operands), graph.edge_src, graph.edge_dst

    program = torch.export.export(
        layer,
        arguments(17, 5),
        dynamic_shapes=({0: nodes}, {0: edges}, {0: edges}, {0: edges}, {0: edges}),
        strict=strict,
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for sizes in ((17, 5), (40, 9)):
        given = arguments(*sizes)
        close([loaded(*given)], [layer(*given)])


def test_exports_with_a_graph_as_input() -> None:
    layer, graph = Layer("cpu"), make_graph()
    operands = tuple(t.detach() for t in make_operands(layer.tp))
    program = torch.export.export(layer, (*operands, graph))
    other = make_graph()
    close([program.module()(*operands, other)], [layer(*operands, other)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_func_grad_of_grad(backend: Backend) -> None:
    tp = make_product(backend)
    operands = make_operands(tp)
    plain = tuple(t.detach() for t in operands)

    def energy(graph: Graph) -> Callable[..., Tensor]:
        return lambda *t: tp(*t, graph=graph).sin().sum()

    def loss(*t: Tensor) -> Tensor:
        grads = torch.func.grad(energy(fresh), (0, 1, 2))(*t)
        return torch.stack([g.pow(3).sum() for g in grads]).sum()

    graph = make_graph()
    fresh = Graph(graph.edge_src, graph.edge_dst, NUM_NODES)  # its orders are made inside
    grads = torch.autograd.grad(energy(graph)(*operands), operands, create_graph=True)
    expected = torch.autograd.grad(torch.stack([g.pow(3).sum() for g in grads]).sum(), operands)
    close(torch.func.grad(loss, (0, 1, 2))(*plain), expected)
    close(torch.func.grad(energy(fresh), (0, 1, 2))(*plain), [g.detach() for g in grads])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_vmap(form: str, backend: Backend) -> None:
    tp, graph, batch = make_product(backend), make_graph(), 3
    on_graph = form in ("graph", "radial")
    rows = NUM_NODES if on_graph else NUM_EDGES
    x1 = torch.randn(batch, rows, tp.irreps_in1.dim)
    x2 = torch.randn(NUM_EDGES, batch, tp.irreps_in2.dim)
    weight = torch.randn(tp.weight_numel) if form == "shared" else make_operands(tp)[2].detach()
    matrix = torch.randn(NUM_HIDDEN, tp.weight_numel)
    weight = weight[:, :NUM_HIDDEN] if form == "radial" else weight

    def product(x1: Tensor, x2: Tensor, w: Tensor) -> Tensor:
        return channelwise_tensor_product(
            x1,
            x2,
            None if form == "radial" else w,
            tp.problem,
            radial=(w, matrix) if form == "radial" else None,
            graph=graph if on_graph else None,
            backend=backend,
        )

    def gradients(*t: Tensor) -> tuple[Tensor, ...]:
        grads: tuple[Tensor, ...] = torch.func.grad(lambda *t: product(*t).sin().sum(), (0, 1, 2))(
            *t
        )
        return grads

    def in_one(x1: Tensor) -> Tensor:
        return torch.vmap(product, (0, 1, None))(x1, x2, weight).sin().sum()

    each = [(x1[i], x2[:, i], weight) for i in range(batch)]
    close(torch.vmap(product, (0, 1, None))(x1, x2, weight), [product(*t) for t in each])
    ours = torch.vmap(gradients, (0, 1, None))(x1, x2, weight)
    expected = [torch.stack(t) for t in zip(*(gradients(*t) for t in each), strict=True)]
    close(ours, expected)
    close([torch.func.grad(in_one)(x1)], [expected[0]])


@pytest.mark.parametrize("radial", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_float32(backend: Backend, radial: bool) -> None:
    tp, graph = make_product(backend), make_graph()
    x1, x2, weight = (t.detach().float().requires_grad_() for t in make_operands(tp))
    hidden = torch.randn(NUM_EDGES, NUM_HIDDEN, dtype=torch.bfloat16)
    matrix = torch.randn(NUM_HIDDEN, tp.weight_numel, dtype=torch.float32)
    half = x2.detach().bfloat16()  # what a layer under autocast hands on

    def product(x2: Tensor, hidden: Tensor) -> Tensor:
        given: dict[str, Any] = {"radial": (hidden, matrix)} if radial else {"weight": weight}
        out: Tensor = tp(x1, x2, graph=graph, **given)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        ours = product(half, hidden)
        (ours_grad,) = torch.autograd.grad(ours.pow(2).sum(), x1)
    exact = product(half.float(), hidden.float())
    (exact_grad,) = torch.autograd.grad(exact.pow(2).sum(), x1)
    assert ours.dtype == ours_grad.dtype == torch.float32
    assert torch.equal(ours, exact)
    assert torch.equal(ours_grad, exact_grad)


def test_edges_are_made_once() -> None:
    graph = make_graph()
    first, second = edges_of(graph, "cpu"), edges_of(graph, "cpu")
    assert all(a is b for a, b in zip(first, second, strict=True))
