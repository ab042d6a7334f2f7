"""C++ source of the products on the sphere: transforms as straight-line code, one library each.

A register holds neighbouring channels (or rows). For a tile of one register every operand is
transformed to the grid, the values are multiplied and the products transformed back, all in the
first cache; what the products are is read from a table, so that value, gradients and second
gradients share the code. `_symmetry` says how few multiplications a transform takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from eqtp.kernels.codegen import cpp
from eqtp.kernels.gaunt_grid._symmetry import Orbit, Orbits, RingField, Rings, choose_grid
from eqtp.kernels.gaunt_grid._transforms import fields_of
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["source"]

_NOTHING = 1e-15  # constants below are zeros with rounding


def source(problem: SphereProductProblem, dtype: torch.dtype) -> str:
    """The whole file."""
    slots = choose_grid(problem)
    functions: dict[str, str] = {}  # body -> name: slots of the same degrees share their code
    text, cases = "", {"synthesize": "", "analyze": ""}
    for number, slot in enumerate(slots):
        for kind in cases:
            body = "\n".join(_body(slot, kind))
            if body not in functions:
                functions[body] = f"{kind}_{number}"
                text += _function(f"{kind}_{number}", kind, body)
            cases[kind] += f"case {number}: return {functions[body]}(x, stride, v);\n"
    sizes = (
        f"constexpr int64_t POINTS = {slots[0].num_points};\n"
        f"constexpr int64_t FIELDS[3] = {{{', '.join(map(str, fields_of(problem.odd)))}}};\n"
        f"constexpr int64_t DIMS[3] = {{{', '.join(map(str, problem.dims))}}};\n"
        f"constexpr int64_t LARGEST = {max(problem.dims)};\n"
        f"constexpr int64_t BLOCKS[3] = {{{', '.join(str(len(d)) for d in problem.degrees)}}};\n"
        f"constexpr int64_t BLOCK[3][LARGEST] = {{{', '.join(map(_blocks, problem.degrees))}}};\n"
        f"constexpr int64_t VALUES = {max(fields_of(problem.odd))} * POINTS * LANES;\n"
    )
    dispatch = (
        "static void synthesize(int64_t slot, const real* x, int64_t stride, real* v) {\n"
        f"switch (slot) {{\n{cases['synthesize']}}}\n}}\n"
        "static void analyze(int64_t slot, real* x, int64_t stride, const real* v) {\n"
        f"switch (slot) {{\n{cases['analyze']}}}\n}}\n"
    )
    headers = "#include <algorithm>\n#include <vector>\n"
    export = f"#define EXPORT {cpp.EXPORT}\n"
    return headers + cpp.prelude(dtype) + export + sizes + text + dispatch + _DRIVER


def _blocks(degrees: Sequence[int]) -> str:
    """Number of the degree of every part."""
    numbers = [str(i) for i, degree in enumerate(degrees) for _ in range(2 * degree + 1)]
    return f"{{{', '.join(numbers)}}}"


def _function(name: str, kind: str, body: str) -> str:
    arguments = {
        "synthesize": "const real* __restrict x, int64_t stride, real* __restrict v",
        "analyze": "real* __restrict x, int64_t stride, const real* __restrict v",
    }
    return f"static __attribute__((noinline)) void {name}({arguments[kind]}) {{\n{body}\n}}\n"


def _body(slot: Orbits | Rings, kind: str) -> Iterator[str]:
    if isinstance(slot, Orbits):
        return _orbits_synthesis(slot) if kind == "synthesize" else _orbits_analysis(slot)
    return _rings_synthesis(slot) if kind == "synthesize" else _rings_analysis(slot)


def _sum(terms: Sequence[tuple[float, str]]) -> str | None:
    """A sum of constants times values; None if nothing is left."""
    kept = [(value, name) for value, name in terms if abs(value) > _NOTHING]
    return " + ".join(f"(real){value!r} * {name}" for value, name in kept) if kept else None


def _walsh(values: Sequence[str | None], prefix: str) -> tuple[list[str], list[str | None]]:
    """Lines of a Walsh-Hadamard transform, and the names of its results; None stands for zero."""
    lines, names, step = [], list(values), 1
    while step < len(names):
        for start in range(0, len(names), 2 * step):
            for i in range(start, start + step):
                a, b = names[i], names[i + step]
                if b is None:
                    names[i + step] = a
                elif a is None:
                    lines.append(f"const vec {prefix}{step}_{i} = -{b};")
                    names[i], names[i + step] = b, f"{prefix}{step}_{i}"
                else:
                    lines.append(f"const vec {prefix}{step}_{i} = {a} + {b};")
                    lines.append(f"const vec {prefix}{step}_{i + step} = {a} - {b};")
                    names[i], names[i + step] = (
                        f"{prefix}{step}_{i}",
                        f"{prefix}{step}_{i + step}",
                    )
        step *= 2
    return lines, names


def _number(kind: Sequence[int], free: Sequence[bool]) -> int:
    """A class as bits over the free reflections, the first lowest."""
    bits = [odd for odd, is_free in zip(kind, free, strict=True) if is_free]
    return sum(odd << i for i, odd in enumerate(bits))


def _by_class(slot: Orbits) -> dict[tuple[int, ...], list[int]]:
    parts: dict[tuple[int, ...], list[int]] = {}
    for part, kind in enumerate(slot.classes):
        parts.setdefault(kind, []).append(part)
    return parts


def _places(slot: Orbits) -> list[int]:
    """Where every orbit's points start."""
    starts, start = [], 0
    for orbit in slot.orbits:
        starts.append(start)
        start += orbit.size
    return starts


def _orbits_synthesis(slot: Orbits) -> Iterator[str]:
    given: dict[tuple[int, int], str] = {}
    yield f"vec e[{8 * len(slot.orbits)}];"
    for kind, parts in _by_class(slot).items():
        yield "{"
        yield from (f"const vec x{k} = load(x + {k} * stride);" for k in parts)
        for number, orbit in enumerate(slot.orbits):
            if not orbit.has(kind):
                continue
            total = _sum([(slot.values[number, k].item(), f"x{k}") for k in parts])
            if total is not None:
                at = 8 * number + _number(kind, orbit.free)
                given[number, at] = f"e[{at}]"
                yield f"e[{at}] = {total};"
        yield "}"
    for number, (orbit, start) in enumerate(zip(slot.orbits, _places(slot), strict=True)):
        values = [given.get((number, 8 * number + i)) for i in range(orbit.size)]
        yield from _stored(values, [start + i for i in range(orbit.size)], "v")


def _stored(values: Sequence[str | None], points: Sequence[int], target: str) -> Iterator[str]:
    """Values of classes to values on points."""
    lines, names = _walsh(values, "h")
    yield "{"
    yield from lines
    for point, name in zip(points, names, strict=True):
        yield f"store({target} + {point} * LANES, {name or 'vec{}'});"
    yield "}"


def _orbits_analysis(slot: Orbits) -> Iterator[str]:
    yield f"vec e[{8 * len(slot.orbits)}];"
    for number, (orbit, start) in enumerate(zip(slot.orbits, _places(slot), strict=True)):
        yield from _loaded([start + i for i in range(orbit.size)], "v", 8 * number)
    for kind, parts in _by_class(slot).items():
        reached = [
            (number, 8 * number + _number(kind, orbit.free))
            for number, orbit in enumerate(slot.orbits)
            if orbit.has(kind)
        ]
        for k in parts:
            terms = [
                (slot.values[number, k].item() * slot.weights[number], f"e[{at}]")
                for number, at in reached
            ]
            yield f"store(x + {k} * stride, {_sum(terms) or 'vec{}'});"


def _loaded(points: Sequence[int], origin: str, first: int) -> Iterator[str]:
    """Values on points to sums of classes, e[first ...]."""
    yield "{"
    yield from (
        f"const vec v{i} = load({origin} + {point} * LANES);" for i, point in enumerate(points)
    )
    lines, names = _walsh([f"v{i}" for i in range(len(points))], "h")
    yield from lines
    yield from (f"e[{first + i}] = {name};" for i, name in enumerate(names))
    yield "}"


def _columns(field: RingField) -> dict[int, list[int]]:
    """Parts of every order that does not vanish."""
    columns: dict[int, list[int]] = {}
    for part, order in enumerate(field.order):
        if field.classes[order] is not None:
            columns.setdefault(order, []).append(part)
    return dict(sorted(columns.items()))


def _ring_pairs(slot: Rings) -> list[tuple[int, int | None]]:
    """Numbers of the rings y > 0 and of their mirror images; None for the equator's."""
    last = slot.num_rings - 1
    pairs: list[tuple[int, int | None]] = [(i, last - i) for i in range(slot.num_rings // 2)]
    return pairs + ([(slot.num_rings // 2, None)] if slot.num_rings % 2 else [])


def _rings_synthesis(slot: Rings) -> Iterator[str]:
    for number, field in enumerate(slot.fields):
        columns = _columns(field)
        width = len(columns)
        if width == 0:
            yield f"std::fill(v + {number} * POINTS * LANES, v + {number + 1} * POINTS * LANES, 0);"
            continue
        yield f"{{ vec r[{slot.num_rings * width}];"
        for place, parts in enumerate(columns.values()):
            yield "{"
            yield from (f"const vec x{k} = load(x + {k} * stride);" for k in parts)
            for ring, (north, south) in enumerate(_ring_pairs(slot)):
                sums = [
                    _sum([(field.legendre[ring, k].item(), f"x{k}") for k in some])
                    for some in _by_parity(field, parts)
                ]
                yield from _mirrored(sums, north, south, place, width)
            yield "}"
        yield f"for (int ring = 0; ring < {slot.num_rings}; ++ring) {{"
        yield f"const vec* q = r + ring * {width};"
        yield f"real* to = v + ({number} * POINTS + ring * {slot.num_angles}) * LANES;"
        for angle in slot.angles:
            values: list[str | None] = [None] * (1 << sum(angle.free))
            for kind, orders in _orders_by_class(field, columns).items():
                if Orbit(0, angle.free).has(kind):
                    values[_number(kind, angle.free)] = _sum(
                        [(field.fourier[angle.index, m].item(), f"q[{at}]") for at, m in orders]
                    )
            yield from _stored(_named(values), _angle_points(slot, angle.index), "to")
        yield "} }"


def _named(values: Sequence[str | None]) -> list[str | None]:
    """Sums in brackets."""
    return [None if value is None else f"({value})" for value in values]


def _by_parity(field: RingField, parts: Sequence[int]) -> tuple[list[int], list[int]]:
    even = [k for k in parts if not field.odd[k]]
    return even, [k for k in parts if field.odd[k]]


def _mirrored(
    sums: Sequence[str | None], north: int, south: int | None, place: int, width: int
) -> Iterator[str]:
    """A ring's value and its mirror image's, from the even and the odd sum."""
    even, odd = (value or "vec{}" for value in sums)
    if south is None:
        yield f"r[{north * width + place}] = {even};"
        return
    yield f"{{ const vec even = {even}, odd = {odd};"
    yield f"r[{north * width + place}] = even + odd;"
    yield f"r[{south * width + place}] = even - odd; }}"


def _orders_by_class(
    field: RingField, columns: Mapping[int, list[int]]
) -> dict[tuple[int, ...], list[tuple[int, int]]]:
    """(place among the columns, order) by class under x -> -x and z -> -z."""
    orders: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for place, order in enumerate(columns):
        kind = field.classes[order]
        if kind is not None:
            orders.setdefault(kind, []).append((place, order))
    return orders


def _angle_points(slot: Rings, index: int) -> list[int]:
    """Places of an angle's images in a ring, in the order of the transform's results."""
    count = slot.num_angles
    images = {
        (False, False): [index],
        (True, False): [index, count - index],
        (False, True): [index, count // 2 - index],
        (True, True): [index, count - index, count // 2 - index, count // 2 + index],
    }
    free = next(angle.free for angle in slot.angles if angle.index == index)
    return [image % count for image in images[free]]


def _rings_analysis(slot: Rings) -> Iterator[str]:
    dim = len(slot.fields[0].order)
    yield f"vec sums[{dim}] = {{}};"
    for number, field in enumerate(slot.fields):
        columns = _columns(field)
        width = len(columns)
        if width == 0:
            continue
        yield f"{{ vec r[{slot.num_rings * width}];"
        yield f"for (int ring = 0; ring < {slot.num_rings}; ++ring) {{"
        yield f"const real* from = v + ({number} * POINTS + ring * {slot.num_angles}) * LANES;"
        yield f"vec e[{4 * len(slot.angles)}];"
        for place, angle in enumerate(slot.angles):
            yield from _loaded(_angle_points(slot, angle.index), "from", 4 * place)
        for kind, orders in _orders_by_class(field, columns).items():
            for at, order in orders:
                terms = [
                    (
                        field.fourier[angle.index, order].item(),
                        f"e[{4 * place + _number(kind, angle.free)}]",
                    )
                    for place, angle in enumerate(slot.angles)
                    if Orbit(0, angle.free).has(kind)
                ]
                yield f"r[ring * {width} + {at}] = {_sum(terms) or 'vec{}'};"
        yield "}"
        for place, parts in enumerate(columns.values()):
            yield "{"
            for ring, (north, south) in enumerate(_ring_pairs(slot)):
                a, b = f"r[{north * width + place}]", f"r[{(south or 0) * width + place}]"
                even, odd = (a, "") if south is None else (f"{a} + {b}", f"{a} - {b}")
                yield f"const vec even{ring} = {even};"
                if odd:
                    yield f"const vec odd{ring} = {odd};"
            for k in parts:
                name = "odd" if field.odd[k] else "even"
                terms = [
                    (field.legendre[ring, k].item() * slot.weights[ring], f"{name}{ring}")
                    for ring, (_, south) in enumerate(_ring_pairs(slot))
                    if south is not None or not field.odd[k]
                ]
                total = _sum(terms)
                if total is not None:
                    yield f"sums[{k}] += {total};"
            yield "}"
        yield "}"
    yield f"for (int k = 0; k < {dim}; ++k) store(x + k * stride, sums[k]);"


_DRIVER = """
struct Factor { const real *data, *weight; int64_t slot, shared; };  // weight may be null
struct Sum { int64_t slot; };
struct Product { int64_t sum, field, a, field_a, b, field_b, begins; double sign; };
struct Output { real* data; const real* companion; int64_t sum, shared, is_weight, begins; };
struct Call {
    const Factor* factors; int64_t num_factors;
    const Sum* sums; int64_t num_sums;
    const Product* products; int64_t num_products;
    const Output* outputs; int64_t num_outputs;
    int64_t rows, width, single, threads;  // single: the slot of one channel, or -1
};

// Memory of a thread that lasts from call to call.
static inline real* memory(std::vector<real>& buffer, int64_t size) {
    if ((int64_t)buffer.size() < size + LANES) buffer.resize(size + LANES);
    return (real*)(((uintptr_t)buffer.data() + WIDTH - 1) / WIDTH * WIDTH);
}

struct Workspace {
    real *values, *sums, *across, *parts, *more;

    explicit Workspace(const Call& call) {
        static thread_local std::vector<real> buffer;
        const int64_t size = (call.num_factors + 2 * call.num_sums) * VALUES;
        values = memory(buffer, size + 2 * LARGEST * LANES);
        sums = values + call.num_factors * VALUES;
        across = sums + call.num_sums * VALUES;
        parts = across + call.num_sums * VALUES;
        more = parts + LARGEST * LANES;
    }
};

// What the lanes of a register are: a row and a channel each.
struct Tile {
    int64_t width, row[LANES], channel[LANES];
    int n;
    bool contiguous;  // neighbouring channels of one row

    int64_t start(int lane, int64_t length, bool shared) const {
        return (shared ? 0 : row[lane]) * length * width + channel[lane];
    }
    // Columns of a row-major [rows or 1, length, width] to registers, and back.
    void gather(const real* from, int64_t length, bool shared, real* to) const {
        if (contiguous) {
            from += start(0, length, shared);
            for (int64_t k = 0; k < length; ++k)
                store(to + k * LANES,
                      n == LANES ? load(from + k * width) : load(from + k * width, n));
            return;
        }
        std::fill(to, to + length * LANES, 0);
        for (int lane = 0; lane < n; ++lane) {
            const real* p = from + start(lane, length, shared);
            for (int64_t k = 0; k < length; ++k) to[k * LANES + lane] = p[k * width];
        }
    }
    void put(real* to, int64_t length, int64_t k, vec value, bool add) const {
        if (contiguous) {
            real* p = to + start(0, length, false) + k * width;
            if (n == LANES) {
                store(p, add ? load(p) + value : value);
            } else {
                store(p, add ? load(p, n) + value : value, n);
            }
            return;
        }
        for (int lane = 0; lane < n; ++lane) {
            real& p = to[start(lane, length, false) + k * width];
            p = add ? p + value[lane] : value[lane];
        }
    }
};

static void transform(const Factor& factor, const Tile& tile, const Workspace& space,
                      real* values) {
    const int64_t dim = DIMS[factor.slot];
    if (!factor.weight && tile.contiguous && tile.n == LANES) {
        synthesize(factor.slot, factor.data + tile.start(0, dim, false), tile.width, values);
        return;
    }
    tile.gather(factor.data, dim, false, space.parts);
    if (factor.weight) {
        tile.gather(factor.weight, BLOCKS[factor.slot], factor.shared, space.more);
        for (int64_t k = 0; k < dim; ++k)
            store(space.parts + k * LANES, load(space.parts + k * LANES) *
                                               load(space.more + BLOCK[factor.slot][k] * LANES));
    }
    synthesize(factor.slot, space.parts, LANES, values);
}

static void finish(const Call& call, int64_t sum, const Tile& tile, const Workspace& space,
                   const real* values) {
    const int64_t slot = call.sums[sum].slot, dim = DIMS[slot];
    analyze(slot, space.parts, LANES, values);
    for (int64_t i = 0; i < call.num_outputs; ++i) {
        const Output& output = call.outputs[i];
        if (output.sum != sum) continue;
        const bool add = !output.begins;
        if (output.is_weight) {
            tile.gather(output.companion, dim, false, space.more);
            for (int64_t k = 0; k < dim;) {
                const int64_t block = BLOCK[slot][k];
                vec total = {};
                for (; k < dim && BLOCK[slot][k] == block; ++k)
                    total += load(space.parts + k * LANES) * load(space.more + k * LANES);
                tile.put(output.data, BLOCKS[slot], block, total, add);
            }
        } else {
            if (output.companion)
                tile.gather(output.companion, BLOCKS[slot], output.shared, space.more);
            for (int64_t k = 0; k < dim; ++k) {
                vec value = load(space.parts + k * LANES);
                if (output.companion) value *= load(space.more + BLOCK[slot][k] * LANES);
                tile.put(output.data, dim, k, value, add);
            }
        }
    }
}

static inline vec splat(real value) { return value - vec{}; }

// One factor of a product: a register of values, or one value for all channels of a row.
template <bool SINGLE> static inline vec value_of(const real* v, int64_t p, int64_t row) {
    return SINGLE ? splat(v[p * LANES + row]) : load(v + p * LANES);
}

template <bool A, bool B>
static inline void add_product(real sign, const real* __restrict a, const real* __restrict b,
                               real* __restrict sum, int64_t row, bool begins) {
    if (begins)
        for (int64_t p = 0; p < POINTS; ++p)
            store(sum + p * LANES, sign * value_of<A>(a, p, row) * value_of<B>(b, p, row));
    else
        for (int64_t p = 0; p < POINTS; ++p)
            store(sum + p * LANES, load(sum + p * LANES) +
                                       sign * value_of<A>(a, p, row) * value_of<B>(b, p, row));
}

static void multiply(const Call& call, const Workspace& space, int64_t row, bool begins) {
    for (int64_t j = 0; j < call.num_products; ++j) {
        const Product& product = call.products[j];
        const bool single_sum = call.sums[product.sum].slot == call.single;
        const real* a = space.values + product.a * VALUES + product.field_a * POINTS * LANES;
        const real* b = space.values + product.b * VALUES + product.field_b * POINTS * LANES;
        real* sum = space.sums + product.sum * VALUES + product.field * POINTS * LANES;
        const bool starts = product.begins && (begins || !single_sum);
        if (call.factors[product.a].slot == call.single)
            add_product<true, false>(product.sign, a, b, sum, row, starts);
        else if (call.factors[product.b].slot == call.single)
            add_product<false, true>(product.sign, a, b, sum, row, starts);
        else
            add_product<false, false>(product.sign, a, b, sum, row, starts);
    }
}

// Rows and channels are columns, LANES of them from `first` on.
static void columns(const Call& call, const Workspace& space, int64_t first) {
    Tile tile;
    tile.width = call.width;
    tile.n = (int)std::min<int64_t>(LANES, call.rows * call.width - first);
    tile.contiguous = first % call.width + tile.n <= call.width;
    for (int lane = 0; lane < tile.n; ++lane) {
        tile.row[lane] = (first + lane) / call.width;
        tile.channel[lane] = (first + lane) % call.width;
    }
    for (int64_t i = 0; i < call.num_factors; ++i)
        transform(call.factors[i], tile, space, space.values + i * VALUES);
    multiply(call, space, 0, true);
    for (int64_t i = 0; i < call.num_sums; ++i)
        finish(call, i, tile, space, space.sums + i * VALUES);
}

// LANES rows: what has one channel has rows as lanes, the rest channels.
static void rows(const Call& call, const Workspace& space, int64_t first) {
    Tile across;
    across.width = 1;
    across.n = (int)std::min<int64_t>(LANES, call.rows - first);
    across.contiguous = false;
    for (int lane = 0; lane < across.n; ++lane) {
        across.row[lane] = first + lane;
        across.channel[lane] = 0;
    }
    for (int64_t i = 0; i < call.num_factors; ++i)
        if (call.factors[i].slot == call.single)
            transform(call.factors[i], across, space, space.values + i * VALUES);
    for (int64_t row = 0; row < across.n; ++row) {
        for (int64_t c = 0; c < call.width; c += LANES) {
            Tile tile;
            tile.width = call.width;
            tile.n = (int)std::min<int64_t>(LANES, call.width - c);
            tile.contiguous = true;
            tile.row[0] = first + row;
            tile.channel[0] = c;
            for (int64_t i = 0; i < call.num_factors; ++i)
                if (call.factors[i].slot != call.single)
                    transform(call.factors[i], tile, space, space.values + i * VALUES);
            multiply(call, space, row, c == 0);
            for (int64_t i = 0; i < call.num_sums; ++i)
                if (call.sums[i].slot != call.single)
                    finish(call, i, tile, space, space.sums + i * VALUES);
        }
        for (int64_t i = 0; i < call.num_sums; ++i) {
            if (call.sums[i].slot != call.single) continue;
            for (int64_t p = 0; p < FIELDS[call.single] * POINTS; ++p)
                space.across[i * VALUES + p * LANES + row] =
                    sum_lanes(load(space.sums + i * VALUES + p * LANES));
        }
    }
    for (int64_t i = 0; i < call.num_sums; ++i)
        if (call.sums[i].slot == call.single)
            finish(call, i, across, space, space.across + i * VALUES);
}

EXPORT void evaluate(const Call* given) {
    const Call call = *given;
    const int64_t size = call.single < 0 ? call.rows * call.width : call.rows;
    const int64_t tiles = (size + LANES - 1) / LANES;
    const int threads = (int)std::min<int64_t>(call.threads, std::max<int64_t>(tiles / 4, 1));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const Workspace space(call);
        call.single < 0 ? columns(call, space, tile * LANES) : rows(call, space, tile * LANES);
    }
}
"""
