"""Plain-PyTorch kernel: sums of derivatives of the form, in chunks of rows that fit the cache.

Inside, rows and channels are columns ([dim, N]), so that every transform is a matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eqtp.kernels.gaunt_grid._schedule import Product, Schedule
from eqtp.kernels.gaunt_grid._transforms import Plan, fields_of, make_plan
from eqtp.kernels.gaunt_grid.config import chunk_rows
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["evaluate"]


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
    results = {number: like.new_zeros(shape) for number, shape in shapes.items()}
    rows = operands[plan.factors[0].operand].shape[0] if plan.factors else 0
    if rows == 0 or max(channels) == 0:
        return results
    transforms = make_plan(problem, like.dtype, like.device)
    blocks = [block.to(like.device) for block in problem.blocks]
    step = chunk_rows(transforms.num_points * max(channels) * like.element_size())
    for start in range(0, rows, step):
        chunk = slice(start, min(start + step, rows))

        def part(number: int, chunk: slice = chunk) -> Tensor:
            operand = operands[number]
            return operand if operand.shape[0] == 1 else operand[chunk]

        values = []
        for factor in plan.factors:
            x = part(factor.operand)
            if factor.weight is not None:
                x = x * part(factor.weight)[:, blocks[factor.slot]]
            columns = x.permute(1, 0, 2).reshape(problem.dims[factor.slot], -1)
            fields = transforms.transforms[factor.slot].synthesize(columns)
            num_fields = fields_of(problem.odd)[factor.slot]
            values.append(fields.view(num_fields, transforms.num_points, *x.shape[::2]))
        for number, slot in enumerate(plan.sums):
            products = [product for product in plan.products if product.sum == number]
            parts = _sum(products, values, slot, transforms, channels[slot] < max(channels))
            for output in plan.outputs:
                if output.sum != number:
                    continue
                target = results[output.result][chunk]
                if output.is_weight:
                    assert output.companion is not None
                    target.index_add_(1, blocks[slot], parts * part(output.companion))
                elif output.companion is None:
                    target += parts
                else:
                    target += parts * part(output.companion)[:, blocks[slot]]
    return results


def _sum(
    products: Sequence[Product],
    values: Sequence[Tensor],
    slot: int,
    transforms: Plan,
    over_channels: bool,
) -> Tensor:
    """A sum of products, transformed back: [rows, dim, channels]."""
    fields: dict[int, Tensor] = {}
    for product in products:
        value = values[product.a][product.field_a] * values[product.b][product.field_b]
        value = value if product.sign > 0 else -value
        before = fields.get(product.field)
        fields[product.field] = value if before is None else before + value
    stacked = torch.stack([fields[field] for field in sorted(fields)])
    if over_channels:
        stacked = stacked.sum(-1, keepdim=True)
    weighted = stacked.flatten(2) * transforms.weights
    parts = transforms.transforms[slot].transpose(weighted.flatten(0, 1))
    return parts.view(-1, *stacked.shape[2:]).transpose(0, 1)
