"""C++ source of the rotations: straight-line code per degree, lanes are channels.

One library per degree and number of orders kept, and one that walks the edges and calls them;
channels, columns and edges are arguments. Cosines and sines are made per edge and stay in the first
cache. Sums at nodes run over edges sorted by node, each node's by one thread in their order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.program import Program, Variable
from eqtp.kernels.so2._program import from_edge, to_edge, torques, turned_back
from eqtp.kernels.so2.config import MAX_DEGREE

__all__ = ["degree_source", "walk_source"]

_TYPES = """
// What `rotate_back` makes: results, added to what is there or not, and torques; with v or not.
struct Wanted { bool write, add, torque, turned; };

struct Turns {
    real cos_a[SIZE], sin_a[SIZE], cos_b[SIZE], sin_b[SIZE], v[3];
};

typedef void ToEdge(int64_t mul, const int64_t* columns, const Turns& t, const real* x, real* y,
                    bool turned);
typedef void Back(int64_t mul, const int64_t* columns, const Turns& t, const real* y,
                  const real* x, real* out, Wanted wanted, vec* sums);
struct Block { ToEdge* to_edge; Back* back; int64_t mul, start; const int64_t* columns; };

template <bool FULL> static inline void save(real* p, vec value, bool add, int n) {
    put<FULL>(p, add ? get<FULL>(p, n) + value : value, n);
}
"""

_WALK = """
// Of h = hypot(u, v): u / h, v / h, h; 0, 1, 0 where h is zero.
static inline real unit(real u, real v, real& sin, real& cos) {
    const real scale = std::max(std::abs(u), std::abs(v));
    if (!(scale > 0)) {
        sin = scale;  // zero, or not a number
        cos = 1;
        return scale;
    }
    u /= scale;
    v /= scale;
    const real length = std::sqrt(u * u + v * v);
    sin = u / length;
    cos = v / length;
    return scale * length;
}

static inline void multiples(real* cos, real* sin, int64_t lmax) {
    cos[0] = 1;
    sin[0] = 0;
    const real c = cos[1], s = sin[1];
    for (int64_t k = 1; k <= lmax; ++k) {
        cos[k] = cos[k - 1] * c - sin[k - 1] * s;
        sin[k] = sin[k - 1] * c + cos[k - 1] * s;
    }
}

static inline Turns turns_of(const real* r, const real* v, int64_t lmax) {
    Turns t;
    real sin, cos;
    const real across = unit(r[0], r[2], sin, cos);
    t.cos_a[1] = cos;
    t.sin_a[1] = sin;
    const real length = unit(across, r[1], sin, cos);
    t.cos_b[1] = cos;
    t.sin_b[1] = sin;
    multiples(t.cos_a, t.sin_a, lmax);
    multiples(t.cos_b, t.sin_b, lmax);
    if (length == 0)
        for (int64_t k = 0; k <= lmax; ++k) t.cos_b[k] = t.sin_b[k] = 0;
    if (v)
        for (int k = 0; k < 3; ++k) t.v[k] = v[k];
    return t;
}

struct Edges {
    const Block* blocks;
    int64_t num_blocks, lmax, count;
    const real *r, *v;
    const int64_t *node, *edge;  // of all edges, and which edges; null: edges are rows
    int64_t compact;             // whether frames are numbered like `edge` or as it lists them
    int64_t number(int64_t i) const { return edge ? edge[i] : i; }
    int64_t node_of(int64_t e) const { return node ? node[e] : e; }
    int64_t row(int64_t i, int64_t e) const { return compact ? i : e; }

    // Where a thread starts: each node's edges, which stand together, stay with one thread.
    int64_t start(int64_t thread, int64_t threads, bool together) const {
        int64_t i = count * thread / threads;
        if (together && node && thread > 0 && thread < threads)
            while (i > 0 && i < count && node[number(i)] == node[number(i - 1)]) ++i;
        return i;
    }
};

EXPORT void rotate(const Edges* edges, const real* x, int64_t ldx, real* y, int64_t ldy,
                   int threads) {
    const Edges all = *edges;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < all.count; ++i) {
        const int64_t e = all.number(i);
        const Turns t = turns_of(all.r + 3 * e, all.v ? all.v + 3 * e : nullptr, all.lmax);
        const real* from = x + all.node_of(e) * ldx;
        real* to = y + all.row(i, e) * ldy;
        for (int64_t b = 0; b < all.num_blocks; ++b) {
            const Block& block = all.blocks[b];
            block.to_edge(block.mul, block.columns, t, from + block.start, to, all.v != nullptr);
        }
    }
}


// Writes D^T y, with v -G(v) D^T y, into rows or adds it at nodes; and the torques with x.
EXPORT void rotate_back(const Edges* edges, const real* y, int64_t ldy, const real* x, int64_t ldx,
                        real* out, int64_t ldo, int add, real* torque, int threads) {
    const Edges all = *edges;
    const Wanted wanted = {out != nullptr, add != 0, torque != nullptr, all.v != nullptr};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        const int64_t end = all.start(thread + 1, threads, wanted.write);
        for (int64_t i = all.start(thread, threads, wanted.write); i < end; ++i) {
            const int64_t e = all.number(i), n = all.node_of(e);
            const Turns t =
                turns_of(all.r + 3 * e, wanted.turned ? all.v + 3 * e : nullptr, all.lmax);
            vec sums[3] = {};
            for (int64_t b = 0; b < all.num_blocks; ++b) {
                const Block& block = all.blocks[b];
                block.back(block.mul, block.columns, t, y + all.row(i, e) * ldy,
                           x + n * ldx + block.start, out + n * ldo + block.start, wanted, sums);
            }
            if (wanted.torque)
                for (int k = 0; k < 3; ++k) torque[3 * e + k] = sum_lanes(sums[k]);
        }
    }
}
"""


def walk_source(dtype: torch.dtype) -> str:
    """The library that walks edges."""
    return _head(dtype) + "#include <algorithm>\n#include <cmath>\n" + _WALK


def degree_source(l: int, m_max: int, dtype: torch.dtype) -> str:
    """The library of one degree, of which the orders up to m_max are kept."""
    return _head(dtype) + _to_edge(l, m_max) + _back(l, m_max)


def _head(dtype: torch.dtype) -> str:
    constants = f"#define EXPORT {cpp.EXPORT}\nconstexpr int SIZE = {MAX_DEGREE + 1};\n"
    return cpp.prelude(dtype) + constants + _TYPES


def _loops(function: str, arguments: str) -> str:
    """Calls for whole vectors of channels, then for the last few."""
    return f"""\
    int64_t c = 0;
    for (; c + LANES <= mul; c += LANES) {function}_at<true>(mul, columns, t, {arguments}, c, 0);
    if (c < mul) {function}_at<false>(mul, columns, t, {arguments}, c, (int)(mul - c));
"""


def _to_edge(l: int, m_max: int) -> str:
    branches = []
    for turned in (True, False):
        program = to_edge(l, m_max, turned=turned)
        lines = _lines(program, _name)
        for row in range(2 * m_max + 1):
            value = f"y_{row}" if Variable("y", (row,)) in program.targets else "vec{}"
            lines.append(f"put<FULL>(y + c + columns[{row}], {value}, n);")
        branches.append("\n        ".join(lines))
    loads = "\n    ".join(_load("x", n, "x + c + {n} * mul") for n in range(2 * l + 1))
    return f"""
template <bool FULL>
static inline void to_edge_at(int64_t mul, const int64_t* columns, const Turns& t, const real* x,
                             real* y, bool turned, int64_t c, int n) {{
    {loads}
    if (turned) {{
        {branches[0]}
    }} else {{
        {branches[1]}
    }}
}}
EXPORT void to_edge(int64_t mul, const int64_t* columns, const Turns& t, const real* x, real* y,
                   bool turned) {{
{_loops("to_edge", "x, y, turned")}}}
"""


def _back(l: int, m_max: int) -> str:
    rows = range(2 * l + 1)
    lines = [_load("y", row, f"y + c + columns[{row}]") for row in range(2 * m_max + 1)]
    lines += _lines(from_edge(l, m_max), lambda v: _name(v, x="b"))
    turned = turned_back(l)
    write = _lines(turned, _name)
    for n in rows:
        value = f"o_{n}" if Variable("o", (n,)) in turned.targets else "vec{}"
        write.append(f"save<FULL>(out + c + {n} * mul, {value}, wanted.add, n);")
    lines += _branch("if (wanted.write && wanted.turned)", write)
    write = [f"save<FULL>(out + c + {n} * mul, b_{n}, wanted.add, n);" for n in rows]
    lines += _branch("else if (wanted.write)", write)
    moment = [_load("x", n, "x + c + {n} * mul") for n in rows]
    for condition, is_turned in (("if (wanted.turned)", True), ("else", False)):
        program = torques(l, turned=is_turned)
        sums = [f"sums[{k}] += t_{k};" for k in range(3) if program.statements]
        moment += _branch(condition, [*_lines(program, _name), *sums])
    lines += _branch("if (wanted.torque)", moment)
    body = "\n    ".join(lines)
    return f"""
template <bool FULL>
static inline void back_at(int64_t mul, const int64_t* columns, const Turns& t, const real* y,
                             const real* x, real* out, Wanted wanted, vec* sums, int64_t c,
                             int n) {{
    {body}
}}
EXPORT void back(int64_t mul, const int64_t* columns, const Turns& t, const real* y,
                   const real* x, real* out, Wanted wanted, vec* sums) {{
{_loops("back", "y, x, out, wanted, sums")}}}
"""


def _branch(condition: str, lines: list[str]) -> list[str]:
    return [f"{condition} {{", *(f"    {line}" for line in lines), "}"]


def _load(name: str, index: int, address: str) -> str:
    return f"const vec {name}_{index} = get<FULL>({address.format(n=index)}, n);"


def _lines(program: Program, name: Callable[[Variable], str]) -> list[str]:
    return [
        f"const vec {name(statement.target)} = {cpp.sum_of_products(statement, name)};"
        for statement in program.statements
    ]


def _name(variable: Variable, **renamed: str) -> str:
    name, indices = variable.name, variable.indices
    if name in ("cos_a", "sin_a", "cos_b", "sin_b", "v"):
        return f"t.{name}[{indices[0]}]"
    return f"{renamed.get(name, name)}_{indices[0]}"
