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
from eqtp.kernels.gaunt_grid._transforms import COUPLINGS
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.kernels.tensor_product._form import Term

__all__ = ["evaluate", "products_of"]

POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Array(ctypes.Structure):  # an operand or a result
    _fields_ = (("data", POINTER), ("slot", INTEGER))


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, INTEGER) for name in ("result", "field", "a", "field_a", "b", "field_b")),
        *(("begins", INTEGER), ("sign", ctypes.c_double)),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        *(("operands", POINTER), ("num_operands", INTEGER)),
        *(("results", POINTER), ("num_results", INTEGER)),
        *(("products", POINTER), ("num_products", INTEGER)),
        *((name, INTEGER) for name in ("rows", "width", "single", "threads")),
    )


def evaluate(
    problem: SphereProductProblem,
    terms: Sequence[Term],
    operands: Mapping[int, Tensor],
    slots: Mapping[int, int],
    channels: Sequence[int],
) -> dict[int, Tensor]:
    """The sums of derivatives that the terms describe; see `_torch.evaluate`."""
    like = next(iter(operands.values()))
    rows, width = like.shape[0], max(channels)
    products, used = products_of(problem.odd, terms, tuple(operands), tuple(slots))
    reached = {product[0] for product in products}
    results = {
        number: memory.empty(like, rows, problem.dims[slot], channels[slot])
        if index in reached
        else like.new_zeros(rows, problem.dims[slot], channels[slot])
        for index, (number, slot) in enumerate(slots.items())
    }
    if rows == 0 or width == 0 or not products:
        return results
    kept = [index for index in range(len(slots)) if index in reached]
    places = {index: place for place, index in enumerate(kept)}
    numbers = list(slots)
    arrays: dict[str, ctypes.Array[Any]] = {
        "operands": (_Array * len(used))(
            *(_Array(operands[number].data_ptr(), slot) for number, slot in used)
        ),
        "results": (_Array * len(kept))(
            *(_Array(results[numbers[i]].data_ptr(), slots[numbers[i]]) for i in kept)
        ),
        "products": (_Product * len(products))(
            *(_Product(places[result], *rest) for result, *rest in products)
        ),
    }
    single = next((slot for slot in range(3) if channels[slot] < width), -1)
    call = _Call(
        **{name: ctypes.addressof(array) for name, array in arrays.items()},
        **{f"num_{name}": len(array) for name, array in arrays.items()},
        rows=rows,
        width=width,
        single=single,
        threads=torch.get_num_threads(),
    )
    _library(problem, like.dtype).evaluate(ctypes.byref(call))
    return results


@lru_cache(maxsize=1024)
def products_of(
    odd: bool, terms: Sequence[Term], given: tuple[int, ...], results: tuple[int, ...]
) -> tuple[list[tuple[Any, ...]], list[tuple[int, int]]]:
    """Products of fields that make up the results, and the operands with their slots.

    A product is (place of the result, its field, place of a, field, place of b, field, whether it
    is the field's first, sign).
    """
    used: dict[tuple[int, int], int] = {}
    begun: set[tuple[int, int]] = set()
    products: list[tuple[Any, ...]] = []
    for term in terms:
        for slot, result in enumerate(term.results):
            if result is None:
                continue
            first, second = (other for other in range(3) if other != slot)
            a, b = term.operands[first], term.operands[second]
            if a is None or b is None or a not in given or b not in given:
                continue
            at_a, at_b = (used.setdefault(key, len(used)) for key in ((a, first), (b, second)))
            place = results.index(result)
            for fields, sign in COUPLINGS[odd]:
                target = place, fields[slot]
                begins = target not in begun
                begun.add(target)
                products.append((*target, at_a, fields[first], at_b, fields[second], begins, sign))
    return products, list(used)


@lru_cache(maxsize=256)
def _library(problem: SphereProductProblem, dtype: torch.dtype) -> ctypes.CDLL:
    library = load_generated(f"{problem.text} {dtype}", lambda: source(problem, dtype))
    library.evaluate.argtypes = [POINTER]
    library.evaluate.restype = None
    return library
