"""Who computes a tensor product: eqtp's methods and backends, e3nn, cuEquivariance and others.

Operands are x1, x2 and weight; with a graph x1 is taken at the senders, and the results are summed
at the receivers, gather and sum inside the timing. Modules are made before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.benchmarks.harness.case import Contestant, Function
from eqtp.benchmarks.harness.providers import require
from eqtp.graph import Graph
from eqtp.irreps import Irreps
from eqtp.kernels.tensor_product import reference
from eqtp.layout import Layout, to_layout
from eqtp.nn import TensorProduct
from eqtp.problem import TensorProductProblem
from eqtp.so3 import spherical_harmonics, wigner_3j

__all__ = [
    "backends",
    "cuequivariance",
    "e3nn",
    "eqtp_product",
    "openequivariance",
    "rivals",
]

Make = Callable[[], Contestant]
Tensors = Mapping[str, Tensor]


def eqtp_product(
    problem: TensorProductProblem,
    *,
    backend: Backend = "auto",
    method: str = "cg",
    layout: Layout = "mul_ir",
    vectors: bool = False,
    bilinear_map: bool = False,
    **options: Any,
) -> Make:
    """Eqtp's own, by method and backend.

    Args:
        problem: The product, as "cg" has it.
        backend: Passed on.
        method: Passed on; where its weights are its own, they are drawn for it.
        layout: Of x1 and the result.
        vectors: The case's x2 are edge vectors; methods that want harmonics make them, in the
            timing.
        bilinear_map: Whether the dimension of the bilinear maps is found; slow for many channels.
        **options: More arguments of `TensorProduct`.
    """

    def make() -> Contestant:
        if backend == "triton" and not torch.cuda.is_available():
            raise NotImplementedError("the Triton kernels need a GPU")
        tp = TensorProduct(
            problem.irreps_in1,
            problem.irreps_in2,
            problem.irreps_out,
            problem.instructions,
            internal_weights=False,
            method=method,
            backend=backend,
            layout=layout,
            **options,
        )
        takes_vectors = tp.evaluator.dim2 != problem.dims[1]
        if takes_vectors and not vectors:
            raise NotImplementedError(f"method {method!r} takes edge vectors, not any x2")
        harmonics = _harmonics(problem) if vectors else None

        def call(tensors: Tensors, graph: Any) -> Tensor:
            x2 = tensors["x2"]
            if harmonics is not None and not takes_vectors:
                x2 = harmonics(x2)
            out: Tensor = tp(tensors["x1"], x2, tensors.get("weight"), graph=graph)
            return out

        def definition(tensors: Tensors, graph: Any) -> Tensor:
            weight = tensors.get("weight")
            if weight is not None:
                weight = tp.effective_path_weights(weight)
            x2 = tensors["x2"] if harmonics is None else harmonics(tensors["x2"])
            return reference.tensor_product(
                tensors["x1"], x2, weight, problem, graph=graph, layout=layout
            )

        def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            own = dict(tensors)
            own["x1"] = to_layout(tensors["x1"], problem.irreps_in1, "mul_ir", layout)
            if not takes_vectors and harmonics is None:
                own["x2"] = to_layout(tensors["x2"], problem.irreps_in2, "mul_ir", layout)
            if method not in ("cg", "so2") and "weight" in own:
                own["weight"] = _normal_like(own["weight"], tp.weight_numel)
            return own

        return Contestant(
            call,
            definition,
            adapt,
            paths=_num_paths(tp),
            expressivity=_expressivity(tp) if bilinear_map else None,
            about=tp.explain(),
        )

    return make


def _num_paths(tp: TensorProduct) -> int:
    """The paths of the problem that the method has."""
    has_path = tp.evaluator.method.has_path
    return sum(has_path(*tp.problem.degrees(path)) for path in tp.problem.paths)


def _expressivity(tp: TensorProduct) -> int | None:
    """The dimension of the bilinear maps, where this version of eqtp counts it."""
    from eqtp import so3

    count = getattr(so3, "expressivity", None)
    return None if count is None else int(count(tp))


def _normal_like(weight: Tensor, numel: int) -> Tensor:
    """Weights of another number of columns, as many rows."""
    generator = torch.Generator(device=weight.device).manual_seed(2)
    shape = (*weight.shape[:-1], numel)
    return torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)


def _harmonics(problem: TensorProductProblem) -> Callable[[Tensor], Tensor]:
    """Component-normalised harmonics of vectors, one block per block of irreps_in2."""
    degrees = [ir.l for _, ir in problem.irreps_in2]
    lmax = max(degrees)

    def harmonics(vectors: Tensor) -> Tensor:
        y = spherical_harmonics(lmax, vectors)
        if degrees == list(range(lmax + 1)):
            return y
        return torch.cat([y[:, l * l : (l + 1) ** 2] for l in degrees], dim=1)

    return harmonics


def plain(problem: TensorProductProblem, *, vectors: bool = False) -> Function:
    """The definition as a function of a case's operands."""
    harmonics = _harmonics(problem) if vectors else None

    def definition(tensors: Tensors, graph: Any) -> Tensor:
        x2 = tensors["x2"] if harmonics is None else harmonics(tensors["x2"])
        return reference.tensor_product(
            tensors["x1"], x2, tensors.get("weight"), problem, graph=graph
        )

    return definition


def backends(
    problem: TensorProductProblem, *, plain: bool = False, **options: Any
) -> dict[str, Make]:
    """The backends of eqtp's "cg"; `plain`: the slow definition as well."""
    names: list[Backend] = ["cpu", "triton", "torch"]
    if plain:
        names.append("reference")
    return {f"eqtp {name}": eqtp_product(problem, backend=name, **options) for name in names}


def e3nn(
    problem: TensorProductProblem,
    *,
    compiled: bool = False,
    vectors: bool = False,
    shared_weights: bool = False,
) -> Make:
    """e3nn's TensorProduct, eager as it is by default or through torch.compile."""

    def make() -> Contestant:
        o3 = require("e3nn", "e3nn.o3")
        tp: Any = o3.TensorProduct(
            problem.irreps_in1,
            problem.irreps_in2,
            problem.irreps_out,
            problem.instructions,
            shared_weights=shared_weights,
            internal_weights=False,
        )
        product = torch.compile(tp) if compiled else tp
        harmonics = _harmonics(problem) if vectors else None

        def call(tensors: Tensors, graph: Any) -> Tensor:
            x2 = tensors["x2"] if harmonics is None else harmonics(tensors["x2"])
            x1, weight = tensors["x1"], tensors.get("weight")
            return on_edges(lambda x1: product(x1, x2, weight), x1, graph)

        def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            tp.to(tensors["x1"])  # its constants are buffers
            return dict(tensors)

        definition = plain(problem, vectors=vectors)
        return Contestant(call, definition, adapt, paths=len(problem.paths), about=repr(tp))

    return make


def compiled_reference(problem: TensorProductProblem, *, vectors: bool = False) -> Make:
    """The definition through torch.compile, as a graph of tensor operations.

    The graph is recorded once per shape: the constants are looked up in Python, which dynamo would
    go through instruction by instruction.
    """

    def make() -> Contestant:
        from torch.fx.experimental.proxy_tensor import make_fx

        definition = plain(problem, vectors=vectors)
        recorded: dict[Any, tuple[Any, Callable[..., Tensor]]] = {}

        def call(tensors: Tensors, graph: Any) -> Tensor:
            names, operands = list(tensors), list(tensors.values())
            key = (tuple(operand.shape for operand in operands), id(graph))
            if key not in recorded:

                def positional(*values: Tensor) -> Tensor:
                    return definition(dict(zip(names, values, strict=True)), graph)

                examples = [operand.detach() for operand in operands]
                recorded[key] = graph, torch.compile(make_fx(positional)(*examples))
            return recorded[key][1](*operands)

        return Contestant(
            call,
            definition,
            paths=len(problem.paths),
            about="torch.compile of kernels/tensor_product/reference.py",
        )

    return make


def on_edges(product: Callable[[Tensor], Tensor], x1: Tensor, graph: Graph | None) -> Tensor:
    """Gather, product, sum at receivers, for those that have no form of their own for it."""
    if graph is None:
        return product(x1)
    messages = product(x1.index_select(0, graph.edge_src))
    out = messages.new_zeros(graph.num_dst, messages.shape[1])
    return out.index_add(0, graph.edge_dst, messages)


@cache
def _cue_group() -> Any:
    """CuEquivariance's O(3) with eqtp's (e3nn's) constants, as mace-torch has it."""
    cue = require("cuequivariance", "cuequivariance")
    import numpy as np

    class O3(cue.O3):  # type: ignore[misc, name-defined]
        def __mul__(self, other: Any) -> list[Any]:
            return [O3(l=ir.l, p=ir.p) for ir in cue.O3.__mul__(self, other)]

        @classmethod
        def clebsch_gordan(cls, rep1: Any, rep2: Any, rep3: Any) -> Any:
            rep1, rep2, rep3 = (cls._from(rep) for rep in (rep1, rep2, rep3))
            if rep1.p * rep2.p != rep3.p:
                return np.zeros((0, rep1.dim, rep2.dim, rep3.dim))
            constants = wigner_3j(rep1.l, rep2.l, rep3.l) * rep3.dim**0.5
            return constants.numpy()[None]

        def __lt__(self, other: Any) -> bool:
            other = self._from(other)
            return bool((self.l, self.p) < (other.l, other.p))

        @classmethod
        def iterator(cls) -> Any:
            for degree in range(100):
                natural = (-1) ** degree
                yield O3(l=degree, p=natural)
                yield O3(l=degree, p=-natural)

    return O3


def cuequivariance(problem: TensorProductProblem, *, method: str | None = None) -> Make:
    """CuEquivariance's channelwise or fully connected product in its own layout, ir_mul."""

    def make() -> Contestant:
        cuet = require("cuequivariance")
        cue = require("cuequivariance", "cuequivariance")
        modes = {path.mode for path in problem.paths}
        group = _cue_group()

        def irreps(of: Irreps) -> Any:
            return cue.Irreps(group, str(of))

        options = {
            "layout": cue.ir_mul,
            "shared_weights": False,
            "internal_weights": False,
            "method": method,
        }
        in1, in2 = irreps(problem.irreps_in1), irreps(problem.irreps_in2)
        own = problem
        if modes == {"uvu"}:
            # Its weights follow the blocks of the result, whatever order the paths have here.
            by_result: list[Any] = sorted(problem.instructions, key=lambda i: i[2])
            own = TensorProductProblem.from_instructions(
                problem.irreps_in1, problem.irreps_in2, problem.irreps_out, by_result
            )
            kept = [group(l=ir.l, p=ir.p) for _, ir in problem.irreps_out.simplify()]
            tp = cuet.ChannelWiseTensorProduct(in1, in2, kept, **options)
        elif modes == {"uvw"}:
            tp = cuet.FullyConnectedTensorProduct(in1, in2, irreps(problem.irreps_out), **options)
        else:
            raise NotImplementedError(f"cuequivariance has no product of the modes {sorted(modes)}")

        def call(tensors: Tensors, graph: Any) -> Tensor:
            weight = torch.atleast_2d(tensors["weight"])  # one row where it is shared
            product: Tensor = on_edges(
                lambda x1: tp(x1, tensors["x2"], weight), tensors["x1"], graph
            )
            return product

        def definition(tensors: Tensors, graph: Any) -> Tensor:
            return reference.tensor_product(
                tensors["x1"],
                tensors["x2"],
                tensors["weight"],
                own,
                graph=graph,
                layout="ir_mul",
            )

        def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            adapted = dict(tensors)
            tp.to(tensors["x1"])
            for name, of in (("x1", problem.irreps_in1), ("x2", problem.irreps_in2)):
                adapted[name] = to_layout(tensors[name], of, "mul_ir", "ir_mul")
            return adapted

        return Contestant(call, definition, adapt, paths=len(problem.paths), about=repr(tp))

    return make


def openequivariance(
    problem: TensorProductProblem, *, on_graph: bool, shared_weights: bool = False
) -> Make:
    """OpenEquivariance's product, with a graph its fused convolution, receiver-sorted."""

    def make() -> Contestant:
        oeq = require("openequivariance")
        dtype = oeq.torch_to_oeq_dtype(torch.get_default_dtype())
        described = oeq.TPProblem(
            require("e3nn", "e3nn.o3").Irreps(str(problem.irreps_in1)),
            require("e3nn", "e3nn.o3").Irreps(str(problem.irreps_in2)),
            require("e3nn", "e3nn.o3").Irreps(str(problem.irreps_out)),
            problem.instructions,
            shared_weights=shared_weights,
            internal_weights=False,
            irrep_dtype=dtype,
            weight_dtype=dtype,
        )
        tp: Any = (
            oeq.TensorProductConv(described, deterministic=False)
            if on_graph
            else oeq.TensorProduct(described)
        )

        def call(tensors: Tensors, graph: Any) -> Tensor:
            operands = tensors["x1"], tensors["x2"], tensors["weight"]
            out: Tensor = (
                tp(*operands) if graph is None else tp(*operands, graph.edge_dst, graph.edge_src)
            )
            return out

        return Contestant(call, plain(problem), paths=len(problem.paths), about=repr(tp))

    return make


def rivals(
    problem: TensorProductProblem,
    *,
    on_graph: bool = False,
    compiled: bool = False,
    shared_weights: bool = False,
) -> dict[str, Make]:
    """Everybody else who computes "cg" products; the compiled ones only on demand: minutes."""
    shared = {"shared_weights": shared_weights}
    found = {"e3nn": e3nn(problem, **shared)}
    if compiled:
        found["e3nn compiled"] = e3nn(problem, compiled=True, **shared)
        found["eqtp reference compiled"] = compiled_reference(problem)
    found["cuequivariance"] = cuequivariance(problem)
    found["openequivariance"] = openequivariance(problem, on_graph=on_graph, **shared)
    return found
