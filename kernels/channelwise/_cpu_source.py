"""C++ source of one pass of the channelwise product; `_cpu` says what a pass is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from eqtp.kernels.channelwise._program import path_program
from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.problem import Path, TensorProductProblem

__all__ = ["LIKE", "End", "Pass"]

End = Literal["receiver", "sender"]

LIKE = {
    **dict.fromkeys(("x", "vx", "grad_x", "grad_x2"), "x"),
    **dict.fromkeys(("y", "vy", "grad_y", "grad_y2"), "y"),
    **dict.fromkeys(("w", "vw", "grad_w", "grad_w2"), "w"),
    **dict.fromkeys(("g", "out", "grad_g2"), "g"),
}
"""The operand that every name of the program is shaped like."""


@dataclass(frozen=True)
class Pass:
    """What one kernel does.

    Attributes:
        problem: The product.
        end: The end of the edges whose rows are "at the node"; the other end's are "across".
        operands: Names of the operands that are given, sorted.
        results: Names of the results.
        shared: Whether one row of weights serves all edges.
        dtype: float32 or float64.
        tile: Edges per tile.
    """

    problem: TensorProductProblem
    end: End
    operands: tuple[str, ...]
    results: tuple[str, ...]
    shared: bool
    dtype: torch.dtype
    tile: int

    @property
    def source(self) -> str:
        """The whole file."""
        paths = [p for p in self.problem.paths if self.problem.irreps_in1[p.i_in1].mul > 0]
        functions = [self._path(number, path) for number, path in enumerate(paths)]
        calls = [f"    path_{number}(tile);" for number in range(len(paths))]
        return "\n".join(
            [
                cpp.prelude(self.dtype),
                self._tile_type(),
                *functions,
                self._run_tile(calls),
                self._run(),
            ]
        )

    @cached_property
    def _at_node(self) -> str:
        return "g" if self.end == "receiver" else "x"

    @cached_property
    def _rows(self) -> list[str]:
        """Operands and results that are rows of memory; those of y are kept turned instead."""
        return [name for name in (*self.operands, *self.results) if LIKE[name] != "y"]

    @cached_property
    def _dims(self) -> dict[str, int]:
        problem = self.problem
        return {
            "x": problem.irreps_in1.dim,
            "y": problem.irreps_in2.dim,
            "w": 0 if self.shared else problem.weight_numel,
            "g": problem.irreps_out.dim,
        }

    def _tile_type(self) -> str:
        """The arguments, and what a tile keeps of them."""
        constants = "enum {{ {}, TILE = {}, NODE = {} }};".format(
            ", ".join(f"DIM_{like.upper()} = {dim}" for like, dim in self._dims.items()),
            self.tile,
            self._dims[self._at_node],
        )
        members = [
            f"    {self._const(name)}real* {name}[TILE];  // {self._place(name)}"
            for name in self._rows
        ]
        members += [
            f"    alignas(64) real {name}[DIM_Y][TILE];"
            for name in self.operands
            if LIKE[name] == "y"
        ]
        members += [f"    vec {name}[TILE][DIM_Y];" for name in self.results if LIKE[name] == "y"]
        pointers = [f"{self._const(name)}real* {name};" for name in self._arguments]
        return "\n".join(
            [
                constants,
                "struct Arguments {",
                *(f"    {pointer}" for pointer in pointers),
                "    const int64_t *node, *across, *edge;",
                "    real* carry;",
                "};",
                "struct Tile {",
                "    int size, nodes, start[TILE + 1];  // edges start[n] ... of node n",
                *members,
                "};",
            ]
        )

    @property
    def _arguments(self) -> tuple[str, ...]:
        return (*self.operands, *self.results)

    def _const(self, name: str) -> str:
        return "const " if name in self.operands else ""

    def _place(self, name: str) -> str:
        if LIKE[name] == "w":
            return "of every edge"
        return "of every node" if LIKE[name] == self._at_node else "across every edge"

    def _path(self, number: int, path: Path) -> str:
        """The function of one path."""
        program = path_program(
            self.problem.degrees(path), path.coefficient, path.has_weight
        ).specialize(self.operands, self.results)
        mul = self.problem.irreps_in1[path.i_in1].mul
        missing = [
            name
            for name in self.results
            if LIKE[name] == "w" and path.has_weight and Variable(name) not in program.targets
        ]
        if not program.statements and not missing:
            return f"static inline void path_{number}(Tile&) {{}}"
        return _PathPrinter(self, number, path, program, mul, missing).text()

    def first_column(self, name: str, path: Path) -> int:
        """Column of a path's block in rows like `name`."""
        problem = self.problem
        start = {
            "x": problem.irreps_in1.slices()[path.i_in1].start,
            "y": problem.irreps_in2.slices()[path.i_in2].start,
            "w": path.weight_start,
            "g": problem.irreps_out.slices()[path.i_out].start,
        }
        return int(start[LIKE[name]])

    def is_at_node(self, name: str) -> bool:
        """Whether a name's rows belong to the node."""
        return LIKE[name] == self._at_node

    def _run_tile(self, calls: list[str]) -> str:
        """Fills a tile, calls the paths, and writes the gradients in y."""
        at_node, at_edge, after = [], [], []
        for name in self._arguments:
            like, dim = LIKE[name], f"DIM_{LIKE[name].upper()}"
            if like == "y" and name in self.operands:
                at_edge.append(f"for (int j = 0; j < DIM_Y; ++j) tile.{name}[j][e] = "
                               f"a.{name}[edge * DIM_Y + j];")
            elif like == "y":
                at_edge.append(f"for (int j = 0; j < DIM_Y; ++j) tile.{name}[e][j] = vec{{}};")
                after.append(f"for (int j = 0; j < DIM_Y; ++j) a.{name}[edge * DIM_Y + j] = "
                             f"sum_lanes(tile.{name}[e][j]);")
            elif like == self._at_node and name in self.results:
                at_node.append(f"tile.{name}[n] = node == carried ? carry : a.{name} + node * {dim};")
            elif like == self._at_node:
                at_node.append(f"tile.{name}[n] = a.{name} + node * {dim};")
            elif like == "w" and self.shared and name in self.results:
                at_edge.append(f"tile.{name}[e] = a.{name} + chunk * {self.problem.weight_numel};")
            elif like == "w":
                at_edge.append(f"tile.{name}[e] = a.{name} + edge * {dim};")
            else:
                at_edge.append(f"tile.{name}[e] = a.{name} + a.across[first + e] * {dim};")
        return _RUN_TILE.format(
            at_node=_indent(at_node, 12),
            at_edge=_indent(at_edge, 8),
            calls="\n".join(calls),
            after=_indent(after, 8),
        )


    def _run(self) -> str:
        """The exported function; ends with the rows of nodes that chunks share."""
        sums = [name for name in self.results if self.is_at_node(name)]
        return _RUN.replace("@CARRY@", _CARRY.format(result=sums[0]) if sums else "")


@dataclass(frozen=True)
class _PathPrinter:
    """Prints the function of one path."""

    parent: Pass
    number: int
    path: Path
    program: Program
    mul: int
    missing: list[str]  # gradients in w that are zero on this path

    def text(self) -> str:
        edge = self.program.of_kind("edge")
        matrices = {statement.target: index for index, statement in enumerate(edge)}

        def lane(variable: Variable) -> str:
            """A variable of an edge statement, or of a channel statement if no matrix element."""
            return f"m[{matrices[variable]}][e]" if variable in matrices else str(variable)

        at_node = [v for v in self._channel_operands if self.parent.is_at_node(v.name)]
        at_edge = [v for v in self._channel_operands if not self.parent.is_at_node(v.name)]
        sums, writes, body = [], [], []
        for statement in self.program.of_kind("channel"):
            target, value = statement.target, cpp.sum_of_products(statement, lane)
            if target.name not in self.parent.results:
                body.append(f"const vec {target} = {value};")
            elif self.parent.is_at_node(target.name):
                sums.append(target)
                body.append(f"{target} += {value};")
            elif LIKE[target.name] == "y":
                column = self.parent.first_column(target.name, self.path) + target.indices[0]
                body.append(f"tile.{target.name}[e][{column}] += {value};")
            else:
                writes.append(self._write(target, value))
        writes += [self._write(Variable(name), "vec{}") for name in self.missing]
        return _PATH.format(
            number=self.number,
            mul=self.mul,
            matrices=self._matrices(edge),
            parameter=f", const real (*m)[TILE]" if edge else "",
            argument=", m" if edge else "",
            sums=_indent((f"vec {v} = {{}};" for v in sums), 8),
            at_node=_indent((self._load(v, "n") for v in at_node), 8),
            at_edge=_indent((self._load(v, "e") for v in at_edge), 12),
            body=_indent([*body, *writes], 12),
            flush=_indent((self._add(v) for v in sums), 8),
        )

    @cached_property
    def _channel_operands(self) -> list[Variable]:
        return [v for v in self.program.operands if LIKE[v.name] != "y"]

    def _matrices(self, edge: tuple[Statement, ...]) -> str:
        """The edge statements, for all edges of the tile."""
        if not edge:
            return ""
        operands = dict.fromkeys(f for s in edge for p in s.products for f in p.factors)
        loads = []
        for v in operands:
            column = self.parent.first_column(v.name, self.path) + v.indices[0]
            loads.append(f"const vec {v} = load(&tile.{v.name}[{column}][e]);")
        stores = [
            f"store(&m[{i}][e], {cpp.sum_of_products(s, str)});" for i, s in enumerate(edge)
        ]
        lines = _indent([*loads, *stores], 8)
        return (
            f"    alignas(64) real m[{len(edge)}][TILE];\n"
            f"    for (int e = 0; e < tile.size; e += LANES) {{\n{lines}\n    }}"
        )

    def _at(self, v: Variable, index: str) -> str:
        component = v.indices[0] if v.indices else 0
        column = self.parent.first_column(v.name, self.path) + component * self.mul
        return f"tile.{v.name}[{index}] + {column} + c"

    def _load(self, v: Variable, index: str) -> str:
        return f"const vec {v} = get<FULL>({self._at(v, index)}, lanes);"

    def _add(self, v: Variable) -> str:
        at = self._at(v, "n")
        return f"put<FULL>({at}, get<FULL>({at}, lanes) + {v}, lanes);"

    def _write(self, v: Variable, value: str) -> str:
        at = self._at(v, "e")
        total = f"get<FULL>({at}, lanes) + {value}" if self.parent.shared else value
        return f"put<FULL>({at}, {total}, lanes);"


def _indent(lines: Iterable[str], columns: int) -> str:
    return "\n".join(" " * columns + line for line in lines)


_PATH = """
template <bool FULL>
static inline void channels_{number}(Tile& tile{parameter}, int c, int lanes) {{
    for (int n = 0; n < tile.nodes; ++n) {{
{sums}
{at_node}
        for (int e = tile.start[n]; e < tile.start[n + 1]; ++e) {{
{at_edge}
{body}
        }}
{flush}
    }}
}}
static void path_{number}(Tile& tile) {{
{matrices}
    constexpr int MUL = {mul}, WHOLE = MUL - MUL % LANES;
    for (int c = 0; c < WHOLE; c += LANES) channels_{number}<true>(tile{argument}, c, LANES);
    if constexpr (WHOLE < MUL) channels_{number}<false>(tile{argument}, WHOLE, MUL - WHOLE);
}}"""

_RUN_TILE = """
static void run_tile(
    const Arguments& a, Tile& tile, int64_t first, int size, int64_t chunk, int64_t carried
) {{
    real* const carry = a.carry + chunk * NODE;
    tile.size = size;
    tile.nodes = 0;
    for (int e = 0; e < size; ++e) {{
        const int64_t node = a.node[first + e], edge = a.edge[first + e];
        if (e == 0 || node != a.node[first + e - 1]) {{
            const int n = tile.nodes++;
            tile.start[n] = e;
{at_node}
        }}
{at_edge}
    }}
    tile.start[tile.nodes] = size;
{calls}
    for (int e = 0; e < size; ++e) {{
        const int64_t edge = a.edge[first + e];
{after}
    }}
}}
"""

_RUN = (
    cpp.EXPORT
    + """ void run(
    void** pointers, int64_t edges, int64_t chunk_edges, int threads
) {
    Arguments a;
    std::memcpy(&a, pointers, sizeof a);
    const int64_t chunks = (edges + chunk_edges - 1) / chunk_edges;
    auto carried = [&](int64_t begin) -> int64_t {
        return begin > 0 && a.node[begin] == a.node[begin - 1] ? a.node[begin] : -1;
    };
#pragma omp parallel num_threads(threads)
    {
        Tile tile;
#pragma omp for schedule(dynamic)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t begin = chunk * chunk_edges;
            const int64_t end = edges < begin + chunk_edges ? edges : begin + chunk_edges;
            for (int64_t first = begin; first < end; first += TILE) {
                const int size = end - first < TILE ? end - first : TILE;
                run_tile(a, tile, first, size, chunk, carried(begin));
            }
        }
    }
@CARRY@}
"""
)

_CARRY = """\
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {{
        const int64_t node = carried(chunk * chunk_edges);
        if (node < 0) continue;
        real* const row = a.{result} + node * NODE;
        for (int64_t i = 0; i < NODE; ++i) row[i] += a.carry[chunk * NODE + i];
    }}
"""
