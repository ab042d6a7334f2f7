"""Registers and spills of the Triton kernels with computed weights, without a GPU.

    python -m eqtp.benchmarks.triton_radial_registers [--problems PROBLEM ...]

See `triton_registers`, whose tables this one follows.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
from typing import Any

import torch

from eqtp.benchmarks.triton_registers import (
    PROBLEMS,
    TARGETS,
    Usage,
    _read_amdgcn,
    _read_cubin,
    problem,
)
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton_radial import RadialPass
from eqtp.kernels.channelwise._triton_radial_source import FUNCTION, RadialKernel
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_items import End
from eqtp.problem import TensorProductProblem

__all__ = ["PASSES", "compile_pass", "make_pass"]

_FIRST = ("x", "y", "g", "h", "m")
_SECOND = (*_FIRST, "vx", "vy", "vh", "vm")

PASSES: dict[str, tuple[End, tuple[str, ...], tuple[str, ...]]] = {
    "forward": ("receiver", ("x", "y", "h", "m"), ("out",)),
    "gradient x y": ("sender", _FIRST, ("grad_x", "grad_y")),
    "gradient h m": ("receiver", _FIRST, ("grad_h", "grad_m")),
    "gradient h": ("receiver", _FIRST, ("grad_h",)),
    "second g": ("receiver", _SECOND, ("grad_g2",)),
    "second x y": ("sender", _SECOND, ("grad_x2", "grad_y2")),
    "second h m": ("receiver", _SECOND, ("grad_h2", "grad_m2")),
}
"""End, operands and results of the passes of training, and of forces alone."""


def make_pass(
    problem: TensorProductProblem,
    name: str,
    target: str,
    dtype: torch.dtype = torch.float32,
    hidden: int = 64,
) -> RadialPass:
    """A pass of `PASSES` for a target."""
    end, operands, results = PASSES[name]
    lanes = TARGETS[target][2]
    return RadialPass(problem, end, operands, results, hidden, False, dtype, lanes, False)


def compile_pass(plan: RadialPass, target: str) -> Iterator[tuple[RadialKernel, Usage]]:
    """Compiles the kernels of a pass, one after the other."""
    for kernel in plan.kernels:
        start = sum(os.times()[:4])
        compiled = _compile(plan, kernel, target)
        seconds = sum(os.times()[:4]) - start
        if target.startswith("sm_"):
            yield kernel, _read_cubin(compiled.asm["cubin"], seconds)
        else:
            yield kernel, _read_amdgcn(compiled.asm["amdgcn"], seconds)


def _compile(plan: RadialPass, kernel: RadialKernel, target: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    real = {"tl.float32": "*fp32", "tl.float64": "*fp64"}[kernel.real]
    types = {name: real if name in LIKE else "*i64" for name in kernel.arguments}
    types |= {"num_items": "i32", "num_hidden": "i32"}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if types[name] != "i32"
    }
    return triton.compile(
        ASTSource(load_function(kernel.source, FUNCTION), types, {}, aligned),
        target=GPUTarget(*TARGETS[target]),
        options=plan.options,
    )


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

    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    mace = ["mace-medium", "mace-large"]
    parser.add_argument("--problems", nargs="*", default=mace, choices=list(PROBLEMS))
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
