"""Products on the sphere as Triton kernels; `_triton_source` holds the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_device import lanes_of
from eqtp.kernels.gaunt_grid._schedule import Schedule
from eqtp.kernels.gaunt_grid._transforms import dense_matrices
from eqtp.kernels.gaunt_grid._triton_source import FUNCTION, SphereKernel, kernels_of, padded
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem

__all__ = ["evaluate"]


def evaluate(
    problem: SphereProductProblem,
    plan: Schedule,
    operands: Mapping[int, Tensor],
    shapes: Mapping[int, Sequence[int]],
    channels: Sequence[int],
) -> dict[int, Tensor]:
    """The results of a schedule; see `_torch.evaluate`."""
    like = next(iter(operands.values()))
    written = {output.result for output in plan.outputs}
    results = {
        number: like.new_zeros(shape) for number, shape in shapes.items() if number not in written
    }
    width = max(channels)
    rows = operands[plan.factors[0].operand].shape[0] if plan.factors else 0
    if rows == 0 or width == 0:
        return {number: like.new_zeros(shape) for number, shape in shapes.items()}
    kernels = _kernels(
        problem,
        plan,
        width,
        next((slot for slot in range(3) if channels[slot] < width), -1),
        frozenset(n for n, x in operands.items() if x.shape[0] == 1 and rows > 1),
        like.dtype,
        lanes_of(like.device),
        torch.get_float32_matmul_precision() != "highest",
    )
    for kernel in kernels:
        wide = {n: like.new_empty(rows, shapes[n][1], width) for n in kernel.results}
        _launch(kernel, operands, wide, rows * width)
        for number, value in wide.items():
            value = value.sum(2, keepdim=True) if shapes[number][2] < width else value
            results[number] = results[number] + value if number in results else value
    return results


def _launch(
    kernel: SphereKernel,
    operands: Mapping[int, Tensor],
    results: Mapping[int, Tensor],
    columns: int,
) -> None:
    """Runs a kernel on columns, the channels of all rows."""
    like = operands[kernel.operands[0]]
    with torch.cuda.device_of(like):
        load_function(kernel.source, FUNCTION)[(-(-columns // kernel.launch.columns),)](
            *(operands[number] for number in kernel.operands),
            *results.values(),
            *_constants(kernel, like.device),
            columns,
            num_warps=kernel.launch.num_warps,
            num_stages=kernel.launch.num_stages,
            enable_fp_fusion=True,
        )


@lru_cache(maxsize=1024)
def _kernels(*description: Any) -> tuple[SphereKernel, ...]:
    return kernels_of(SphereKernel(*description))


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _constants(kernel: SphereKernel, device: torch.device) -> tuple[Tensor, ...]:
    """The padded matrices that a kernel reads, in the order of its arguments."""
    problem = kernel.problem
    matrices, weights = dense_matrices(problem)

    def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
        full = torch.zeros(rows, columns, dtype=torch.float64)
        full[: matrix.shape[0], : matrix.shape[1]] = matrix
        return full.to(device, kernel.dtype)

    made = []
    for slot, field in kernel.transforms:
        made.append(pad(matrices[slot][field], kernel.num_points, padded(problem.dims[slot])))
    for slot, field in kernel.analyses:
        analysis = matrices[slot][field].T * weights
        made.append(pad(analysis, padded(problem.dims[slot]), kernel.num_points))
    for slot in kernel.block_slots:
        blocks = torch.zeros(padded(problem.dims[slot]), dtype=torch.int64)
        blocks[: problem.dims[slot]] = problem.blocks[slot]
        made.append(blocks.to(device))
    for slot in kernel.indicator_slots:
        degrees = len(problem.degrees[slot])
        indicator = problem.blocks[slot] == torch.arange(degrees)[:, None]
        made.append(pad(indicator.double(), padded(degrees), padded(problem.dims[slot])))
    return tuple(made)
