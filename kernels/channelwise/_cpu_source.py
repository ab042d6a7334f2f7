"""C++ source of a pass over the edges of a channelwise product; `_cpu` says what a pass is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch

from eqtp.kernels.channelwise._program import LIKE, path_program
from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.matrix_product import MATRIX_PRODUCT
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.problem import Path, TensorProductProblem

__all__ = ["Pass"]


@dataclass(frozen=True)
class Pass:
    """What one kernel does.

    Attributes:
        problem: The product.
        operands: Names of the operands that are given.
        results: Names of the results.
        shared: Whether one row of weights serves all edges.
        dtype: float32 or float64.
        tile: Edges per tile.
        hidden: Columns of h where the weights are h m and never in memory; 0 where they are rows.
    """

    problem: TensorProductProblem
    operands: tuple[str, ...]
    results: tuple[str, ...]
    shared: bool
    dtype: torch.dtype
    tile: int
    hidden: int = 0

    @property
    def source(self) -> str:
        """The whole file."""
        # Paths that read the same block of x1 follow one another: its rows are at hand.
        paths = [p for p in self.problem.paths if self.problem.irreps_in1[p.i_in1].mul > 0]
        paths.sort(key=lambda path: path.i_in1)
        functions = [self._path(number, path) for number, path in enumerate(paths)]
        arguments = "a, tile, chunk" if self.hidden else "tile"
        calls = [f"    path_{number}({arguments});" for number in range(len(paths))]
        return "\n".join(
            [
                cpp.prelude(self.dtype),
                MATRIX_PRODUCT + _STRIDED if self.hidden else "",
                self._tile_type(),
                *functions,
                self._run_tile(calls),
                self._run(),
            ]
        )

    @cached_property
    def present(self) -> tuple[str, ...]:
        """The operands as the program knows them."""
        names = [name for name in self.operands if LIKE[name] not in "hm"]
        if self.hidden:
            names.append("w")
            if "vh" in self.operands or "vm" in self.operands:
                names.append("vw")
        return tuple(names)

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """The results as the program knows them.

        With w = h m and its direction vw = vh m + h vm, the gradient in h is grad_w2 m^T + grad_w
        vm^T and that in m is h^T grad_w2 + vh^T grad_w.
        """
        names = [name for name in self.results if LIKE[name] not in "hm"]
        for order, other in (("", ()), ("2", ("grad_w",))):
            if f"grad_h{order}" in self.results or f"grad_m{order}" in self.results:
                names.append(f"grad_w{order}")
                names += other if "vw" in self.present else ()
        return tuple(names)

    @cached_property
    def _rows(self) -> list[str]:
        """Names whose rows are in memory; those of y are turned, those of w may be computed."""
        absent = "yhmw" if self.hidden else "yhm"
        return [name for name in (*self.present, *self.computed) if LIKE[name] not in absent]

    @cached_property
    def _dims(self) -> dict[str, int]:
        problem = self.problem
        return {
            "x": problem.irreps_in1.dim,
            "y": problem.irreps_in2.dim,
            "w": 0 if self.shared else problem.weight_numel,
            "g": problem.irreps_out.dim,
            "h": self.hidden,
            "m": self.hidden * problem.weight_numel,
        }

    @cached_property
    def streamed(self) -> list[str]:
        """Operands with a wide row of memory per edge.

        While a tile is computed, the next one's rows are fetched from memory, a line per step and
        in the order of their addresses, if the edges are sorted as their receivers are. 20,000
        edges with 64 channels and 17 paths: 16.5 ms so, 19.8 with each path's columns fetched row
        after row, 22.2 with all of it before the tile (forward, one thread, AMD EPYC, Zen 4).
        """
        if self.hidden or self.shared:
            return []
        return [name for name in self.operands if LIKE[name] == "w"]

    def _tile_type(self) -> str:
        """The arguments, and what a tile keeps of them."""
        dims = ", ".join(f"DIM_{like.upper()} = {dim}" for like, dim in self._dims.items())
        widest = max((mul for mul, _ in self.problem.irreps_in1), default=0)
        constants = f"enum {{ {dims}, TILE = {self.tile}, CHANNELS = {widest} }};"
        members = [
            f"    {self._const(name)}real* {name}[TILE];  // {self._place(name)}"
            for name in self._rows
        ]
        members += [
            f"    const real* next_{name};  // where to fetch ahead" for name in self.streamed
        ]
        members += [
            f"    alignas(64) real {name}[DIM_Y][TILE];"
            for name in self.operands
            if LIKE[name] == "y"
        ]
        members += [f"    vec {name}[TILE][DIM_Y];" for name in self.results if LIKE[name] == "y"]
        if self.hidden:
            members += [
                f"    alignas(64) real {name}[TILE][CHANNELS];"
                for name in (*self.present, *self.computed)
                if LIKE[name] == "w"
            ]
            members += [
                f"    alignas(64) real {name}[TILE][DIM_H];"
                for name in self._arguments
                if LIKE[name] == "h"
            ]
        pointers = [f"{self._const(name)}real* {name};" for name in self._arguments]
        return "\n".join(
            [
                constants,
                "struct Arguments {",
                *(f"    {pointer}" for pointer in pointers),
                *(f"    const real* {name}_turned;" for name in self.turned),
                "    const int64_t *receiver, *sender, *edge;",
                "    const int64_t *row, *rows, *pointers;  // sums at senders, see SenderSums",
                "    real *carry, *partial;",
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

    @cached_property
    def turned(self) -> tuple[str, ...]:
        """The matrices that are needed turned as well, [weight_numel, hidden]."""
        if not any(LIKE[name] == "h" for name in self.results):
            return ()
        return tuple(name for name in self.operands if LIKE[name] == "m")

    def _const(self, name: str) -> str:
        return "const " if name in self.operands else ""

    def _place(self, name: str) -> str:
        return "of every receiver" if LIKE[name] == "g" else "of every edge"

    def _path(self, number: int, path: Path) -> str:
        """The function of one path."""
        program = path_program(
            self.problem.degrees(path), path.coefficient, path.has_weight
        ).specialize(self.present, self.computed)
        mul = self.problem.irreps_in1[path.i_in1].mul
        missing = [
            name
            for name in self.computed
            if LIKE[name] == "w" and path.has_weight and Variable(name) not in program.targets
        ]
        if not program.statements and not missing:
            parameters = "const Arguments&, Tile&, int64_t" if self.hidden else "Tile&"
            return f"static inline void path_{number}({parameters}) {{}}"
        return _PathPrinter(self, number, path, program, mul, missing).text()

    def first_column(self, name: str, path: Path) -> int:
        """Column of a path's block in rows like `name`."""
        block = {"x": path.i_in1, "y": path.i_in2, "g": path.i_out}
        like = LIKE[name]
        if like == "w":
            return 0 if self.hidden else path.weight_start
        return self._first_columns[like][block[like]]

    @cached_property
    def _first_columns(self) -> dict[str, list[int]]:
        """Where every block starts."""
        problem = self.problem
        irreps = {"x": problem.irreps_in1, "y": problem.irreps_in2, "g": problem.irreps_out}
        return {name: [int(s.start) for s in value.slices()] for name, value in irreps.items()}

    def _run_tile(self, calls: list[str]) -> str:
        """Fills a tile, calls the paths, and writes the gradients in y."""
        at_node, at_edge, after = [], [], []
        for name in self._arguments:
            like, dim = LIKE[name], f"DIM_{LIKE[name].upper()}"
            result = name in self.results
            each = "for (int j = 0; j < DIM_Y; ++j)"
            if like == "y" and result:
                at_edge.append(f"{each} tile.{name}[e][j] = vec{{}};")
                after.append(f"{each} a.{name}[edge * DIM_Y + j] = sum_lanes(tile.{name}[e][j]);")
            elif like == "y":
                at_edge.append(f"{each} tile.{name}[j][e] = a.{name}[edge * DIM_Y + j];")
            elif like == "g" and result:
                row = f"node == carried ? carry : a.{name} + node * DIM_G"
                at_node.append(f"clear(a.{name}, before + 1, node + 1);")
                at_node.append(f"tile.{name}[n] = {row};")
            elif like == "g":
                at_node.append(f"tile.{name}[n] = a.{name} + node * DIM_G;")
            elif like == "x" and result:
                at_edge.append(f"tile.{name}[e] = a.partial + a.row[first + e] * DIM_X;")
            elif like == "h":
                each = "for (int i = 0; i < DIM_H; ++i)"
                if result:
                    at_edge.append(f"{each} tile.{name}[e][i] = 0;")
                    after.append(f"{each} a.{name}[edge * DIM_H + i] = tile.{name}[e][i];")
                else:
                    at_edge.append(f"{each} tile.{name}[e][i] = a.{name}[edge * DIM_H + i];")
            elif like == "m":
                continue
            elif result and self.shared:
                at_edge.append(f"tile.{name}[e] = a.{name} + chunk * {self.problem.weight_numel};")
            else:
                row = "edge" if like == "w" else "a.sender[first + e]"
                at_edge.append(f"tile.{name}[e] = a.{name} + {row} * {dim};")
                if name in self.streamed:
                    row = f"a.{name} + a.edge[next] * {dim}"
                    at_edge.append(f"if (e == 0) tile.next_{name} = {row};")
                elif not result:
                    at_edge.append(f"prefetch<{dim}>(a.{name} + a.sender[next] * {dim});")
        return _RUN_TILE.format(
            at_node=_indent(at_node, 12),
            at_edge=_indent(at_edge, 8),
            calls="\n".join(calls),
            after=_indent(after, 8),
        )

    def _run(self) -> str:
        """The exported function."""
        text = _RUN
        for mark, like, part in (("@RECEIVERS@", "g", _RECEIVERS), ("@SENDERS@", "x", _SENDERS)):
            sums = [name for name in self.results if LIKE[name] == like]
            text = text.replace(mark, part.format(result=sums[0]) if sums else "")
        return text


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

        at_node = [v for v in self._channel_operands if LIKE[v.name] == "g"]
        at_edge = [v for v in self._channel_operands if LIKE[v.name] != "g"]
        sums, writes, body = [], [], []
        for statement in self.program.of_kind("channel"):
            target, value = statement.target, cpp.sum_of_products(statement, lane)
            if target.name not in self.parent.computed:
                body.append(f"const vec {target} = {value};")
            elif LIKE[target.name] == "g":
                sums.append(target)
                body.append(f"{target} += {value};")
            elif LIKE[target.name] == "y":
                column = self.parent.first_column(target.name, self.path) + target.indices[0]
                body.append(f"tile.{target.name}[e][{column}] += {value};")
            else:
                writes.append(self._write(target, value))
        writes += [self._write(Variable(name), "vec{}") for name in self.missing]
        fetched = [v.name for v in self._channel_operands if v.name in self.parent.streamed]
        fetches = [f"__builtin_prefetch(next_{n}), next_{n} += LANES;" for n in fetched]
        return _PATH.format(
            number=self.number,
            mul=self.mul,
            arguments="const Arguments& a, Tile& tile, int64_t chunk"
            if self.parent.hidden
            else "Tile& tile",
            before=_indent(self._weights(), 4),
            after=_indent(self._gradients(), 4),
            matrices=self._matrices(edge),
            parameter=", const real (*m)[TILE]" if edge else "",
            argument=", m" if edge else "",
            sums=_indent((f"vec {v} = {{}};" for v in sums), 8),
            at_node=_indent((self._load(v, "n") for v in at_node), 8),
            at_edge=_indent((self._load(v, "e") for v in at_edge), 12),
            begin=_indent((f"const real* next_{name} = tile.next_{name};" for name in fetched), 4),
            finish=_indent((f"tile.next_{name} = next_{name};" for name in fetched), 4),
            body=_indent([*fetches, *body, *writes], 12),
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
        stores = [f"store(&m[{i}][e], {cpp.sum_of_products(s, str)});" for i, s in enumerate(edge)]
        lines = _indent([*loads, *stores], 8)
        return (
            f"    alignas(64) real m[{len(edge)}][TILE];\n"
            f"    for (int e = 0; e < tile.size; e += LANES) {{\n{lines}\n    }}"
        )

    def _weights(self) -> list[str]:
        """The path's weights, and their direction, from the radial network's hidden features."""
        operands = self.parent.operands
        read = {v.name for v in self._channel_operands}
        lines = []
        for target, factors in (("w", [("h", "m")]), ("vw", [("vh", "m"), ("h", "vm")])):
            first = True
            for h, m in factors:
                if self.parent.hidden and target in read and h in operands and m in operands:
                    lines.append(
                        f"matrix_product(tile.size, MUL, DIM_H, &tile.{h}[0][0], DIM_H, 1, "
                        f"a.{m} + {self.path.weight_start}, {self._numel}, "
                        f"&tile.{target}[0][0], CHANNELS, {_boolean(not first)});"
                    )
                    first = False
        return lines

    def _gradients(self) -> list[str]:
        """Gradients in the hidden features and the matrix, from those in the weights."""
        if not (self.parent.hidden and self.path.has_weight):
            return []
        lines = []
        for order, pairs in (
            ("", [("grad_w", "h", "m")]),
            ("2", [("grad_w2", "h", "m"), ("grad_w", "vh", "vm")]),
        ):
            for grad_w, h, m in pairs:
                if f"grad_h{order}" in self.parent.results and m in self.parent.operands:
                    lines.append(
                        f"matrix_product(tile.size, DIM_H, MUL, &tile.{grad_w}[0][0], CHANNELS, 1, "
                        f"a.{m}_turned + {self.path.weight_start} * DIM_H, DIM_H, "
                        f"&tile.grad_h{order}[0][0], DIM_H, true);"
                    )
                if f"grad_m{order}" in self.parent.results and h in self.parent.operands:
                    lines.append(
                        f"matrix_product(DIM_H, MUL, tile.size, &tile.{h}[0][0], 1, DIM_H, "
                        f"&tile.{grad_w}[0][0], CHANNELS, "
                        f"a.grad_m{order} + chunk * DIM_M + {self.path.weight_start}, "
                        f"{self._numel}, true);"
                    )
        return lines

    @property
    def _numel(self) -> int:
        return self.parent.problem.weight_numel

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
        adds = LIKE[v.name] == "x" or self.parent.shared
        total = f"get<FULL>({at}, lanes) + {value}" if adds else value
        return f"put<FULL>({at}, {total}, lanes);"


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _indent(lines: Iterable[str], columns: int) -> str:
    return "\n".join(" " * columns + line for line in lines)


_STRIDED = """
// c[i][j] (+)= sum_k a[i][k] b[k][j], with a[i][k] at a + i ai + k ak.
static void matrix_product(
    int64_t height, int64_t width, int64_t depth, const real* a, int64_t ai, int64_t ak,
    const real* b, int64_t bk, real* c, int64_t ci, bool add
) {
    product(
        height, width, depth, [=](int64_t i, int64_t k) { return a[i * ai + k * ak]; },
        [=](int64_t k) { return b + k * bk; }, [=](int64_t i) { return c + i * ci; }, add);
}
"""

_PATH = """
template <bool FULL>
static inline void channels_{number}(Tile& tile{parameter}, int c, int lanes) {{
{begin}
    for (int n = 0; n < tile.nodes; ++n) {{
{sums}
{at_node}
        for (int e = tile.start[n]; e < tile.start[n + 1]; ++e) {{
{at_edge}
{body}
        }}
{flush}
    }}
{finish}
}}
static void path_{number}({arguments}) {{
    constexpr int MUL = {mul}, WHOLE = MUL - MUL % LANES;
{before}
{matrices}
    for (int c = 0; c < WHOLE; c += LANES) channels_{number}<true>(tile{argument}, c, LANES);
    if constexpr (WHOLE < MUL) channels_{number}<false>(tile{argument}, WHOLE, MUL - WHOLE);
{after}
}}"""

_RUN_TILE = """
template <int NUMEL> static inline void prefetch(const real* row) {{
    for (int i = 0; i < NUMEL; i += 64 / sizeof(real)) __builtin_prefetch(row + i);
}}
// Rows of a result, from one receiver to before another; receivers without edges are among them.
static inline void clear(real* rows, int64_t first, int64_t end) {{
    if (first < end) std::memset(rows + first * DIM_G, 0, (end - first) * DIM_G * sizeof(real));
}}
static void run_tile(
    const Arguments& a, Tile& tile, int64_t first, int size, int64_t end, int64_t chunk,
    int64_t carried
) {{
    real* const carry = a.carry + chunk * DIM_G;
    tile.size = size;
    tile.nodes = 0;
    for (int e = 0; e < size; ++e) {{
        const int64_t node = a.receiver[first + e], edge = a.edge[first + e];
        const int64_t next = first + e + TILE < end ? first + e + TILE : first + e;
        const int64_t before = first + e > 0 ? a.receiver[first + e - 1] : -1;
        if (e == 0 || node != before) {{
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
    void** pointers, const int64_t* sizes, int threads
) {
    Arguments a;
    std::memcpy(&a, pointers, sizeof a);
    const int64_t edges = sizes[0], chunk_edges = sizes[1], senders = sizes[2];
    const int64_t receivers = sizes[3];
    const int64_t chunks = (edges + chunk_edges - 1) / chunk_edges;
    auto carried = [&](int64_t begin) -> int64_t {
        const bool inside = begin > 0 && a.receiver[begin] == a.receiver[begin - 1];
        return inside ? a.receiver[begin] : -1;
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
                run_tile(a, tile, first, size, end, chunk, carried(begin));
            }
        }
@SENDERS@
    }
@RECEIVERS@
}
"""
)

_RECEIVERS = """\
    clear(a.{result}, edges > 0 ? a.receiver[edges - 1] + 1 : 0, receivers);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {{
        const int64_t node = carried(chunk * chunk_edges);
        if (node < 0) continue;
        real* const row = a.{result} + node * DIM_G;
        for (int64_t i = 0; i < DIM_G; ++i) row[i] += a.carry[chunk * DIM_G + i];
    }}"""

_SENDERS = """\
#pragma omp for schedule(static)
        for (int64_t node = 0; node < senders; ++node) {{
            real* const row = a.{result} + node * DIM_X;
            for (int64_t i = 0; i < DIM_X; ++i) row[i] = 0;
            for (int64_t k = a.pointers[node]; k < a.pointers[node + 1]; ++k) {{
                const real* const part = a.partial + a.rows[k] * DIM_X;
                for (int64_t i = 0; i < DIM_X; ++i) row[i] += part[i];
            }}
        }}"""
