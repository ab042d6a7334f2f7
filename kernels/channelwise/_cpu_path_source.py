"""C++ source of one path of a channelwise product, for the edges of a tile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from eqtp.kernels.channelwise._cpu_pass import Pass
from eqtp.kernels.channelwise._program import LIKE, path_program
from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.program import Program, Statement, Variable
from eqtp.problem import Path

__all__ = ["indented", "path_source"]


def path_source(plan: Pass, number: int, path: Path) -> str:
    """The function path_`number`, what a tile computes for a path."""
    program = path_program(
        plan.problem.degrees(path),
        path.coefficient,
        path.has_weight,
        plan.present,
        plan.computed,
    )
    mul = plan.problem.irreps_in1[path.i_in1].mul
    missing = [
        name
        for name in plan.computed
        if LIKE[name] == "w" and path.has_weight and Variable(name) not in program.targets
    ]
    if not program.statements and not missing:
        parameters = "const Arguments&, Tile&, int64_t" if plan.hidden else "Tile&"
        return f"static inline void path_{number}({parameters}) {{}}"
    return _PathPrinter(plan, number, path, program, mul, missing).text()


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
        variables = (*self._channel_operands, *self.program.targets)
        touched = {*(v.name for v in variables), *self.missing}
        fetched = [name for name in self.parent.streamed if name in touched]
        fetches = [
            f"__builtin_prefetch(next_{n}, {int(n in self.parent.results)}, 1), next_{n} += LANES;"
            for n in fetched
        ]
        return _PATH.format(
            number=self.number,
            mul=self.mul,
            arguments="const Arguments& a, Tile& tile, int64_t chunk"
            if self.parent.hidden
            else "Tile& tile",
            before=indented(self._weights(), 4),
            after=indented(self._gradients(), 4),
            matrices=self._matrices(edge),
            parameter=", const real (*m)[TILE]" if edge else "",
            argument=", m" if edge else "",
            sums=indented((f"vec {v} = {{}};" for v in sums), 8),
            at_node=indented((self._load(v, "n") for v in at_node), 8),
            at_edge=indented((self._load(v, "e") for v in at_edge), 12),
            begin=indented((f"const real* next_{name} = tile.next_{name};" for name in fetched), 4),
            finish=indented((f"tile.next_{name} = next_{name};" for name in fetched), 4),
            body=indented([*fetches, *body, *writes], 12),
            flush=indented((self._add(v) for v in sums), 8),
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
        lines = indented([*loads, *stores], 8)
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


def indented(lines: Iterable[str], columns: int) -> str:
    """Lines of a text, moved to the right."""
    return "\n".join(" " * columns + line for line in lines)


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
