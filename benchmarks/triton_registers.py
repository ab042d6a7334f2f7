"""Registers and spills of the Triton kernels, read from binaries compiled ahead of time.

    python -m eqtp.benchmarks.triton_registers [--problems PROBLEM ...]

Needs triton and no GPU. A spill is a register kept in memory, which makes a kernel several times
slower; launch choices are made so that there is none. Whether a kernel runs fast, or runs at all,
is not shown by this.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eqtp.kernels.channelwise._triton import Pass
from eqtp.kernels.channelwise._triton_source import FUNCTION, LIKE, End, Kernel
from eqtp.kernels.codegen.triton import load_function
from eqtp.nn import ChannelwiseTensorProduct
from eqtp.problem import TensorProductProblem

__all__ = ["PASSES", "PROBLEMS", "TARGETS", "Usage", "compile_pass", "make_pass"]

PROBLEMS = {
    "mace-medium": ("128x0e+128x1o", "0e+1o+2e+3o", "128x0e+128x1o+128x2e"),
    "mace-large": (
        "128x0e+128x1o+128x2e",
        "0e+1o+2e+3o",
        "128x0e+128x1o+128x2e+128x3o",
    ),
    "nequip-lips": (
        "32x0o+32x0e+32x1o+32x1e+32x2o+32x2e",
        "0e+1o+2e",
        "32x0o+32x0e+32x1o+32x1e+32x2o+32x2e",
    ),
    "nequip-benzene": (
        "64x0o+64x0e+64x1o+64x1e+64x2o+64x2e+64x3o+64x3e",
        "0e+1o+2e+3o",
        "64x0o+64x0e+64x1o+64x1e+64x2o+64x2e+64x3o+64x3e",
    ),
    "sevennet-l3i5": (
        "128x0e+64x1e+32x2e+32x3e",
        "0e+1e+2e+3e",
        "128x0e+128x1e+128x2e+128x3e",
    ),
    "nequix": ("128x0e+64x1o+32x2e+32x3o", "0e+1o+2e+3o", "128x0e+128x1o+128x2e+128x3o"),
    "flashtp-4-32-3": (
        "32x0e+32x0o+32x1e+32x1o+32x2e+32x2o+32x3e+32x3o",
        "0e+1o+2e+3o",
        "32x0e+32x0o+32x1e+32x1o+32x2e+32x2o+32x3e+32x3o",
    ),
}
"""irreps_in1, irreps_in2 and irreps_out of convolutions of published models."""

PASSES: dict[str, tuple[End, tuple[str, ...], tuple[str, ...]]] = {
    "forward": ("receiver", ("x", "y", "w"), ("out",)),
    "gradient": ("sender", ("x", "y", "w", "g"), ("grad_x", "grad_y", "grad_w")),
    "gradient y w": ("receiver", ("x", "y", "w", "g"), ("grad_y", "grad_w")),
    "second g w": (
        "receiver",
        ("x", "y", "w", "g", "vx", "vy", "vw"),
        ("grad_g2", "grad_w2"),
    ),
    "second x y": (
        "sender",
        ("x", "y", "w", "g", "vx", "vy", "vw"),
        ("grad_x2", "grad_y2"),
    ),
}
"""End, operands and results of the passes that training needs."""

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
"""Backend, architecture and threads of a warp."""


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel uses, per thread.

    Attributes:
        registers: Registers (on AMD: vector registers).
        spills: Spilled registers; on NVIDIA accesses of local memory.
        stack: Bytes of local memory; 0 on AMD, where `spills` says all.
        seconds: CPU time to compile; less where Triton's own cache has the kernel.
    """

    registers: int
    spills: int
    stack: int
    seconds: float


def problem(name: str) -> TensorProductProblem:
    """A product of `PROBLEMS`."""
    return ChannelwiseTensorProduct(*PROBLEMS[name]).problem


def make_pass(
    problem: TensorProductProblem, name: str, target: str, dtype: torch.dtype = torch.float32
) -> Pass:
    """A pass of `PASSES` for a target, with edges and weights of their own."""
    end, operands, results = PASSES[name]
    return Pass(problem, end, operands, results, False, False, dtype, TARGETS[target][2])


def compile_pass(plan: Pass, target: str) -> Iterator[tuple[Kernel, Usage]]:
    """Compiles the kernels of a pass, one after the other."""
    for kernel in plan.kernels:
        start = _cpu_seconds()
        compiled = _compile(plan, kernel, target)
        seconds = _cpu_seconds() - start
        if target.startswith("sm_"):
            yield kernel, _read_cubin(compiled.asm["cubin"], seconds)
        else:
            yield kernel, _read_amdgcn(compiled.asm["amdgcn"], seconds)


def _cpu_seconds() -> float:
    """CPU time of this process and of the assemblers that it has started."""
    return sum(os.times()[:4])


def _compile(plan: Pass, kernel: Kernel, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    real = {"tl.float32": "*fp32", "tl.float64": "*fp64"}[kernel.real]
    types = {name: real if name in LIKE else "*i64" for name in kernel.arguments}
    types["num_items"] = "i32"
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if name != "num_items"
    }
    function = load_function(kernel.source, FUNCTION)
    return triton.compile(
        ASTSource(function, types, {}, aligned),
        target=GPUTarget(*TARGETS[target]),
        options={
            "num_warps": plan.launch.num_warps,
            "num_stages": plan.launch.num_stages,
            "enable_fp_fusion": True,
        },
    )


def _read_cubin(cubin: bytes, seconds: float) -> Usage:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command = [str(tool), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = dict(re.findall(r"(REG|STACK):(\d+)", dump("-res-usage")))
        accesses = re.findall(r"\b(?:LDL|STL)\b", dump("-sass"))
    return Usage(int(usage["REG"]), len(accesses), int(usage["STACK"]), seconds)


def _read_amdgcn(text: str, seconds: float) -> Usage:
    def total(*names: str) -> int:
        return sum(int(n) for name in names for n in re.findall(rf"\.{name}:\s+(\d+)", text))

    return Usage(total("vgpr_count"), total("vgpr_spill_count", "sgpr_spill_count"), 0, seconds)


def _row(name: str, dtype: str, target: str, pass_name: str) -> str:
    """A line of the table."""
    plan = make_pass(problem(name), pass_name, target, getattr(torch, dtype))
    usages = [usage for _, usage in compile_pass(plan, target)]
    cells = (
        *(name, dtype, target, pass_name, len(usages)),
        max(usage.registers for usage in usages),
        sum(usage.spills for usage in usages),
        max(usage.stack for usage in usages),
        f"{sum(usage.seconds for usage in usages):.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Prints the table as Markdown, a line as soon as it is known."""
    import triton

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--passes", nargs="*", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    options = parser.parse_args()
    print(f"Triton {triton.__version__}; registers and stack: the largest of the kernels.\n")
    print("| problem | dtype | target | pass | kernels | registers | spills | stack, B | CPU, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    choices = (options.problems, options.dtypes, options.targets, options.passes)
    for choice in itertools.product(*choices):
        print(_row(*choice), flush=True)


if __name__ == "__main__":
    main()
