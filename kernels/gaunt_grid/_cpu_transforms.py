"""C++ of the transforms between the parts of a slot and a whole grid, as straight-line code.

`_symmetry` says how few multiplications a transform takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eqtp.kernels.gaunt_grid._symmetry import Orbits, RingField, Rings
from eqtp.so3.grid_symmetry import Orbit, X, Z, class_number

__all__ = ["print_transforms"]

_NOTHING = 1e-15  # constants below are zeros with rounding


def print_transforms(slots: Sequence[Orbits | Rings]) -> str:
    """The functions `synthesize` and `analyze` of (slot, parts, their stride, values)."""
    functions: dict[str, str] = {}  # body -> name: slots of the same degrees share their code
    text, cases = "", {"synthesize": "", "analyze": ""}
    for number, slot in enumerate(slots):
        for kind in cases:
            body = "\n".join(_body(slot, kind))
            if body not in functions:
                functions[body] = f"{kind}_{number}"
                text += _function(f"{kind}_{number}", kind, body)
            cases[kind] += f"case {number}: return {functions[body]}(x, stride, v);\n"
    return text + (
        "static void synthesize(int64_t slot, const real* x, int64_t stride, real* v) {\n"
        f"switch (slot) {{\n{cases['synthesize']}}}\n}}\n"
        "static void analyze(int64_t slot, real* x, int64_t stride, const real* v) {\n"
        f"switch (slot) {{\n{cases['analyze']}}}\n}}\n"
    )


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


def _by_class(slot: Orbits) -> dict[int, list[int]]:
    parts: dict[int, list[int]] = {}
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
                at = 8 * number + class_number(kind, orbit.axes)
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
            (number, 8 * number + class_number(kind, orbit.axes))
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
            values: list[str | None] = [None] * angle.size
            for kind, orders in _orders_by_class(field, columns).items():
                if angle.has(kind):
                    values[class_number(kind, angle.axes)] = _sum(
                        [(field.fourier[angle.point, m].item(), f"q[{at}]") for at, m in orders]
                    )
            yield from _stored(_named(values), _angle_points(slot, angle), "to")
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
) -> dict[int, list[tuple[int, int]]]:
    """(place among the columns, order) by class under x -> -x and z -> -z."""
    orders: dict[int, list[tuple[int, int]]] = {}
    for place, order in enumerate(columns):
        kind = field.classes[order]
        if kind is not None:
            orders.setdefault(kind, []).append((place, order))
    return orders


def _angle_points(slot: Rings, angle: Orbit) -> list[int]:
    """Places of an angle's images in a ring, in the order of the transform's results."""
    index, count = angle.point, slot.num_angles
    images = {
        0: [index],
        X: [index, count - index],
        Z: [index, count // 2 - index],
        X + Z: [index, count - index, count // 2 - index, count // 2 + index],
    }
    return [image % count for image in images[angle.axes]]


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
            yield from _loaded(_angle_points(slot, angle), "from", 4 * place)
        for kind, orders in _orders_by_class(field, columns).items():
            for at, order in orders:
                terms = [
                    (
                        field.fourier[angle.point, order].item(),
                        f"e[{4 * place + class_number(kind, angle.axes)}]",
                    )
                    for place, angle in enumerate(slot.angles)
                    if angle.has(kind)
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
