"""C++ of the transforms between harmonics and one orbit of the grid; `_orbits` says how they work.

A `Basis` is a list of harmonics, and `synthesize` and `project` are printed for every basis and
kind of orbits, without the terms that vanish. What loops over the grid visits the kinds in turn:

    each_kind([&](auto kind) { for every orbit: synthesize, compute, project });
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eqtp.kernels.gaunt_contraction._orbits import Orbits, butterfly
from eqtp.kernels.gaunt_contraction.reference import harmonic_of_component

__all__ = ["print_transforms"]

_ARITHMETIC = """
#define INLINE static inline __attribute__((always_inline))

template <int P> INLINE Number<P> operator+(Number<P> a, const Number<P>& b) { a += b; return a; }
template <int PARTS> INLINE Number<PARTS> operator-(Number<PARTS> a, const Number<PARTS>& b) {
    EACH_PART EACH_NODE a.at[part][n] -= b.at[part][n];
    return a;
}
template <int PARTS> INLINE Number<PARTS> operator-(Number<PARTS> a) {
    EACH_PART EACH_NODE a.at[part][n] = -a.at[part][n];
    return a;
}
// By a constant, or by a weight of the nodes' element.
template <class C, int PARTS> INLINE Number<PARTS> times(C c, Number<PARTS> a) {
    EACH_PART EACH_NODE a.at[part][n] *= c;
    return a;
}
template <class C, int PARTS>
INLINE void add(Number<PARTS>& sum, C c, const Number<PARTS>& a) {
    EACH_PART EACH_NODE sum.at[part][n] += c * a.at[part][n];
}
"""


def print_transforms(bases: Sequence[Sequence[int]], orbits: Sequence[Orbits]) -> str:
    """Struct `Basis0` ... for lists of degrees, `Orbits0` ..., `each_kind`, and the transforms."""
    lines = [_ARITHMETIC]
    for number, degrees in enumerate(bases):
        dims = [2 * degree + 1 for degree in degrees]
        degree_of = [degree for degree, dim in zip(degrees, dims, strict=True) for _ in range(dim)]
        lines += [
            f"struct Basis{number} {{",
            f"    static constexpr int SIZE = {sum(dims)};",
            f"    static constexpr int DEGREE[SIZE] = {{{', '.join(map(str, degree_of))}}};",
            "};",
        ]
    for number, kind in enumerate(orbits):
        lines += [
            f"static const real SYNTHESIS{number}[] = {{{_numbers(kind.synthesis)}}};",
            f"static const real ANALYSIS{number}[] = {{{_numbers(kind.analysis)}}};",
            f"struct Orbits{number} {{",
            f"    static constexpr int COUNT = {len(kind.synthesis)};",
            f"    static constexpr int POINTS = {1 << kind.num_bits};",
            "    static const real* synthesis(int orbit) {",
            f"        return SYNTHESIS{number} + orbit * {len(kind.harmonics)};",
            "    }",
            "    static const real* analysis(int orbit) {",
            f"        return ANALYSIS{number} + orbit * {len(kind.harmonics)};",
            "    }",
            "};",
        ]
    lines.append("template <class Visit> INLINE void each_kind(Visit visit) {")
    lines += [f"    visit(Orbits{number}{{}});" for number in range(len(orbits))]
    lines.append("}")
    for basis, degrees in enumerate(bases):
        for number, kind in enumerate(orbits):
            arguments = f"Basis{basis}, Orbits{number}, const real* y"
            lines += _synthesis(arguments, harmonic_of_component(degrees), kind)
            lines += _projection(arguments, harmonic_of_component(degrees), kind)
    return "\n".join(lines) + "\n"


def _synthesis(arguments: str, harmonics: list[int], kind: Orbits) -> list[str]:
    """Values f of one orbit's points from the parts a; y is a row of a table."""
    lines = [
        "template <int PARTS>",
        f"INLINE void synthesize({arguments}, const Number<PARTS>* a, Number<PARTS>* f) {{",
    ]
    present: set[int] = set()
    for position, place, column in _columns(harmonics, kind):
        term = f"y[{column}], a[{position}]"
        if place in present:
            lines.append(f"    add(s0_{place}, {term});")
        else:
            present.add(place)
            lines.append(f"    Number<PARTS> s0_{place} = times({term});")
    points = range(1 << kind.num_bits)
    lines += _butterfly(kind.num_bits, sorted(present), points)
    for point in points:
        value = f"s{kind.num_bits}_{point}" if present else "Number<PARTS>{}"
        lines.append(f"    f[{point}] = {value};")
    return [*lines, "}"]


def _projection(arguments: str, harmonics: list[int], kind: Orbits) -> list[str]:
    """Adds one orbit's part to a, from the values f at its points."""
    columns = _columns(harmonics, kind)
    lines = [
        "template <int PARTS>",
        f"INLINE void project({arguments}, const Number<PARTS>* f, Number<PARTS>* a) {{",
    ]
    points = range(1 << kind.num_bits)
    if columns:
        lines += [f"    const Number<PARTS>& s0_{point} = f[{point}];" for point in points]
    lines += _butterfly(kind.num_bits, points, sorted({place for _, place, _ in columns}))
    lines += [f"    add(a[{i}], y[{j}], s{kind.num_bits}_{place});" for i, place, j in columns]
    return [*lines, "}"]


def _columns(harmonics: list[int], kind: Orbits) -> list[tuple[int, int, int]]:
    """Position in the basis, class and column of every harmonic that does not vanish."""
    return [
        (position, kind.place(harmonic), kind.harmonics.index(harmonic))
        for position, harmonic in enumerate(harmonics)
        if harmonic in kind.harmonics
    ]


def _butterfly(num_bits: int, present: Sequence[int], wanted: Sequence[int]) -> list[str]:
    lines = []
    for line in butterfly(num_bits, present, wanted):
        left, right = (f"s{at[0]}_{at[1]}" if at else "" for at in (line.left, line.right))
        sign = "-" if line.sign < 0 else "+" if left else ""
        value = " ".join(filter(None, [left, sign if right else "", right]))
        lines.append(f"    const Number<PARTS> s{line.target[0]}_{line.target[1]} = {value};")
    return lines


def _numbers(table: Tensor) -> str:
    return ", ".join(map(repr, table.flatten().tolist()))
