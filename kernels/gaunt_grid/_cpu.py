"""Products on the sphere as compiled C++; `_cpu_source` says how."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen import memory
from eqtp.kernels.codegen.compiler import load_generated
from eqtp.kernels.gaunt_grid._cpu_source import source
from eqtp.kernels.gaunt_grid._schedule import Schedule
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["evaluate"]

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


def _integers(*names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, INTEGER) for name in names)


class _Factor(ctypes.Structure):
    _fields_ = (("data", POINTER), ("weight", POINTER), *_integers("slot", "shared"))


class _Sum(ctypes.Structure):
    _fields_ = _integers("slot")


class _Product(ctypes.Structure):
    _fields_ = (
        *_integers("sum", "field", "a", "field_a", "b", "field_b", "begins"),
        ("sign", ctypes.c_double),
    )


class _Output(ctypes.Structure):
    _fields_ = (
        *(("data", POINTER), ("companion", POINTER)),
        *_integers("sum", "shared", "is_weight", "begins"),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *(("factors", POINTER), ("num_factors", INTEGER)),
        *(("sums", POINTER), ("num_sums", INTEGER)),
        *(("products", POINTER), ("num_products", INTEGER)),
        *(("outputs", POINTER), ("num_outputs", INTEGER)),
        *_integers("rows", "width", "single", "threads"),
    )


def evaluate(
    problem: SphereProductProblem,
    plan: Schedule,
    operands: Mapping[int, Tensor],
    shapes: Mapping[int, Sequence[int]],
    channels: Sequence[int],
) -> dict[int, Tensor]:
    """The results of a schedule.

    Args:
        problem: The product.
        plan: What to compute.
        operands: Number -> operand [rows, dim, channels] or weights [rows or 1, degrees, channels].
        shapes: Number -> shape of every result; derivatives in weights have all rows.
        channels: Channels of every slot; one channel serves all, its derivatives are summed.
    """
    like = next(iter(operands.values()))
    written = {output.result for output in plan.outputs}
    results = {
        number: memory.empty(like, *shape) if number in written else like.new_zeros(shape)
        for number, shape in shapes.items()
    }
    width = max(channels)
    rows = operands[plan.factors[0].operand].shape[0] if plan.factors else 0
    if rows == 0 or width == 0:
        return results

    def address(number: int | None) -> int | None:
        return None if number is None else operands[number].data_ptr()

    def is_shared(number: int | None) -> bool:
        return number is not None and operands[number].shape[0] == 1

    arrays: dict[str, ctypes.Array[Any]] = {
        "factors": (_Factor * len(plan.factors))(
            *(
                _Factor(address(f.operand), address(f.weight), f.slot, is_shared(f.weight))
                for f in plan.factors
            )
        ),
        "outputs": (_Output * len(plan.outputs))(
            *(
                _Output(
                    results[o.result].data_ptr(),
                    address(o.companion),
                    o.sum,
                    not o.is_weight and is_shared(o.companion),
                    o.is_weight,
                    o.begins,
                )
                for o in plan.outputs
            )
        ),
        **_constant_arrays(plan),
    }
    call = _Call(
        **{name: ctypes.addressof(array) for name, array in arrays.items()},
        **{f"num_{name}": len(array) for name, array in arrays.items()},
        rows=rows,
        width=width,
        single=next((slot for slot in range(3) if channels[slot] < width), -1),
        threads=torch.get_num_threads(),
    )
    _library(problem, like.dtype).evaluate(ctypes.byref(call))
    return results


@lru_cache(maxsize=1024)
def _constant_arrays(plan: Schedule) -> dict[str, ctypes.Array[Any]]:
    return {
        "sums": (_Sum * len(plan.sums))(*map(_Sum, plan.sums)),
        "products": (_Product * len(plan.products))(
            *(
                _Product(p.sum, p.field, p.a, p.field_a, p.b, p.field_b, p.begins, p.sign)
                for p in plan.products
            )
        ),
    }


@lru_cache(maxsize=256)
def _library(problem: SphereProductProblem, dtype: torch.dtype) -> ctypes.CDLL:
    library = load_generated(f"{problem.text} {dtype}", lambda: source(problem, dtype))
    library.evaluate.argtypes = [POINTER]
    library.evaluate.restype = None
    return library
