"""Triton source of one kernel with computed weights; `_triton_radial` says how kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from textwrap import indent

from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton_source import Kernel
from eqtp.kernels.codegen.program import Program, Variable
from eqtp.kernels.codegen.triton import print_statements

__all__ = ["FUNCTION", "RadialKernel"]

FUNCTION = "channelwise_radial"

BLOCK = 16
"""Columns of h that are multiplied at a time, and rows of a block of the gradients in m: the least
that `tl.dot` takes."""

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
        edges: Edges of a tile.
        precision: How `tl.dot` multiplies.
    """

    factors: tuple[str, ...]
    gradients: tuple[str, ...]
    hidden: int
    edges: int
    precision: str

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        used = tuple(name for name in self.used if LIKE[name] != "w")
        index = ("item_node", "item_start", "item_stop", "across", "edge")
        last = ("num_items", "num_rows") if self.rows else (*index, "num_items")
        return (*used, *self.factors, *self.gradients, *last, "num_hidden")

    @cached_property
    def num_kept(self) -> int:
        """Number of tiles that live as long as an edge or longer."""
        weights = {
            (number, variable)
            for number, program in self.programs
            for variable in (*program.operands, *program.targets)
            if LIKE.get(variable.name) == "w"
        }
        matrix_tiles = len(self.matrix_sums) * BLOCK // self.edges
        return super().num_kept + len(weights) + matrix_tiles

    @cached_property
    def matrix_sums(self) -> dict[str, tuple[str, int, int]]:
        """Name -> (result, path, first row) of the blocks of the gradients in m."""
        return {
            f"{name}_{number}_from_{start}": (name, number, start)
            for number, program in self.programs
            for name in self.gradients
            if LIKE[name] == "m" and self._terms(name, program)
            for start in range(0, self.hidden, BLOCK)
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
            return f"{name}_row = {name} + {row} * {dim}"
        dim = problem.irreps_in1.dim if kind == "x" else problem.irreps_out.dim
        return f"{name}_row = {name} + {row} * {dim} + lane"

    @property
    def source(self) -> str:
        """The function."""
        return f"""\
@triton.jit(do_not_specialize=["num_items", "num_rows", "num_hidden"])
def {FUNCTION}({", ".join(self.arguments)}):
{indent(self._function(), "    ")}
"""

    def _function(self) -> str:
        zeros = f"tl.zeros([{BLOCK}, {self.channels}], {self.real})"
        return "\n".join(
            [
                f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
                "lane = lane[None, :]",
                f"inside = lane < {self.mul}",
                f"few = tl.arange(0, {BLOCK})",
                f"many = tl.arange(0, {self._many})",
                *(f"{name} = {zeros}" for name in self.matrix_sums),
                "item = tl.program_id(0)",
                "while item < num_items:",
                indent("\n".join(self._item()), "    "),
                "    item += tl.num_programs(0)",
                *(self._store_matrix(name) for name in self.matrix_sums),
            ]
        )

    def _store_matrix(self, name: str) -> str:
        result, number, start = self.matrix_sums[name]
        numel, column = self.problem.weight_numel, self.problem.paths[number].weight_start
        row = f"({start} + few[:, None])"
        part = f"tl.program_id(0).to(tl.int64) * {self.hidden * numel}"
        mask = f"({row} < {self.hidden}) & inside"
        return (
            f"tl.store({result} + {part} + {row} * {numel} + {column} + lane, {name}, mask={mask})"
        )

    @property
    def _many(self) -> int:
        """Columns of a block of the gradients in h: more than rows, see `_matrix_gradients`."""
        return 2 * self.edges

    def _load_hidden(self, name: str, start: int | str, lanes: str = "few") -> str:
        """A block of columns of h."""
        address = f"{name}_row + {start} + {lanes}[None, :]"
        return self._load_masked(address, self._within(start, lanes))

    def _within(self, start: int | str, lanes: str = "few") -> str:
        """Which elements of a block of columns of h there are."""
        return f"valid & ({start} + {lanes}[None, :] < {self.hidden})"

    def _load_matrix(self, name: str, number: int, lanes: str = "few") -> str:
        """A block of rows of a path's columns of m."""
        numel, column = self.problem.weight_numel, self.problem.paths[number].weight_start
        row = f"(first + {lanes}[:, None])"
        mask = f"({row} < {self.hidden}) & inside"
        return self._load_masked(f"{name} + {row} * {numel} + {column} + lane", mask)

    def _load_masked(self, address: str, mask: str) -> str:
        return f"tl.load({address}, mask={mask}, other=0.0).to({self.real})"

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
        yield from self._weights(known)
        kinds = {result for result, *_ in self.sums.values()}
        for number, program in self.programs:
            yield from print_statements(
                program, partial(self._name, number), partial(self._load, number), kinds, known
            )
        # Stores come last: Triton's pointers may alias, no load moves up across a store.
        yield from self._store_sums("y", "valid", "tl.sum({}, 1, keep_dims=True)")
        if self.rows:
            yield from self._store_sums("xg", "edge_inside", "{}")
        # Without this condition, which holds, Triton computes the gradients in w once more for
        # every matrix product, in the layout of its operands: twice the registers.
        for number, program in self.programs:
            for name in ("grad_w", "grad_w2"):
                if Variable(name) in program.targets:
                    value = f"{name}_{number}"
                    yield f"{value} = tl.where(start >= 0, {value}, 0.0)"
        yield from self._hidden_gradients()
        yield from self._matrix_gradients()

    def _weights(self, known: set[str]) -> Iterator[str]:
        """The weights of all paths. A block of h serves them all and is then forgotten."""
        products = [
            (number, f"{name}_{number}", a, b)
            for number, program in self.programs
            for name in ("w", "vw")
            if Variable(name) in program.operands
            for a, b in _WEIGHT_TERMS[name]
            if {a, b} <= set(self.factors)
        ]
        if not products:
            return
        for target in dict.fromkeys(target for _, target, _, _ in products):
            known.add(target)
            yield f"{target} = tl.zeros([{self.edges}, {self.channels}], {self.real})"
        # num_hidden is a constant of the source but comes as a number: the assembler unrolls loops
        # whose length it knows, here to 255 registers and spills where 158 to 222 do (sm_80).
        yield f"for first in range(0, num_hidden, {BLOCK}):"
        for a in dict.fromkeys(a for _, _, a, _ in products):
            yield f"    {a}_block = {self._load_hidden(a, 'first')}"
        for number, b in dict.fromkeys((number, b) for number, _, _, b in products):
            yield f"    {b}_{number}_block = {self._load_matrix(b, number)}"
        for number, target, a, b in products:
            yield f"    {target} += {self._dot(f'{a}_block', f'{b}_{number}_block')}"

    def _hidden_gradients(self) -> Iterator[str]:
        """What all paths add to the gradients in h."""
        terms = self._all_terms("h")
        if not terms:
            return
        yield f"for first in range(0, num_hidden, {self._many}):"
        for name in self.hidden_sums:
            zeros = f"tl.zeros([{self.edges}, {self._many}], {self.real})"
            before = self._load_hidden(name, "first", "many")
            yield f"    {name}_block = {before if name in self.begun else zeros}"
        for number, b in dict.fromkeys((number, b) for number, _, _, b in terms):
            yield f"    {b}_{number}_block = {self._load_matrix(b, number, 'many')}"
        for number, name, a, b in terms:
            product = self._dot(f"{a}_{number}", f"tl.trans({b}_{number}_block)")
            yield f"    {name}_block += {product}"
        for name in self.hidden_sums:
            address, mask = f"{name}_row + first + many[None, :]", self._within("first", "many")
            yield f"    tl.store({address}, {name}_block, mask={mask})"

    def _matrix_gradients(self) -> Iterator[str]:
        """What all paths add to the gradients in m.

        Triton divides products that it finds to be related alike among the warps, by rows if the
        first has as many rows as columns: then warps would do the same work twice.
        """
        terms = self._all_terms("m")
        for start in range(0, self.hidden, BLOCK):
            for a in dict.fromkeys(a for _, _, a, _ in terms):
                block = self._load_hidden(a, start)
                yield f"{a}_turned = tl.trans({block})"
            for number, name, a, b in terms:
                product = self._dot(f"{a}_turned", f"{b}_{number}")
                yield f"{name}_{number}_from_{start} += {product}"

    def _all_terms(self, kind: str) -> list[tuple[int, str, str, str]]:
        """(path, result, factor, factor) of the gradients in h or in m."""
        return [
            (number, name, a, b)
            for number, program in self.programs
            for name in self.gradients
            if LIKE[name] == kind
            for a, b in self._terms(name, program)
        ]

    def _dot(self, a: str, b: str) -> str:
        return f'tl.dot({a}, {b}, input_precision="{self.precision}", out_dtype={self.real})'
