"""Triton source of one kernel with computed weights; `_triton_radial` says how kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from textwrap import indent

from eqtp.kernels.channelwise._triton_source import LIKE as PRODUCT_LIKE
from eqtp.kernels.channelwise._triton_source import Kernel
from eqtp.kernels.codegen.program import Program, Variable
from eqtp.kernels.codegen.triton import print_statements

__all__ = ["FUNCTION", "LIKE", "RadialKernel"]

LIKE = {
    **PRODUCT_LIKE,
    **dict.fromkeys(("h", "vh", "grad_h", "grad_h2"), "h"),
    **dict.fromkeys(("m", "vm", "grad_m", "grad_m2"), "m"),
}
"""The operand that every name is shaped like."""

FUNCTION = "channelwise_radial"

_WEIGHT_TERMS = {"w": [("h", "m")], "vw": [("vh", "m"), ("h", "vm")]}
"""Weights, and their direction, as sums of matrix products."""

_GRADIENT_TERMS = {
    "grad_h": [("grad_w", "m")],
    "grad_h2": [("grad_w2", "m"), ("grad_w", "vm")],
    "grad_m": [("h", "grad_w")],
    "grad_m2": [("h", "grad_w2"), ("vh", "grad_w")],
}
"""Gradients as sums of products: with m turned for those in h, with h turned for those in m."""


@dataclass(frozen=True)
class RadialKernel(Kernel):
    """What one kernel does: `operands` and `results` are those of the paths' programs.

    Values of edges are columns [edges, 1], rows at the node [1, channels], all others
    [edges, channels]; edges behind the last of the node are zeros.

    Attributes:
        factors: The given ones of h, m, vh and vm.
        gradients: The wanted ones of grad_h, grad_m, grad_h2 and grad_m2.
        hidden: Columns of h.
        padded: The same, filled with zeros up to a size that `tl.dot` takes.
        edges: Edges of a tile.
        precision: How `tl.dot` multiplies.
    """

    factors: tuple[str, ...]
    gradients: tuple[str, ...]
    hidden: int
    padded: int
    edges: int
    precision: str

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        used = tuple(name for name in self.used if LIKE[name] != "w")
        index = ("item_node", "item_start", "item_stop", "across", "edge")
        last = ("num_items", "num_rows") if self.rows else (*index, "num_items")
        return (*used, *self.factors, *self.gradients, *last)

    @cached_property
    def num_kept(self) -> int:
        """Number of tiles that live as long as an edge or longer."""
        return super().num_kept + len(self.matrix_sums) * self.padded // self.edges

    @cached_property
    def matrix_sums(self) -> dict[str, tuple[str, int]]:
        """Name -> (result, path) of the gradients in m."""
        return {
            f"{name}_{number}": (name, number)
            for number, program in self.programs
            for name in self.gradients
            if LIKE[name] == "m" and self._terms(name, program)
        }

    @cached_property
    def hidden_sums(self) -> tuple[str, ...]:
        """The gradients in h."""
        return tuple(
            name
            for name in self.gradients
            if LIKE[name] == "h" and any(self._terms(name, program) for _, program in self.programs)
        )

    def _terms(self, name: str, program: Program) -> list[tuple[str, str]]:
        """The products of a gradient that a path has."""
        known = {*self.factors, *(target.name for target in program.targets)}
        return [pair for pair in _GRADIENT_TERMS[name] if known.issuperset(pair)]

    @cached_property
    def _at_node(self) -> str:
        """The kind of rows that all edges of a tile share; of products of rows none."""
        if self.rows:
            return ""
        return "g" if self.end == "receiver" else "x"

    def _load(self, number: int, variable: Variable) -> str:
        kind = LIKE[variable.name]
        mask = {"y": "valid", self._at_node: "inside"}.get(kind, "edge_inside")
        address = self._address(number, variable)
        return f"tl.load({address}, mask={mask}, other=0.0).to({self.real})"

    def _row(self, name: str) -> str:
        problem, kind = self.problem, LIKE[name]
        is_result = name in (*self.results, *self.gradients)
        if kind == self._at_node:
            row = "item_row" if is_result else "node_row"
        else:
            row = "edge_row" if kind in "yh" else "across_row"
        if kind in "yh":
            dim = problem.irreps_in2.dim if kind == "y" else self.hidden
            row = f"({row} * {self.slots} + tl.program_id(1))" if is_result else row
            return f"{name}_row = {name} + {row} * {dim}" + (" + column" if kind == "h" else "")
        dim = problem.irreps_in1.dim if kind == "x" else problem.irreps_out.dim
        return f"{name}_row = {name} + {row} * {dim} + lane"

    @property
    def source(self) -> str:
        """The function."""
        return f"""\
@triton.jit(do_not_specialize=["num_items", "num_rows"])
def {FUNCTION}({", ".join(self.arguments)}):
{indent(self._function(), "    ")}
"""

    def _function(self) -> str:
        matrix_sums = self.matrix_sums
        zeros = f"tl.zeros([{self.padded}, {self.channels}], {self.real})"
        return "\n".join(
            [
                f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
                "lane = lane[None, :]",
                f"inside = lane < {self.mul}",
                f"column = tl.arange(0, {self.padded})[None, :]",
                f"matrix_row = tl.arange(0, {self.padded})[:, None]",
                f"matrix_inside = (matrix_row < {self.hidden}) & inside",
                f"matrix_at = matrix_row * {self.problem.weight_numel} + lane",
                *(f"{name} = {zeros}" for name in matrix_sums),
                "item = tl.program_id(0)",
                "while item < num_items:",
                indent("\n".join(self._item()), "    "),
                "    item += tl.num_programs(0)",
                *(self._store_matrix(name) for name in matrix_sums),
            ]
        )

    def _store_matrix(self, name: str) -> str:
        result, number = self.matrix_sums[name]
        size = self.hidden * self.problem.weight_numel
        start = self.problem.paths[number].weight_start
        address = f"{result} + tl.program_id(0).to(tl.int64) * {size} + {start} + matrix_at"
        return f"tl.store({address}, {name}, mask=matrix_inside)"

    def _item(self) -> Iterator[str]:
        """What a program does for a node, for a piece of a node's edges, or for a tile of rows."""
        yield "item_row = item.to(tl.int64)"
        if self.rows:
            yield f"start = item_row * {self.edges}"
            yield "stop = num_rows"
            yield from self._tile(set())
            return
        yield "node_row = tl.load(item_node + item_row)"
        yield "start = tl.load(item_start + item_row)"
        yield "stop = tl.load(item_stop + item_row)"
        yield from (self._row(name) for name in self.used if LIKE[name] == self._at_node)
        known = set()
        for number, program in self.programs:
            for variable in program.operands:
                name = self._name(number, variable)
                if variable.name in self._kept_operands and name not in known:
                    known.add(name)
                    yield f"{name} = {self._load(number, variable)}"
        yield from self._start_sums(known)
        yield "while start < stop:"
        yield indent("\n".join(self._tile(known)), "    ")
        yield f"    start += {self.edges}"
        yield from self._store_sums("xg", "inside", "tl.sum({}, 0, keep_dims=True)")

    def _start_sums(self, known: set[str]) -> Iterator[str]:
        """Tiles of zeros for the sums over paths, and edges of a node."""
        for name, (result, *_) in self.sums.items():
            if LIKE[result] in "xg":
                known.add(name)
                yield f"{name} = tl.zeros([{self.edges}, {self.channels}], {self.real})"

    def _store_sums(self, kinds: str, mask: str, total: str) -> Iterator[str]:
        for name, (result, variable, number) in self.sums.items():
            if LIKE[result] in kinds:
                address = self._address(number, variable)
                before = f"tl.load({address}, mask={mask}) + " if name in self.begun else ""
                yield f"tl.store({address}, {before}{total.format(name)}, mask={mask})"

    def _tile(self, known: set[str]) -> Iterator[str]:
        """What a program does for a tile of edges."""
        yield f"position = start + tl.arange(0, {self.edges})[:, None]"
        yield "valid = position < stop"
        yield "edge_inside = valid & inside"
        yield f"edge_column = valid & (column < {self.hidden})"
        if self.rows:
            yield "across_row = position"
            yield "edge_row = position"
            yield from self._start_sums(known)
        else:
            yield "across_row = tl.load(across + position, mask=valid, other=0).to(tl.int64)"
            yield "edge_row = tl.load(edge + position, mask=valid, other=0)"
        for name in (*self.used, *self.factors, *self.hidden_sums):
            if LIKE[name] not in ("w", "m", self._at_node):
                yield self._row(name)
        for name in self.factors:
            if LIKE[name] == "h":
                yield f"{name}_tile = {self._load_factor(f'{name}_row', 'edge_column')}"
        for name in self.hidden_sums:
            zeros = f"tl.zeros([{self.edges}, {self.padded}], {self.real})"
            before = f"tl.load({name}_row, mask=edge_column, other=0.0)"
            yield f"{name}_tile = {before if name in self.begun else zeros}"
        kinds = {result for result, *_ in self.sums.values()}
        for number, program in self.programs:
            yield from self._weights(number, program, known)
            yield from print_statements(
                program, partial(self._name, number), partial(self._load, number), kinds, known
            )
            yield from self._gradients(number, program)
        # Stores come last: Triton's pointers may alias, no load moves up across a store.
        for name in self.hidden_sums:
            yield f"tl.store({name}_row, {name}_tile, mask=edge_column)"
        yield from self._store_sums("y", "valid", "tl.sum({}, 1, keep_dims=True)")
        if self.rows:
            yield from self._store_sums("xg", "edge_inside", "{}")

    def _weights(self, number: int, program: Program, known: set[str]) -> Iterator[str]:
        """The slices of m and the weights of a path."""
        read = {variable.name for variable in program.operands}
        weights = {
            name: [pair for pair in _WEIGHT_TERMS[name] if set(pair) <= set(self.factors)]
            for name in ("w", "vw")
            if name in read
        }
        gradients = [pair for name in self.gradients for pair in self._terms(name, program)]
        slices = {b for pair in (*chain.from_iterable(weights.values()), *gradients) for b in pair}
        start = self.problem.paths[number].weight_start
        for name in sorted(slices):
            if LIKE[name] == "m":
                address = f"{name} + {start} + matrix_at"
                yield f"{name}_{number} = {self._load_factor(address, 'matrix_inside')}"
        for name, pairs in weights.items():
            known.add(f"{name}_{number}")
            products = " + ".join(self._dot(f"{a}_tile", f"{b}_{number}") for a, b in pairs)
            yield f"{name}_{number} = {products}"

    def _gradients(self, number: int, program: Program) -> Iterator[str]:
        """What a path adds to the gradients in h and m."""
        for name in self.gradients:
            for a, b in self._terms(name, program):
                if LIKE[name] == "h":
                    yield f"{name}_tile += {self._dot(f'{a}_{number}', f'tl.trans({b}_{number})')}"
                else:
                    yield f"{name}_{number} += {self._dot(f'tl.trans({a}_tile)', f'{b}_{number}')}"

    def _load_factor(self, address: str, mask: str) -> str:
        return f"tl.load({address}, mask={mask}, other=0.0).to({self.real})"

    def _dot(self, a: str, b: str) -> str:
        return f'tl.dot({a}, {b}, input_precision="{self.precision}", out_dtype={self.real})'
