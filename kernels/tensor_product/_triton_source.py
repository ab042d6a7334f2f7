"""Triton source of one kernel of the general product; `_triton` says how kernels are used.

A kernel computes one block of columns of one result: a derivative of the form S (`_form`) in x1,
x2, the weights or the result. Each lane owns one channel of that block in one item (a row, a node
or a chunk of rows), walks the item's rows, and for each path into the block the channels that are
summed. The letters of a path's mode say which those are: a result has the letters that name its
channels, the other one is walked. A block that has few channels shares the walk out among several
lanes, whose sums are added in the end.

    item_start ... item_stop   the rows of an item
      u or v                   the channels that are summed
        m[c, a] = sum_b C b;  t[c] = sum_a m[c, a] a;  result[c] += weight t[c]

Nothing is atomic, and every column is written by one program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from textwrap import indent
from typing import Literal

from eqtp.kernels.codegen.multilinear_terms import Numbers
from eqtp.kernels.codegen.program import Program, Statement, Variable, product
from eqtp.kernels.codegen.triton import print_statements
from eqtp.kernels.tensor_product._form import SLOTS, WEIGHT
from eqtp.kernels.tensor_product.config import TritonLaunch
from eqtp.problem import Mode, Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["FUNCTION", "Channels", "Kernel", "Part", "Walk"]

FUNCTION = "tensor_product"

Walk = Literal["row", "chunk", "receiver", "sender"]
"""What an item is: a row, a chunk of rows, or a node and the edges that end or start there."""

Letters = Literal["u", "v", "uv", "u<v"]
"""Names of channels: of x1, of x2, all pairs, the pairs u < v."""

LETTERS: dict[Mode, tuple[Letters, Letters, Letters, Letters]] = {
    "uvu": ("u", "v", "uv", "u"),
    "uvv": ("u", "v", "uv", "v"),
    "uvuv": ("u", "v", "uv", "uv"),
    "uuu": ("u", "u", "u", "u"),
    "uvu<v": ("u", "v", "u<v", "u<v"),
}
"""The channels of x1, x2, the weights and the result, for the modes that mix no channels."""

_MAX_SPLIT = 32
"""Lanes of a warp, or half of one: reads of neighbouring channels are then whole cache lines."""


@dataclass(frozen=True)
class Part:
    """What one path adds to a block of a result.

    Attributes:
        path: The path.
        operands: Number of the operand in each slot; None in the result's.
    """

    path: Path
    operands: Numbers


@dataclass(frozen=True)
class Channels:
    """The block of a result that a kernel computes, and what its lanes stand for.

    Attributes:
        block: Number of the block of irreps; of the weights the first of the path's.
        letters: What the channels are called.
        number: Channels of an item; of the pairs u < v all pairs, some of which are left out.
        mul2: Channels v.
        split: Lanes that share the sum of one channel.
    """

    block: int
    letters: Letters
    number: int
    mul2: int
    split: int

    @classmethod
    def of(cls, problem: TensorProductProblem, path: Path, slot: int) -> Channels:
        """The block of the derivative in a slot that a path adds to."""
        mul1, mul2, _ = problem.multiplicities(path)
        letters = LETTERS[path.mode][slot]
        number = {"u": mul1, "v": mul2}.get(letters, mul1 * mul2)
        _, length = _walked(problem, path, slot)
        split = 1
        while 2 * split * number <= _MAX_SPLIT and 2 * split <= length:
            split *= 2
        block = (path.i_in1, path.i_in2, path.weight_start, path.i_out)[slot]
        return cls(block, letters, number, mul2 if letters in ("uv", "u<v") else 0, split)


def _walked(problem: TensorProductProblem, path: Path, slot: int) -> tuple[str, int]:
    """Letter and number of the channels that are summed for the derivative in a slot."""
    mul1, mul2, _ = problem.multiplicities(path)
    letters = LETTERS[path.mode][slot]
    if path.mode == "uuu" or len(letters) > 1:
        return "", 1
    return ("v", mul2) if letters == "u" else ("u", mul1)


@dataclass(frozen=True)
class Kernel:
    """What one kernel does.

    Attributes:
        problem: The product.
        slot: The slot of the result.
        channels: The block of the result.
        parts: What is added up.
        begun: Whether an earlier kernel has written the block and this one adds to it.
        shared: Whether one row of weights serves all rows.
        at_nodes: The slots, of x1 and of the result, whose rows are nodes.
        walk: What an item is.
        real: Triton's type of the arithmetic.
        launch: How the kernel is launched.
    """

    problem: TensorProductProblem
    slot: int
    channels: Channels
    parts: tuple[Part, ...]
    begun: bool
    shared: bool
    at_nodes: frozenset[int]
    walk: Walk
    real: str
    launch: TritonLaunch

    @property
    def channels_of_program(self) -> int:
        """Channels, of any items, that a program computes."""
        return self.launch.lanes // self.channels.split

    @cached_property
    def num_products(self) -> int:
        """Number of products of all statements."""
        programs = (self._program(part) for part in self.parts)
        return sum(len(s.products) for program in programs for s in program.statements)

    @cached_property
    def operands(self) -> dict[int, int]:
        """Number -> slot of every operand that is read."""
        return {
            number: slot
            for part in self.parts
            for slot, number in enumerate(part.operands)
            if number is not None and (slot != WEIGHT or part.path.has_weight)
        }

    @cached_property
    def arguments(self) -> dict[str, str]:
        """The function's arguments: "real" or "index" pointers, or a "number"."""
        is_node = self.walk in ("receiver", "sender")
        index = ("item_start", "item_stop", "edge") if is_node else ()
        index = (*index, *sorted(set(self._index.values()) - {"row"}))
        numbers = ("num_items", *(("chunk_rows", "num_rows") if self.walk == "chunk" else ()))
        return {
            **{f"x{number}": "real" for number in sorted(self.operands)},
            "result": "real",
            **dict.fromkeys(index, "index"),
            **dict.fromkeys(numbers, "number"),
        }

    @cached_property
    def _index(self) -> dict[int, str]:
        """For every slot that is read, the list that tells its row."""
        across = "across" if self.walk in ("receiver", "sender") else ""
        lists = {"x1": across or "sender", "out": across or "receiver"}
        return {
            slot: lists[SLOTS[slot]] if slot in self.at_nodes else "row"
            for slot in self.operands.values()
        }

    @cached_property
    def source(self) -> str:
        """The function."""
        numbers = [name for name, kind in self.arguments.items() if kind == "number"]
        return (
            f"@triton.jit(do_not_specialize={numbers})\n"
            f"def {FUNCTION}({', '.join(self.arguments)}):\n"
            f"{indent(chr(10).join(self._function()), '    ')}\n"
        )

    def _function(self) -> Iterator[str]:
        own, width = self.channels, self.channels_of_program
        yield f"lane = tl.program_id(0).to(tl.int64) * {width} + tl.arange(0, {width})[:, None]"
        yield f"item = lane // {own.number}"
        yield f"channel = lane % {own.number}"
        yield "inside = item < num_items"
        for component in range(self._dim):
            yield f"sum_{component} = tl.zeros([{width}, {own.split}], {self.real})"
        if self.walk == "row":
            yield "row = item"
            yield "here = inside"
            yield from self._row()
        else:
            yield from self._rows()
        yield from self._stores()

    def _rows(self) -> Iterator[str]:
        """The walk over the rows of the items, which end one after the other."""
        if self.walk == "chunk":
            yield "position = item * chunk_rows"
            yield "stop = tl.minimum(position + chunk_rows, num_rows)"
            yield "stop = tl.where(inside, stop, position)"
        else:
            yield "position = tl.load(item_start + item, mask=inside, other=0)"
            yield "stop = tl.load(item_stop + item, mask=inside, other=0)"
        yield "steps = tl.max(stop - position)"
        yield "while steps > 0:"
        body = ["here = position < stop", *self._lookups(), *self._row()]
        body += ["position += 1", "steps -= 1"]
        yield indent("\n".join(body), "    ")

    def _lookups(self) -> Iterator[str]:
        """The row at a position, and the node at the other end."""
        if self.walk == "chunk":
            yield "row = position"
            return
        names = {"row": "edge"}
        if "across" in self._index.values():
            names["other"] = "across"
        for name, index in names.items():
            yield f"{name} = tl.load({index} + position, mask=here, other=0).to(tl.int64)"

    def _row(self) -> Iterator[str]:
        """What is done for a row."""
        for index in sorted(set(self._index.values()) & {"sender", "receiver"}):
            yield f"{index}_row = tl.load({index} + row, mask=here, other=0).to(tl.int64)"
        rows = {"row": "row", "across": "other"}
        for number, slot in sorted(self.operands.items()):
            index = self._index[slot]
            row = rows.get(index, f"{index}_row")
            is_one = slot == WEIGHT and self.shared
            yield f"row{number} = x{number}" + (
                "" if is_one else f" + {row} * {self.problem.dims[slot]}"
            )
        for number, part in enumerate(self.parts):
            yield from self._part(number, part)

    def _part(self, number: int, part: Part) -> Iterator[str]:
        """What a path adds."""
        mode = part.path.mode
        _, mul2, _ = self.problem.multiplicities(part.path)
        walked, length = _walked(self.problem, part.path, self.slot)
        if len(self.channels.letters) > 1:
            yield f"u{number} = channel // {mul2}"
            yield f"v{number} = channel % {mul2}"
        else:
            yield f"{self.channels.letters}{number} = channel"
        if walked and length == 1:
            yield f"{walked}{number} = 0"
            walked = ""
        mask = self._mask(number, mode, walked, length)
        program = self._program(part)
        stay = [v for v in program.operands if walked and not _moves(v, mode, walked)]
        known = {f"sum_{component}" for component in range(self._dim)}
        yield from self._pointers(number, part, stay)
        for variable in stay:
            known.add(self._name(number, variable))
            yield f"{self._name(number, variable)} = {self._load(number, part, 'here', variable)}"
        body = [
            *self._pointers(number, part, [v for v in program.operands if v not in stay]),
            *print_statements(
                program,
                partial(self._name, number),
                partial(self._load, number, part, mask),
                ("sum",),
                known,
            ),
        ]
        if not walked:
            yield from body
            return
        split = self.channels.split
        if split == 1:
            yield f"for {walked}{number} in range(0, {length}):"
        else:
            yield f"for first{number} in range(0, {length}, {split}):"
            yield f"    {walked}{number} = first{number} + tl.arange(0, {split})[None, :]"
        yield indent("\n".join(body), "    ")

    def _mask(self, number: int, mode: Mode, walked: str, length: int) -> str:
        """Which lanes have something to read."""
        mask = "here"
        if walked and length % self.channels.split:
            mask += f" & ({walked}{number} < {length})"
        if "<" in mode:
            mask += f" & (u{number} < v{number})"
        return mask

    def _pointers(self, number: int, part: Part, variables: Collection[Variable]) -> Iterator[str]:
        """Pointers to the channels of the operands, first component."""
        for slot in sorted({SLOTS.index(variable.name) for variable in variables}):
            start, _ = self._block(slot, part.path)
            channel = self._channel(number, part.path, LETTERS[part.path.mode][slot])
            yield f"at{slot}_{number} = row{part.operands[slot]} + {start} + {channel}"

    def _channel(self, number: int, path: Path, letters: Letters) -> str:
        _, mul2, _ = self.problem.multiplicities(path)
        if len(letters) == 1:
            return f"{letters}{number}"
        return _pair(letters, f"u{number}", f"v{number}", mul2)

    def _block(self, slot: int, path: Path) -> tuple[int, int]:
        """Where a path's block starts in a row of a slot, and the step between components."""
        if slot == WEIGHT:
            return path.weight_start, 0
        problem = self.problem
        irreps = (problem.irreps_in1, problem.irreps_in2, None, problem.irreps_out)[slot]
        index = (path.i_in1, path.i_in2, 0, path.i_out)[slot]
        assert irreps is not None
        return int(irreps.slices()[index].start), int(irreps[index].mul)

    def _load(self, number: int, part: Part, mask: str, variable: Variable) -> str:
        slot = SLOTS.index(variable.name)
        _, step = self._block(slot, part.path)
        (component,) = variable.indices or (0,)
        address = f"at{slot}_{number} + {component * step}"
        return f"tl.load({address}, mask={mask}, other=0.0).to({self.real})"

    def _name(self, number: int, variable: Variable) -> str:
        """Name in the source: sums are common to all parts."""
        return str(variable) if variable.name == "sum" else f"{variable}_{number}"

    @cached_property
    def _dim(self) -> int:
        """Components of a channel of the result."""
        if self.slot == WEIGHT:
            return 1
        degrees = self.problem.degrees(self.parts[0].path)
        return 2 * degrees[_axis(self.slot)] + 1

    def _program(self, part: Part) -> Program:
        path = part.path
        degrees = self.problem.degrees(path)
        return _formulas(degrees, path.coefficient, self.slot, path.has_weight)

    def _stores(self) -> Iterator[str]:
        own, path = self.channels, self.parts[0].path
        start, step = self._block(self.slot, path)
        column = "channel"
        if own.letters == "u<v":
            yield f"u = channel // {own.mul2}"
            yield f"v = channel % {own.mul2}"
            yield "inside = inside & (u < v)"
            column = _pair(own.letters, "u", "v", own.mul2)
        yield f"target = result + item * {self.problem.dims[self.slot]} + {start} + {column}"
        for component in range(self._dim):
            address = f"target + {component * step}"
            value = f"sum_{component}"
            if own.split > 1:
                value = f"tl.sum({value}, 1)[:, None]"
            if self.begun:
                value = f"tl.load({address}, mask=inside, other=0.0) + {value}"
            yield f"tl.store({address}, {value}, mask=inside)"


def _moves(variable: Variable, mode: Mode, walked: str) -> bool:
    """Whether an operand's channel changes in the walk over channels."""
    return walked in LETTERS[mode][SLOTS.index(variable.name)]


def _pair(letters: Letters, u: str, v: str, mul2: int) -> str:
    """Number of a pair of channels: among all, or among those with u < v."""
    if letters == "uv":
        return f"{u} * {mul2} + {v}"
    return f"{u} * ({2 * mul2 - 1} - {u}) // 2 + {v} - {u} - 1"


def _axis(slot: int) -> int:
    """The degree of (l1, l2, l3) that a slot's components belong to."""
    return (0, 1, 2, 2)[slot]


@lru_cache(maxsize=1024)
def _formulas(
    degrees: tuple[int, int, int], coefficient: float, slot: int, has_weight: bool
) -> Program:
    """What one channel of x1, x2 and the result adds to the derivative in a slot.

    The derivative in the weights goes through the components of the product.
    """
    constants = coefficient * wigner_3j(*degrees)
    result = _axis(slot)
    first, second = {0: (2, 1), 1: (2, 0), 2: (0, 1)}[result]
    names = {0: "x1", 1: "x2", 2: "out"}
    matrix: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for index in constants.abs().gt(1e-14 * abs(coefficient)).nonzero().tolist():
        key = index[result], index[first]
        matrix.setdefault(key, []).append((index[second], float(constants[tuple(index)])))
    rows: dict[int, list[int]] = {}
    for c, a in matrix:
        rows.setdefault(c, []).append(a)
    statements = [
        Statement(
            Variable("m", key),
            "channel",
            tuple(product(names[second], b, coefficient=value) for b, value in terms),
        )
        for key, terms in matrix.items()
    ]
    statements += [
        Statement(
            Variable("t", (c,)),
            "channel",
            tuple(product("m", c, a, names[first], a) for a in row),
        )
        for c, row in rows.items()
    ]
    if slot == WEIGHT:
        terms_of_sum = tuple(product("t", c, "out", c) for c in rows)
        statements.append(Statement(Variable("sum", (0,)), "channel", terms_of_sum))
    else:
        weight: tuple[str, ...] = ("weight",) if has_weight else ()
        statements += [
            Statement(Variable("sum", (c,)), "channel", (product(*weight, "t", c),)) for c in rows
        ]
    return Program(tuple(statements)).specialize(SLOTS, ("sum",))
