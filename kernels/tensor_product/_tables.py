"""The tables that the C++ kernel of the general product reads; `_cpu_source` says what it does."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.layout import Layout
from eqtp.problem import Mode, Path, TensorProductProblem
from eqtp.so3 import wigner_3j

__all__ = ["Tables", "make_tables"]

MIXING = ("uvw", "uuw", "u<vw")
NUMBERS = (
    *("a_is_x2", "a", "a_u", "b", "b_v", "num_b"),
    *("first", "columns", "out_k", "out_w"),
    *("weight", "width", "mixing", "weighted", "num_pairs"),
    *("dim_a", "dim_b", "dim_k", "num_elements"),
)


@dataclass(frozen=True)
class _Lists:
    """The lists of one path, int32 but for the constants."""

    start: Tensor
    count: Tensor
    pair: Tensor
    channel: Tensor
    k_start: Tensor
    element_a: Tensor
    element_k: Tensor
    i_start: Tensor
    i_element: Tensor
    i_column: Tensor
    term_start: Tensor
    term_b: Tensor
    term_c: Tensor
    j_start: Tensor
    j_element: Tensor
    j_column: Tensor
    j_c: Tensor


class _Path(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in NUMBERS),
        *((field.name, ctypes.c_void_p) for field in fields(_Lists)),
    )


@dataclass(frozen=True)
class Tables:
    """What the kernel reads of a problem.

    Attributes:
        paths: One structure per path, sorted by block of the result; empty paths are left out.
        lists: Keeps alive what the structures point to.
        complete: Whether every column of the result belongs to a path.
    """

    paths: ctypes.Array[_Path]
    lists: tuple[_Lists, ...]
    complete: bool


@lru_cache(maxsize=256)
def make_tables(problem: TensorProductProblem, dtype: torch.dtype, layout: Layout) -> Tables:
    """Lays out a problem for operands of a dtype and a layout."""
    paths = [p for p in problem.paths if 0 not in (*problem.multiplicities(p), *p.weight_shape)]
    paths.sort(key=lambda path: path.i_out)
    entries, kept = [], []
    for path in paths:
        numbers, lists = _lay_out(problem, path, dtype, layout)
        kept.append(lists)
        pointers = (getattr(lists, field.name).data_ptr() for field in fields(_Lists))
        entries.append(_Path(*(numbers[name] for name in NUMBERS), *pointers))
    written = {path.i_out for path in paths}
    complete = all(i in written for i, block in enumerate(problem.irreps_out) if block.dim > 0)
    return Tables((_Path * len(entries))(*entries), tuple(kept), complete)


def _lay_out(
    problem: TensorProductProblem, path: Path, dtype: torch.dtype, layout: Layout
) -> tuple[dict[str, int], _Lists]:
    """The numbers and lists of one path."""
    mul1, mul2, mul3 = problem.multiplicities(path)
    swapped = mul1 < mul2  # the constants meet the operand with fewer channels, b
    sides = [(problem.irreps_in1, path.i_in1), (problem.irreps_in2, path.i_in2)]
    constants = wigner_3j(*problem.degrees(path))
    if swapped:
        sides, constants = sides[::-1], constants.transpose(0, 1)
    (a, a_i, a_u), (b, b_j, b_v) = (_steps(*side, layout) for side in sides)
    first, out_k, out_w = _steps(problem.irreps_out, path.i_out, layout)
    mixing = path.mode in MIXING and path.has_weight
    lists = {
        **_pair_lists(path.mode, mul1, mul2, swapped),
        **_element_lists(constants, path.coefficient, a_i, b_j),
    }
    numbers = {
        "a_is_x2": int(swapped), "a": a, "a_u": a_u, "b": b, "b_v": b_v,
        "num_b": min(mul1, mul2),
        "first": first, "columns": problem.irreps_out[path.i_out].dim,
        "out_k": out_k, "out_w": out_w,
        "weight": path.weight_start, "width": mul3 if mixing else 1, "mixing": int(mixing),
        "weighted": int(path.has_weight), "num_pairs": len(lists["pair"]),
        "dim_a": constants.shape[0], "dim_b": constants.shape[1], "dim_k": constants.shape[2],
        "num_elements": len(lists["element_a"]),
    }  # fmt: skip
    types = {name: dtype if x.is_floating_point() else torch.int32 for name, x in lists.items()}
    return numbers, _Lists(**{name: x.to(types[name]) for name, x in lists.items()})


def _steps(irreps: Irreps, index: int, layout: Layout) -> tuple[int, int, int]:
    """First column of a block, and the steps from component to component and channel to channel."""
    mul, ir = irreps[index]
    component, channel = (1, ir.dim) if layout == "mul_ir" else (mul, 1)
    return irreps.slices()[index].start, component, channel


def _pair_lists(mode: Mode, mul1: int, mul2: int, swapped: bool) -> dict[str, Tensor]:
    """Which channels meet: for each channel of b a run of channels of a."""
    num_a, num_b = (mul2, mul1) if swapped else (mul1, mul2)
    each = torch.arange(num_b)
    start, count = torch.zeros_like(each), torch.full_like(each, num_a)
    if "<" in mode:
        u, v = torch.triu_indices(mul1, mul1, 1)
        pair = v.argsort(stable=True)
        u, v, count = u[pair], v[pair], each
    elif mode in ("uuw", "uuu"):
        u, v, pair = each, each, each
        start, count = each, torch.ones_like(each)
    else:
        of_b, of_a = torch.cartesian_prod(each, torch.arange(num_a)).unbind(1)
        u, v = (of_b, of_a) if swapped else (of_a, of_b)
        pair = u * mul2 + v
    channel = torch.empty_like(pair)
    channel[pair] = {"uvu": u, "uvv": v, "uuw": torch.zeros_like(u)}.get(mode, pair)
    return {"start": start, "count": count, "pair": pair, "channel": channel}


def _element_lists(constants: Tensor, coefficient: float, a_i: int, b_j: int) -> dict[str, Tensor]:
    """The constants [i, j, k] by element (i, k), the elements by k and by i, and all by j."""
    dim_a, dim_b, dim_k = constants.shape
    nonzero = constants.abs() > 1e-14
    element_k, element_i = nonzero.any(1).t().nonzero().unbind(1)
    element, term_j = nonzero[element_i, :, element_k].nonzero().unbind(1)
    term_c = coefficient * constants[element_i[element], term_j, element_k[element]]
    by_i, by_j = element_i.argsort(stable=True), term_j.argsort(stable=True)
    return {
        "k_start": _starts(element_k, dim_k),
        "element_a": element_i * a_i,
        "element_k": element_k,
        "i_start": _starts(element_i, dim_a),
        "i_element": by_i,
        "i_column": torch.arange(dim_a) * a_i,
        "term_start": _starts(element, len(element_k)),
        "term_b": term_j * b_j,
        "term_c": term_c,
        "j_start": _starts(term_j, dim_b),
        "j_element": element[by_j],
        "j_column": torch.arange(dim_b) * b_j,
        "j_c": term_c[by_j],
    }


def _starts(index: Tensor, size: int) -> Tensor:
    """Where each number's run starts in a sorted index, and the end."""
    return torch.nn.functional.pad(torch.bincount(index, minlength=size).cumsum(0), (1, 0))
