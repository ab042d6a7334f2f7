"""Triton source of the rotations of one degree; `_triton` launches them.

A program does a tile of edges and channels, or walks the edges of one node. Straight-line code of
`_program`; cosines and sines are made from the edge vectors in registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from textwrap import indent

from eqtp.kernels.codegen.program import Program, Variable
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.so2._program import from_edge, to_edge, torques, turned_back

__all__ = ["back_source", "nodes_source", "rotate_source", "torque_source"]

_TILE = """\
edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)[:, None]
valid = edge < num_edges
"""

_CHANNELS = """\
channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
inside = valid & (channel < mul)
"""


def _function(name: str, arguments: list[str], l: int, m_max: int, body: list[str]) -> str:
    """A function; a block's place in rows and frame and its channels are constants.

    As arguments they would take scalar registers, of which AMD's processors then spill some.
    """
    names = ["x_length", "y_length", "start", "mul"]
    names += [f"column_{i}" for i in range(2 * m_max + 1)]
    known = [f"{name}: tl.constexpr" for name in [*names, "EDGES", "CHANNELS"]]
    text = "\n".join(body)
    return f"""\
@triton.jit(do_not_specialize=["num_edges"])
def {name}({", ".join([*arguments, *known])}):
{indent(text, "    ")}
"""


@lru_cache(maxsize=256)
def rotate_source(l: int, m_max: int, *, turned: bool, gathers: bool) -> str:
    """Y of every edge: function so2_rotate."""
    program = to_edge(l, m_max, turned=turned)
    zero = "tl.zeros([EDGES, CHANNELS], y.dtype.element_ty)"
    body = [
        _TILE + _CHANNELS,
        _row(gathers),
        *_turns(l, "mask=valid, other=0.0"),
        "x_row = x + row * x_length + start + channel",
        *_statements(program),
    ]
    for i in range(2 * m_max + 1):
        value = f"y_{i}" if Variable("y", (i,)) in program.targets else zero
        address = f"y + edge * y_length + column_{i} + channel"
        body.append(f"tl.store({address}, {value}, mask=inside)")
    arguments = ["x", "r", "v", "node", "y", "num_edges"]
    return _function("so2_rotate", arguments, l, m_max, body)


@lru_cache(maxsize=256)
def back_source(l: int, m_max: int, *, turned: bool) -> str:
    """D^T y, or -G(v) D^T y, of every edge: function so2_back."""
    body = [_TILE + _CHANNELS, *_turns(l, "mask=valid, other=0.0")]
    body += list(_back(l, m_max, turned))
    zero = "tl.zeros([EDGES, CHANNELS], x.dtype.element_ty)"
    for n in range(2 * l + 1):
        value = zero if turned and l == 0 else f"o_{n}" if turned else f"b_{n}"
        address = f"x + edge * x_length + start + channel + {n} * mul"
        body.append(f"tl.store({address}, {value}, mask=inside)")
    arguments = ["y", "r", "v", "x", "num_edges"]
    return _function("so2_back", arguments, l, m_max, body)


@lru_cache(maxsize=256)
def nodes_source(l: int, m_max: int, *, turned: bool) -> str:
    """The same summed at the nodes, each of whose edges one program walks: function so2_nodes."""
    rows = range(2 * l + 1)
    inner = [
        "edge = tl.load(order + position + tl.zeros([1, 1], tl.int64))",
        *_turns(l, ""),
        *_back(l, m_max, turned),
    ]
    if not (turned and l == 0):
        inner += [f"sum_{n} += {'o' if turned else 'b'}_{n}" for n in rows]
    inner.append("position += 1")
    body = [
        "item = tl.program_id(0).to(tl.int64)",
        "valid = item < num_edges",
        _CHANNELS,
        *(f"sum_{n} = tl.zeros([1, CHANNELS], x.dtype.element_ty)" for n in rows),
        "position = tl.load(pointers + item)",
        "stop = tl.load(pointers + item + 1)",
        "while position < stop:",
        indent("\n".join(inner), "    "),
    ]
    for n in rows:
        address = f"x + item * x_length + start + channel + {n} * mul"
        body.append(f"tl.store({address}, sum_{n}, mask=inside)")
    arguments = ["y", "r", "v", "order", "pointers", "x", "num_edges"]
    return _function("so2_nodes", arguments, l, m_max, body)


@lru_cache(maxsize=256)
def torque_source(l: int, m_max: int, *, turned: bool, gathers: bool) -> str:
    """A block's part of the torques of every edge: function so2_torque."""
    program = torques(l, turned=turned)
    inner = [
        "channel = first + tl.arange(0, CHANNELS)[None, :]",
        "inside = valid & (channel < mul)",
        *_back(l, m_max, turned=False),
        "x_row = x + row * x_length + start + channel",
        *_statements(program, known={f"b_{n}" for n in range(2 * l + 1)}),
        *(f"total_{k} += tl.sum(t_{k}, axis=1, keep_dims=True)" for k in range(3)),
        "first += CHANNELS",
    ]
    body = [
        _TILE,
        _row(gathers),
        *_turns(l, "mask=valid, other=0.0"),
        *(f"total_{k} = tl.zeros([EDGES, 1], out.dtype.element_ty)" for k in range(3)),
        "first = 0",
        "while first < mul:",
        indent("\n".join(inner), "    "),
        *(f"tl.store(out + 3 * edge + {k}, total_{k}, mask=valid)" for k in range(3)),
    ]
    arguments = ["x", "y", "r", "v", "node", "out", "num_edges"]
    return _function("so2_torque", arguments, l, m_max, body)


def _row(gathers: bool) -> str:
    return "row = tl.load(node + edge, mask=valid, other=0)" if gathers else "row = edge"


def _back(l: int, m_max: int, turned: bool) -> Iterator[str]:
    """The statements of b_n = (D^T y)_n, and with v of o_n."""
    program = from_edge(l, m_max)
    yield "y_row = y + edge * y_length + channel"
    yield from print_statements(
        program,
        lambda variable: _name(variable, x="b"),
        lambda variable: f"tl.load(y_row + column_{variable.indices[0]}, mask=inside, other=0.0)",
        (),
        _known(l),
    )
    if turned:
        known = {f"b_{n}" for n in range(2 * l + 1)}
        yield from _statements(turned_back(l), known=known)


def _statements(program: Program, *, known: set[str] | None = None) -> list[str]:
    """The lines of a program that reads x."""
    found = {v.indices[0] for v in program.operands if v.name.startswith(("cos", "sin"))}
    names = _known(max(found, default=0)) | (known or set())

    def load(variable: Variable) -> str:
        if variable.name == "v":
            return f"tl.load(v + 3 * edge + {variable.indices[0]}, mask=valid, other=0.0)"
        return f"tl.load(x_row + {variable.indices[0]} * mul, mask=inside, other=0.0)"

    return list(print_statements(program, _name, load, (), names))


def _name(variable: Variable, **renamed: str) -> str:
    return f"{renamed.get(variable.name, variable.name)}_{variable.indices[0]}"


def _known(l: int) -> set[str]:
    """The names of cosines and sines."""
    return {f"{f}_{angle}_{k}" for f in ("cos", "sin") for angle in "ab" for k in range(l + 1)}


def _turns(l: int, mask: str) -> Iterator[str]:
    """Cosines and sines of the multiples of a and b; see `frames.aligning_turns`."""
    if l == 0:
        return
    end = f", {mask})" if mask else ")"
    for k, axis in enumerate("xyz"):
        yield f"r_{axis} = tl.load(r + 3 * edge + {k}{end}"
    yield from _unit("a", "r_x", "r_z")
    yield from _unit("b", "length_a", "r_y")
    yield "has_direction = tl.where(length_b > 0, 1.0, 0.0).to(r_y.dtype)"
    for angle in "ab":
        for k in range(2, l + 1):
            cos, sin = f"cos_{angle}", f"sin_{angle}"
            yield f"{cos}_{k} = {cos}_{k - 1} * {cos}_1 - {sin}_{k - 1} * {sin}_1"
            yield f"{sin}_{k} = {sin}_{k - 1} * {cos}_1 + {cos}_{k - 1} * {sin}_1"
    yield "cos_b_0 = has_direction"
    for k in range(1, l + 1):
        yield f"cos_b_{k} = cos_b_{k} * has_direction"
        yield f"sin_b_{k} = sin_b_{k} * has_direction"


def _unit(angle: str, u: str, v: str) -> Iterator[str]:
    """Sine u / h, cosine v / h and length h = hypot(u, v); 0, 1, 0 where h is zero."""
    yield f"scale_{angle} = tl.maximum(tl.abs({u}), tl.abs({v}))"
    yield f"divisor_{angle} = tl.where(scale_{angle} > 0, scale_{angle}, 1.0)"
    yield f"part_u_{angle} = {u} / divisor_{angle}"
    yield f"part_v_{angle} = tl.where(scale_{angle} > 0, {v} / divisor_{angle}, 1.0)"
    square = f"part_u_{angle} * part_u_{angle} + part_v_{angle} * part_v_{angle}"
    yield f"root_{angle} = tl.sqrt({square})"
    yield f"sin_{angle}_1 = part_u_{angle} / root_{angle}"
    yield f"cos_{angle}_1 = part_v_{angle} / root_{angle}"
    yield f"length_{angle} = scale_{angle} * root_{angle}"
