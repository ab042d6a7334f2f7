"""Triton source of one kernel of the channelwise product; `_triton` says how kernels are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from textwrap import indent

from eqtp.kernels.channelwise._program import LIKE, path_program
from eqtp.kernels.codegen.program import Program, Variable
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.codegen.triton_items import End
from eqtp.problem import TensorProductProblem

__all__ = ["FUNCTION", "Kernel"]

FUNCTION = "channelwise"


@dataclass(frozen=True)
class Kernel:
    """What one kernel does: some paths of one multiplicity, for a block of channels.

    Attributes:
        problem: The product.
        paths: Numbers of the paths.
        end: The end of the edges whose rows are "at the node"; the other end's are "across".
        operands: Names of the operands that are given.
        results: Names of the results.
        begun: Names of the sums that an earlier kernel has begun and this one adds to.
        shared: Whether one row of weights serves all edges.
        rows: Whether a node is a row of every operand, without edges.
        real: Triton's type of the arithmetic.
        channels: Channels of a program.
        slots: Blocks of channels for which the gradient in y has a row.
    """

    problem: TensorProductProblem
    paths: tuple[int, ...]
    end: End
    operands: tuple[str, ...]
    results: tuple[str, ...]
    begun: frozenset[str]
    shared: bool
    rows: bool
    real: str
    channels: int
    slots: int

    @cached_property
    def programs(self) -> tuple[tuple[int, Program], ...]:
        """Every path's number and statements, those without statements left out."""
        return tuple(
            (number, program)
            for number in self.paths
            if (program := self.program(number)).statements
        )

    def program(self, number: int) -> Program:
        """The statements of a path."""
        path = self.problem.paths[number]
        return path_program(
            self.problem.degrees(path),
            path.coefficient,
            path.has_weight,
            self.operands,
            self.results,
        )

    @cached_property
    def mul(self) -> int:
        """Number of channels."""
        return int(self.problem.irreps_in1[self.problem.paths[self.paths[0]].i_in1].mul)

    @cached_property
    def used(self) -> tuple[str, ...]:
        """The operands and results that occur, in the order of the function's arguments."""
        programs = [program for _, program in self.programs]
        names = {v.name for program in programs for v in (*program.operands, *program.targets)}
        return tuple(name for name in (*self.operands, *self.results) if name in names)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The function's arguments."""
        index = ("item_node", "item_start", "item_stop", "across", "edge")
        return (*self.used, *(() if self.rows else index), "num_items")

    @cached_property
    def sums(self) -> dict[str, tuple[str, Variable, int]]:
        """Name -> (result, variable, path) of what is summed over edges or paths."""
        return {
            self._name(number, statement.target): (statement.target.name, statement.target, number)
            for number, program in self.programs
            for statement in program.statements
            if statement.target.name in self.results
            and (LIKE[statement.target.name] != "w" or self.shared)
        }

    @cached_property
    def num_products(self) -> int:
        """Number of products of all statements."""
        return sum(len(s.products) for _, program in self.programs for s in program.statements)

    @cached_property
    def num_kept(self) -> int:
        """Number of registers per channel that live as long as an edge or longer."""
        operands = {
            self._name(number, variable)
            for number, program in self.programs
            for variable in program.operands
            if variable.name in self._kept_operands
        }
        return len(self.sums) + len(operands)

    @cached_property
    def _kept_operands(self) -> set[str]:
        """Operands that are loaded once per node."""
        return {name for name in self.operands if LIKE[name] == "x" and self.end == "sender"}

    def _name(self, number: int, variable: Variable) -> str:
        """Name in the source: operands and results by block, intermediates as they are."""
        path = self.problem.paths[number]
        block = {"x": path.i_in1, "y": path.i_in2, "g": path.i_out, "w": number}
        if variable.name not in LIKE:
            return str(variable)
        return "_".join(map(str, (variable.name, block[LIKE[variable.name]], *variable.indices)))

    def _column(self, number: int, variable: Variable) -> int:
        """Where a component (of the first channel) is in its row."""
        problem, path = self.problem, self.problem.paths[number]
        kind = LIKE[variable.name]
        if kind == "w":
            return path.weight_start
        (component,) = variable.indices
        if kind == "y":
            return int(problem.irreps_in2.slices()[path.i_in2].start) + component
        irreps, block = (
            (problem.irreps_in1, path.i_in1) if kind == "x" else (problem.irreps_out, path.i_out)
        )
        return int(irreps.slices()[block].start) + component * self.mul

    def _address(self, number: int, variable: Variable) -> str:
        return f"{variable.name}_row + {self._column(number, variable)}"

    def _load(self, number: int, variable: Variable) -> str:
        mask = "" if LIKE[variable.name] == "y" else self._mask(", mask=inside, other=0.0")
        return f"tl.load({self._address(number, variable)}{mask}).to({self.real})"

    def _mask(self, mask: str) -> str:
        return "" if self.mul % self.channels == 0 else mask

    def _row(self, name: str) -> str:
        """The line that points to a row of an operand or a result."""
        problem, kind, is_result = self.problem, LIKE[name], name in self.results
        dims = {
            "x": problem.irreps_in1.dim,
            "y": problem.irreps_in2.dim,
            "w": problem.weight_numel,
            "g": problem.irreps_out.dim,
        }
        at_node = kind == ("g" if self.end == "receiver" else "x")
        row = "edge_row" if kind in "yw" else "across_row"
        if at_node:
            row = "item_row" if is_result else "node_row"
        if kind == "w" and self.shared:
            row = "program_row" if is_result else "0"
        if kind == "y":
            slot = f" * {self.slots} + tl.program_id(1)" if is_result else ""
            return f"{name}_row = {name} + {f'({row}{slot})' if slot else row} * {dims[kind]}"
        return f"{name}_row = {name} + {row} * {dims[kind]} + lane"

    @cached_property
    def source(self) -> str:
        """The function."""
        return f"""\
@triton.jit(do_not_specialize=["num_items"])
def {FUNCTION}({", ".join(self.arguments)}):
{indent(self._function(), "    ")}
"""

    def _function(self) -> str:
        lines = [
            f"lane = tl.program_id(1) * {self.channels} + tl.arange(0, {self.channels})",
            f"inside = lane < {self.mul}",
            "program_row = tl.program_id(0).to(tl.int64)",
            *self._start("w"),
            "item = tl.program_id(0)",
            "while item < num_items:",
            indent("\n".join(self._item()), "    "),
            "    item += tl.num_programs(0)",
            *self._finish("w"),
        ]
        return "\n".join(lines)

    def _item(self) -> Iterator[str]:
        """What a program does for a node, or for a piece of a node's edges."""
        at_node = "g" if self.end == "receiver" else "x"
        yield "item_row = item.to(tl.int64)"
        if self.rows:
            yield "node_row = item_row"
        else:
            yield "node_row = tl.load(item_node + item_row)"
            yield "position = tl.load(item_start + item_row)"
            yield "stop = tl.load(item_stop + item_row)"
        yield from (self._row(name) for name in self.used if LIKE[name] == at_node)
        known = set()
        for number, program in self.programs:
            for variable in program.operands:
                name = self._name(number, variable)
                if variable.name in self._kept_operands and name not in known:
                    known.add(name)
                    yield f"{name} = {self._load(number, variable)}"
        yield from self._start(at_node)
        if self.rows:
            yield "across_row = item_row"
            yield "edge_row = item_row"
            yield from self._edge(known)
        else:
            yield "while position < stop:"
            yield "    across_row = tl.load(across + position).to(tl.int64)"
            yield "    edge_row = tl.load(edge + position)"
            yield indent("\n".join(self._edge(known)), "    ")
            yield "    position += 1"
        yield from self._finish(at_node)

    def _edge(self, known: set[str]) -> Iterator[str]:
        """What a program does for an edge."""
        at_node = "g" if self.end == "receiver" else "x"
        for name in self.used:
            is_shared_sum = self.shared and LIKE[name] == "w" and name in self.results
            if LIKE[name] != at_node and not is_shared_sum:
                yield self._row(name)
        known |= {name for name, (result, *_) in self.sums.items() if LIKE[result] != "y"}
        kinds = {result for result, *_ in self.sums.values()}
        for number, program in self.programs:
            yield from print_statements(
                program,
                partial(self._name, number),
                partial(self._load, number),
                kinds,
                known,
            )
        # Stores come last: Triton's pointers may alias, no load moves up across a store.
        for number, program in self.programs:
            for statement in program.statements:
                target = statement.target
                if target.name in self.results and target.name not in kinds:
                    yield self._store(number, target)
        for name, (result, variable, number) in self.sums.items():
            if LIKE[result] == "y":
                address = self._address(number, variable)
                before = f"tl.load({address}) + " if name in self.begun else ""
                yield f"tl.store({address}, {before}tl.sum({name}, 0))"

    def _start(self, kind: str) -> Iterator[str]:
        """Sums of the results of a kind, from zero or from what an earlier kernel left."""
        for name, (result, variable, number) in self.sums.items():
            if LIKE[result] == kind:
                zeros = f"tl.zeros([{self.channels}], {self.real})"
                begun = name in self.begun
                yield f"{name} = {self._load(number, variable) if begun else zeros}"

    def _finish(self, kind: str) -> Iterator[str]:
        results = {result for result, *_ in self.sums.values() if LIKE[result] == kind}
        if kind == "w":
            yield from (self._row(name) for name in self.results if name in results)
        for result, variable, number in self.sums.values():
            if LIKE[result] == kind:
                yield self._store(number, variable)

    def _store(self, number: int, variable: Variable) -> str:
        value = f"{self._name(number, variable)}.to({variable.name}.dtype.element_ty)"
        return f"tl.store({self._address(number, variable)}, {value}{self._mask(', mask=inside')})"
