"""Triton source of the products on the sphere: transforms as matrix products, the grid in tiles.

A program has a block of columns, each a channel of a row. It holds the parts of every factor, walks
over the points of the grid in tiles, and for every tile

    values = S[points, parts] factor        one product of matrices per factor and field
    sum   += A[parts, points] products      one per sum and field

so that no value on the grid ever leaves the registers. One kernel computes all results of a
schedule. Constants are padded with zeros to the sizes that `tl.dot` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from textwrap import indent

import torch

from eqtp.kernels.codegen.triton_device import TRITON_NAME
from eqtp.kernels.gaunt_grid._schedule import Output, Schedule
from eqtp.kernels.gaunt_grid._transforms import fields_of
from eqtp.kernels.gaunt_grid.config import TRITON_MAX_BYTES, TritonLaunch, triton_launch
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.so3.sphere_grid import sphere_grid

__all__ = ["FUNCTION", "SphereKernel", "kernels_of", "padded"]

FUNCTION = "sphere_product"


def padded(size: int) -> int:
    """The power of 2, at least 16, that `tl.dot` takes for a size."""
    return max(16, 1 << (size - 1).bit_length())


@dataclass(frozen=True)
class SphereKernel:
    """One call's kernel.

    Attributes:
        problem: The product.
        plan: What is computed.
        width: Channels.
        single: The slot of one channel, or -1.
        shared: Numbers of the weights that have one row.
        dtype: Of the operands and of the arithmetic.
        lanes: Threads of a warp.
        tf32: Whether one product of TF32 numbers is accurate enough.
    """

    problem: SphereProductProblem
    plan: Schedule
    width: int
    single: int
    shared: frozenset[int]
    dtype: torch.dtype
    lanes: int
    tf32: bool = False

    @cached_property
    def launch(self) -> TritonLaunch:
        """Sizes of the tiles."""
        return triton_launch(self.dtype.itemsize, self.lanes, self.tf32)

    @cached_property
    def num_parts(self) -> int:
        """Padded components of all factors and sums."""
        dims = self.problem.dims
        factors = sum(padded(dims[factor.slot]) for factor in self.plan.factors)
        return factors + sum(padded(dims[slot]) for slot in self.plan.sums)

    @cached_property
    def real(self) -> str:
        """Triton's type of the arithmetic."""
        return TRITON_NAME[self.dtype]

    @cached_property
    def transforms(self) -> tuple[tuple[int, int], ...]:
        """Slots and fields of the syntheses."""
        slots = sorted({factor.slot for factor in self.plan.factors})
        return tuple((s, f) for s in slots for f in range(fields_of(self.problem.odd)[s]))

    @cached_property
    def analyses(self) -> tuple[tuple[int, int], ...]:
        """Slots and fields of the transposed syntheses."""
        slots = sorted(set(self.plan.sums))
        return tuple((s, f) for s in slots for f in range(fields_of(self.problem.odd)[s]))

    @cached_property
    def block_slots(self) -> tuple[int, ...]:
        """Slots with weights, of which the kernel needs the number of every part's degree."""
        slots = {factor.slot for factor in self.plan.factors if factor.weight is not None}
        slots |= {
            self.plan.sums[output.sum]
            for output in self.plan.outputs
            if not output.is_weight and output.companion is not None
        }
        return tuple(sorted(slots))

    @cached_property
    def indicator_slots(self) -> tuple[int, ...]:
        """Slots whose weights have derivatives, which are sums over the orders of a degree."""
        return tuple(sorted({self.plan.sums[o.sum] for o in self.plan.outputs if o.is_weight}))

    @cached_property
    def results(self) -> tuple[int, ...]:
        """Numbers of the results."""
        return self.plan.results

    @cached_property
    def operands(self) -> tuple[int, ...]:
        """Numbers of the operands, weights included."""
        numbers = [number for f in self.plan.factors for number in (f.operand, f.weight)]
        numbers += [output.companion for output in self.plan.outputs]
        return tuple(sorted({number for number in numbers if number is not None}))

    @cached_property
    def arguments(self) -> dict[str, str]:
        """The function's arguments, "real" or "index" pointers, but for the last, a number."""
        return {
            **{f"x{number}": "real" for number in self.operands},
            **{f"out{number}": "real" for number in self.results},
            **{f"synthesis{s}_{f}": "real" for s, f in self.transforms},
            **{f"analysis{s}_{f}": "real" for s, f in self.analyses},
            **{f"blocks{s}": "index" for s in self.block_slots},
            **{f"indicator{s}": "real" for s in self.indicator_slots},
            "num_columns": "number",
        }

    @cached_property
    def num_points(self) -> int:
        """Points of the grid, padded."""
        tile = self.launch.points
        return -(-len(sphere_grid(self.problem.degree)) // tile) * tile

    @cached_property
    def source(self) -> str:
        """The function."""
        return (
            f'@triton.jit(do_not_specialize=["num_columns"])\n'
            f"def {FUNCTION}({', '.join(self.arguments)}):\n"
            f"{indent(chr(10).join(self._lines()), '    ')}\n"
        )

    def _lines(self) -> Iterator[str]:
        launch = self.launch
        yield f"column = tl.program_id(0).to(tl.int64) * {launch.columns}"
        yield f"column += tl.arange(0, {launch.columns})"
        yield "inside = column < num_columns"
        yield f"row = column // {self.width}"
        yield f"channel = column % {self.width}"
        for slot in range(3):
            yield f"part{slot} = tl.arange(0, {padded(self.problem.dims[slot])})"
            yield f"is_part{slot} = (part{slot} < {self.problem.dims[slot]})[:, None]"
            yield f"is_part{slot} = is_part{slot} & inside[None, :]"
        for slot in self.block_slots:
            yield f"block{slot} = tl.load(blocks{slot} + part{slot})"
        for number, factor in enumerate(self.plan.factors):
            yield f"factor{number} = {self._operand(factor.operand, factor.slot)}"
            if factor.weight is not None:
                yield f"factor{number} *= {self._weight(factor.weight, factor.slot)}"
        for number, slot in enumerate(self.plan.sums):
            shape = f"[{padded(self.problem.dims[slot])}, {launch.columns}]"
            yield f"sum{number} = tl.zeros({shape}, {self.real})"
        yield f"for start in range(0, {self.num_points}, {launch.points}):"
        yield indent("\n".join(self._tile()), "    ")
        for output in self.plan.outputs:
            yield from self._output(output)
        for result in self.results:
            yield self._store(result)

    def _offsets(self, slot: int, length: int, index: str, shared: bool) -> str:
        """Addresses of a row-major [rows or 1, length, channels] for columns."""
        width = 1 if slot == self.single else self.width
        start = "channel * 0" if shared else f"row * {length * width}"
        if slot != self.single:
            start += " + channel"
        return f"({start})[None, :] + {index}[:, None] * {width}"

    def _operand(self, number: int, slot: int) -> str:
        at = self._offsets(slot, self.problem.dims[slot], f"part{slot}", False)
        return f"tl.load(x{number} + {at}, mask=is_part{slot}, other=0.0)"

    def _weight(self, number: int, slot: int) -> str:
        length = len(self.problem.degrees[slot])
        at = self._offsets(slot, length, f"block{slot}", number in self.shared)
        return f"tl.load(x{number} + {at}, mask=is_part{slot}, other=0.0)"

    def _dot(self, a: str, b: str) -> str:
        return f'tl.dot({a}, {b}, input_precision="{self.launch.precision}", out_dtype={self.real})'

    def _tile(self) -> Iterator[str]:
        yield f"point = start + tl.arange(0, {self.launch.points})"
        for slot, field in self.transforms:
            size = padded(self.problem.dims[slot])
            yield f"matrix = tl.load(synthesis{slot}_{field} + point[:, None] * {size} + "
            yield f"    part{slot}[None, :])"
            for number, factor in enumerate(self.plan.factors):
                if factor.slot == slot:
                    yield f"value{number}_{field} = {self._dot('matrix', f'factor{number}')}"
        for slot, field in self.analyses:
            yield f"matrix = tl.load(analysis{slot}_{field} + "
            yield f"    part{slot}[:, None] * {self.num_points} + point[None, :])"
            for number, of_slot in enumerate(self.plan.sums):
                if of_slot == slot:
                    yield f"sum{number} += {self._dot('matrix', self._products(number, field))}"

    def _products(self, number: int, field: int) -> str:
        terms = [
            f"{'' if p.sign > 0 else '-'}value{p.a}_{p.field_a} * value{p.b}_{p.field_b}"
            for p in self.plan.products
            if (p.sum, p.field) == (number, field)
        ]
        return " + ".join(terms)

    def _output(self, output: Output) -> Iterator[str]:
        """Adds a sum to the value of a result."""
        slot = self.plan.sums[output.sum]
        value = f"sum{output.sum}"
        if output.is_weight:
            assert output.companion is not None
            size = padded(len(self.problem.degrees[slot]))
            parts = padded(self.problem.dims[slot])
            yield f"product = {value} * {self._operand(output.companion, slot)}"
            yield f"matrix = tl.load(indicator{slot} + tl.arange(0, {size})[:, None] * {parts} + "
            yield f"    part{slot}[None, :])"
            value = self._dot("matrix", "product")
        elif output.companion is not None:
            value = f"{value} * {self._weight(output.companion, slot)}"
        before = "" if output.begins else f"result{output.result} + "
        yield f"result{output.result} = {before}{value}"

    def _store(self, result: int) -> str:
        """Stores a result, all channels apart also where the slot has one."""
        output = next(output for output in self.plan.outputs if output.result == result)
        slot = self.plan.sums[output.sum]
        length = self.problem.dims[slot]
        index, mask = f"part{slot}", f"is_part{slot}"
        if output.is_weight:
            length = len(self.problem.degrees[slot])
            index = f"tl.arange(0, {padded(length)})"
            mask = f"({index} < {length})[:, None] & inside[None, :]"
        at = f"(row * {length * self.width} + channel)[None, :] + {index}[:, None] * {self.width}"
        return f"tl.store(out{result} + {at}, result{result}, mask={mask})"


def kernels_of(kernel: SphereKernel) -> tuple[SphereKernel, ...]:
    """The kernel, or several where it holds too much; what they have of one result is added."""
    groups: list[tuple[int, ...]] = []
    limit = TRITON_MAX_BYTES // kernel.dtype.itemsize
    for result in kernel.results:
        if groups:
            joined = (*groups[-1], result)
            if replace(kernel, plan=kernel.plan.only(joined)).num_parts <= limit:
                groups[-1] = joined
                continue
        groups.append((result,))
    kernels = [replace(kernel, plan=kernel.plan.only(group)) for group in groups]
    return tuple(
        replace(one, plan=part)
        for one in kernels
        for part in (one.plan.apart() if one.num_parts > limit else (one.plan,))
    )
