"""Plain-PyTorch kernel: sums of derivatives of the trilinear form, in chunks that fit the cache.

Inside, rows and channels are columns ([dim, N]), so that every transform is a matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eqtp.kernels.gaunt_grid._transforms import COUPLINGS, make_plan
from eqtp.kernels.gaunt_grid.config import chunk_rows
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.kernels.tensor_product._form import Term

__all__ = ["evaluate"]


def evaluate(
    problem: SphereProductProblem,
    terms: Sequence[Term],
    operands: Mapping[int, Tensor],
    slots: Mapping[int, int],
    channels: Sequence[int],
) -> dict[int, Tensor]:
    """The sums of derivatives that the terms describe.

    Args:
        problem: The product.
        terms: Which operands fill the slots, and which derivatives are taken.
        operands: Number -> operand [rows, dim, channels], those that are given.
        slots: Slot of every result, by the result's number.
        channels: Channels of every slot; one channel serves all, its derivatives are summed.
    """
    like = next(iter(operands.values()))
    plan = make_plan(problem, like.dtype, like.device)
    rows, width = like.shape[0], max(channels)
    results = {
        number: like.new_zeros(rows, problem.dims[slot], channels[slot])
        for number, slot in slots.items()
    }
    if rows == 0 or width == 0:
        return results
    step = chunk_rows(plan.num_points * width * like.element_size())
    for start in range(0, rows, step):
        chunk = slice(start, min(start + step, rows))
        size = chunk.stop - start
        values: dict[tuple[int, int], Tensor] = {}  # by operand and slot
        sums: dict[int, list[Tensor | None]] = {}
        for term in terms:
            for slot, number in enumerate(term.operands):
                if number is None or number not in operands or (number, slot) in values:
                    continue
                columns = operands[number][chunk].permute(1, 0, 2).reshape(problem.dims[slot], -1)
                fields = plan.transforms[slot].synthesize(columns)
                values[number, slot] = fields.view(-1, plan.num_points, size, channels[slot])
            _add_products(problem.odd, term, values, sums)
        for number, fields_of_result in sums.items():
            slot = slots[number]
            stacked = torch.cat([field for field in fields_of_result if field is not None])
            if channels[slot] < width:
                stacked = stacked.sum(-1)
            weighted = stacked.view(-1, plan.num_points, size * channels[slot]) * plan.weights
            parts = plan.transforms[slot].transpose(weighted.flatten(0, 1))
            results[number][chunk] = parts.view(-1, size, channels[slot]).transpose(0, 1)
    return results


def _add_products(
    odd: bool,
    term: Term,
    values: Mapping[tuple[int, int], Tensor],
    sums: dict[int, list[Tensor | None]],
) -> None:
    """Adds a term's products of values to the fields of its results."""
    for slot, result in enumerate(term.results):
        if result is None:
            continue
        others = [other for other in range(3) if other != slot]
        keys = [(term.operands[other], other) for other in others]
        if any(key not in values for key in keys):
            continue
        first, second = (values[key] for key in keys)  # type: ignore[index]
        fields = sums.setdefault(result, [None] * (2 if odd and slot < 2 else 1))
        for places, sign in COUPLINGS[odd]:
            product = first[places[others[0]]] * second[places[others[1]]]
            product = product if sign > 0 else -product
            before = fields[places[slot]]
            fields[places[slot]] = product if before is None else before + product
