"""What the machine can do at most: bytes per second read, flops per second of multiply-adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from eqtp.benchmarks.harness.case import Work
from eqtp.kernels.codegen import cpp
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.compiler import load_library

__all__ = ["Ceilings", "ceiling_source", "measure_ceilings"]


@dataclass(frozen=True)
class Ceilings:
    """Measured rates of one device with one number of threads.

    Attributes:
        bytes_per_second: Reading memory once.
        flops_per_second: Multiply-adds in registers, two flops each, by dtype.
        how: How they were measured.
    """

    bytes_per_second: float
    flops_per_second: dict[str, float]
    how: str

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        """The least time of some work: the slower of its memory traffic and its arithmetic."""
        flops = self.flops_per_second[str(dtype).removeprefix("torch.")]
        return max(work.numbers * dtype.itemsize / self.bytes_per_second, work.flops / flops)

    def raised_to(self, other: Ceilings) -> Ceilings:
        """The higher of both for each rate: what else ran during a measurement is no ceiling."""
        flops = {
            dtype: max(rate, other.flops_per_second[dtype])
            for dtype, rate in self.flops_per_second.items()
        }
        return Ceilings(max(self.bytes_per_second, other.bytes_per_second), flops, self.how)

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return asdict(self)


def measure_ceilings(device: str, threads: int, *, repetitions: int = 10) -> Ceilings:
    """Measures both rates, the fastest of some repetitions."""
    dtypes = (torch.float32, torch.float64)
    if device == "cpu" and why_unavailable("cpu") is None:
        return Ceilings(
            _read_rate(threads, repetitions),
            {_name(dtype): _multiply_add_rate(dtype, threads, repetitions) for dtype in dtypes},
            f"generated C++, {threads} thread(s): 256 MiB read, multiply-adds in registers",
        )
    return Ceilings(
        _copy_rate(device, repetitions),
        {_name(dtype): _matmul_rate(dtype, device, repetitions) for dtype in dtypes},
        f"torch on {device}: a copy of 256 MiB, a product of 4096 x 4096 matrices",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _copy_rate(device: str, repetitions: int) -> float:
    x = torch.ones(1 << 26, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / _fastest(lambda: y.copy_(x), repetitions, device)


def _matmul_rate(dtype: torch.dtype, device: str, repetitions: int) -> float:
    size = 4096 if device != "cpu" else 1024
    x = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _fastest(lambda: x @ x, repetitions, device)


def ceiling_source(dtype: torch.dtype) -> str:
    """C++ of `read_all` and `multiply_add`, which leave the sums that they make."""
    return (
        cpp.prelude(dtype)
        + cpp.EXPORT
        + """ void read_all(const real* x, int64_t size, real* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < size; block += 65536) {
        vec sum[8] = {};
        for (int64_t i = block; i < block + 65536; i += 8 * LANES)
            for (int k = 0; k < 8; ++k) sum[k] += load(x + i + k * LANES);
        for (int k = 1; k < 8; ++k) sum[0] += sum[k];
        sums[block / 65536] = sum_lanes(sum[0]);
    }
}
"""
        + cpp.EXPORT
        + """ int multiply_add(int64_t rounds, real* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; ++thread) {
        // Eight equal chains would be compiled into one, and counted eight times.
        vec a0 = vec{} + 1, a1 = a0 + 1, a2 = a0 + 2, a3 = a0 + 3;
        vec a4 = a0 + 4, a5 = a0 + 5, a6 = a0 + 6, a7 = a0 + 7;
        const vec b = vec{} + sums[0], c = vec{} + sums[1];
        for (int64_t i = 0; i < rounds; ++i) {
            a0 = a0 * b + c; a1 = a1 * b + c; a2 = a2 * b + c; a3 = a3 * b + c;
            a4 = a4 * b + c; a5 = a5 * b + c; a6 = a6 * b + c; a7 = a7 * b + c;
        }
        sums[2 + thread] = sum_lanes(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7);
    }
    return 16 * LANES;
}
"""
    )


def _read_rate(threads: int, repetitions: int) -> float:
    """Bytes per second of reading 256 MiB once."""
    x = torch.ones(1 << 26)
    sums = torch.empty(1 << 10)
    library = load_library(ceiling_source(torch.float32))
    seconds = _fastest(
        lambda: library.read_all(*_pointers(x), x.numel(), *_pointers(sums), threads), repetitions
    )
    return x.nbytes / seconds


def _multiply_add_rate(dtype: torch.dtype, threads: int, repetitions: int) -> float:
    """Operations per second of all threads, two per multiply-add."""
    sums = torch.full((2 + threads,), 0.5, dtype=dtype)
    library, rounds = load_library(ceiling_source(dtype)), 5_000_000
    per_round = library.multiply_add(1, *_pointers(sums), 1)
    seconds = _fastest(lambda: library.multiply_add(rounds, *_pointers(sums), threads), repetitions)
    return float(rounds * per_round * threads / seconds)


def _pointers(*tensors: Tensor) -> list[Any]:
    from ctypes import c_void_p

    return [c_void_p(tensor.data_ptr()) for tensor in tensors]


def _fastest(call: Callable[[], object], repetitions: int, device: str = "cpu") -> float:
    times = []
    for _ in range(repetitions):
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
