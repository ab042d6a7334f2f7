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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.irreps import Irreps
from eqtp.kernels.channelwise._program import LIKE
from eqtp.kernels.channelwise._triton import Pass
from eqtp.kernels.channelwise._triton_source import FUNCTION, Kernel
from eqtp.kernels.codegen.multilinear_terms import Term, differentiate
from eqtp.kernels.codegen.triton import load_function
from eqtp.kernels.codegen.triton_items import End
from eqtp.kernels.gaunt_contraction import _triton as gaunt
from eqtp.kernels.matrix import _triton as matrix
from eqtp.kernels.spherical_harmonics import _triton as harmonics
from eqtp.kernels.symmetric_contraction import _triton as contraction
from eqtp.kernels.tensor_product import _triton as general
from eqtp.kernels.tensor_product._form import SLOTS, VALUE
from eqtp.kernels.tensor_product._triton_source import FUNCTION as GENERAL_FUNCTION
from eqtp.kernels.tensor_product.pairs import pairs_of
from eqtp.nn import ChannelwiseTensorProduct, FullyConnectedTensorProduct
from eqtp.problem import TensorProductProblem
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = [
    "CONTRACTIONS",
    "CONTRACTION_PASSES",
    "GAUNT_CONTRACTIONS",
    "GENERAL",
    "GENERAL_PASSES",
    "HARMONICS",
    "MATRICES",
    "PASSES",
    "PROBLEMS",
    "TARGETS",
    "Usage",
    "compile_contraction",
    "compile_gaunt_contraction",
    "compile_general",
    "compile_harmonics",
    "compile_matrices",
    "compile_pass",
    "make_pass",
]

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

CONTRACTIONS = {
    "contraction-0e": ("32x0e+32x1o+32x2e+32x3o", "32x0e", 3),
    "contraction-0e-1o": ("32x0e+32x1o+32x2e+32x3o", "32x0e+32x1o", 3),
    "contraction-0e-1o-2e": ("128x0e+128x1o+128x2e+128x3o", "128x0e+128x1o+128x2e", 3),
}
"""irreps_in, irreps_out and correlation of the symmetric contractions of MACE models."""

GAUNT_CONTRACTIONS = {"gaunt-3": (3, 3), "gaunt-4": (4, 3), "gaunt-6": (6, 3)}
"""lmax and correlation of many-body Gaunt products with the result 0e+1o."""

CONTRACTION_PASSES: dict[str, tuple[tuple[str, ...], bool]] = {
    "forward": (("out",), False),
    "gradient x": (("grad_x",), False),
    "gradient w": (("grad_weight",), False),
    "second x g": (("out", "grad_x"), True),
    "second w": (("grad_weight",), True),
}
"""Results, and whether they are derivatives in a direction, of the passes that training needs."""

GENERAL = {
    "diffdock-l2": ("10x1o+10x1e+48x0e+48x0o", "0e+1o+2e", "10x1o+10x1e+48x0e+48x0o"),
    "channel-by-channel": ("64x0e+64x1o+64x2e+64x3o",) * 3,
}
"""Irreps of products of the general family: every channel with every other on a graph, with weights
for each edge; and rows of channels that keep to themselves ("uuu"), as in Allegro."""

GENERAL_PASSES = ("value", "gradient", "second")
"""The passes of training."""

HARMONICS = {"harmonics-3": 3, "harmonics-11": 11}
"""Highest degrees."""

MATRICES = {"matrices-64": 64}
"""Channels of TensorNet's 3x3 matrices."""

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
"""Backend, architecture and threads of a warp."""

REALS = {torch.float32: "*fp32", torch.float64: "*fp64"}
"""Triton's types of pointers."""


class Launch(Protocol):
    """Of a family's launch choices, what the compiler is told."""

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        ...

    @property
    def num_stages(self) -> int:
        """Stages of Triton's software pipeline."""
        ...


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
        types = {
            name: REALS[plan.arithmetic] if name in LIKE else "*i64" for name in kernel.arguments
        }
        types["num_items"] = "i32"
        yield kernel, compile_source(kernel.source, FUNCTION, types, plan.launch, target)


def compile_contraction(
    name: str, pass_name: str, target: str, dtype: torch.dtype = torch.float32
) -> Iterator[Usage]:
    """Compiles the kernels of a pass of a symmetric contraction."""
    problem = SymmetricContractionProblem.from_irreps(*CONTRACTIONS[name])
    results, dual = CONTRACTION_PASSES[pass_name]
    plan = contraction.Pass(problem, results, dual, dtype, TARGETS[target][2])
    yield from _compile_kernels(plan, target, dtype)


def compile_gaunt_contraction(
    name: str, pass_name: str, target: str, dtype: torch.dtype = torch.float32
) -> Iterator[Usage]:
    """Compiles the kernels of a pass of a many-body Gaunt product."""
    lmax, correlation = GAUNT_CONTRACTIONS[name]
    irreps = "+".join(f"64x{l}{'eo'[l % 2]}" for l in range(lmax + 1))
    problem = GauntContractionProblem.from_irreps(irreps, "64x0e+64x1o", correlation)
    results, dual = CONTRACTION_PASSES[pass_name]
    plan = gaunt.Pass(problem, results, dual, dtype, TARGETS[target][2])
    yield from _compile_kernels(plan, target, dtype)


def _compile_kernels(
    plan: contraction.Pass | gaunt.Pass, target: str, dtype: torch.dtype
) -> Iterator[Usage]:
    indices = ("element", "node", "item_start", "item_stop")
    for kernel in plan.kernels:
        types = {name: "*i64" if name in indices else REALS[dtype] for name in kernel.arguments}
        yield compile_source(kernel.source, kernel.function, types, plan.launch, target)


def compile_general(
    name: str, pass_name: str, target: str, dtype: torch.dtype = torch.float32
) -> Iterator[Usage]:
    """Compiles the kernels of a pass of a product of the general family."""
    call = _general_call(name)
    terms: Sequence[Term] = (VALUE,)
    if pass_name != "value":
        terms = differentiate(terms, 3, [0], [0, 1, 2])
    if pass_name == "second":
        terms = differentiate(terms, 4, [0, 1, 2], [0, 1, 2, 3])
    made = call.kernels(terms, dtype, TARGETS[target][2])
    kinds = {"real": REALS[dtype], "index": "*i64", "number": "i32"}
    for kernel in (kernel for kernels in made.values() for kernel in kernels):
        types = {argument: kinds[kind] for argument, kind in kernel.arguments.items()}
        yield compile_source(kernel.source, GENERAL_FUNCTION, types, kernel.launch, target)


def _general_call(name: str) -> general.Call:
    """What the kernels of a product of `GENERAL` compute: of a mixing one the pairs."""
    if name == "channel-by-channel":
        irreps = [Irreps(one) for one in GENERAL[name]]
        paths = [
            (i, j, k, "uuu", True)
            for (i, one), (j, two), (k, out) in itertools.product(*map(enumerate, irreps))
            if out.ir in one.ir * two.ir
        ]
        product = TensorProductProblem.from_instructions(irreps[0], irreps[1], irreps[2], paths)
        return general.Call(product, None, frozenset(), 0, False)
    pairs, _ = pairs_of(FullyConnectedTensorProduct(*GENERAL[name]).problem)
    return general.Call(pairs, None, frozenset((SLOTS.index("x1"),)), 0, True)


def compile_harmonics(
    name: str, pass_name: str, target: str, dtype: torch.dtype = torch.float32
) -> Iterator[Usage]:
    """Compiles the kernels of a pass of the spherical harmonics, of normalised vectors."""
    what: Any = pass_name
    types: dict[str, str] = dict.fromkeys(harmonics.ARGUMENTS[what], REALS[dtype])
    types["num"] = "i32"
    for source in harmonics.sources(what, HARMONICS[name], "component", True, dtype):
        yield compile_source(source, harmonics.FUNCTION, types, harmonics.LAUNCH, target)


def compile_matrices(
    pass_name: str, target: str, dtype: torch.dtype = torch.float32, channels: int = 64
) -> Iterator[Usage]:
    """Compiles a kernel of 3x3 matrices."""
    types: dict[str, str] = dict.fromkeys(matrix.ARGUMENTS[pass_name], REALS[dtype])
    types["num"] = "i32"
    source = matrix.source(pass_name, channels, dtype)
    yield compile_source(source, matrix.FUNCTION, types, matrix.LAUNCH, target)


def compile_source(
    source: str,
    name: str,
    types: Mapping[str, str],
    launch: Launch,
    target: str,
    constants: Mapping[str, object] | None = None,
) -> Usage:
    """Compiles the function `name` of a source; `types` are those of its arguments.

    Constants, the arguments that the compiler is to know, come after those.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = (i for i, kind in enumerate(types.values()) if kind.startswith("*"))
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    known = dict(constants or {})
    signature = {**types, **dict.fromkeys(known, "constexpr")}
    start = _cpu_seconds()
    compiled = triton.compile(
        ASTSource(load_function(source, name), signature, known, aligned),
        target=GPUTarget(*TARGETS[target]),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "enable_fp_fusion": True,
        },
    )
    seconds = _cpu_seconds() - start
    if target.startswith("sm_"):
        return _read_cubin(compiled.asm["cubin"], seconds)
    return _read_amdgcn(compiled.asm["amdgcn"], seconds)


def _cpu_seconds() -> float:
    """CPU time of this process and of the assemblers that it has started."""
    return sum(os.times()[:4])


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


def _usages(name: str, dtype: torch.dtype, target: str, pass_name: str) -> list[Usage]:
    """What the kernels of a pass use."""
    if name in CONTRACTIONS:
        return [*compile_contraction(name, pass_name, target, dtype)]
    if name in GAUNT_CONTRACTIONS:
        return [*compile_gaunt_contraction(name, pass_name, target, dtype)]
    if name in GENERAL:
        return [*compile_general(name, pass_name, target, dtype)]
    if name in HARMONICS:
        return [*compile_harmonics(name, pass_name, target, dtype)]
    if name in MATRICES:
        return [*compile_matrices(pass_name, target, dtype, MATRICES[name])]
    plan = make_pass(problem(name), pass_name, target, dtype)
    return [usage for _, usage in compile_pass(plan, target)]


def _passes(name: str) -> Collection[str]:
    """Names of the passes of a problem."""
    if name in CONTRACTIONS or name in GAUNT_CONTRACTIONS:
        return CONTRACTION_PASSES
    if name in MATRICES:
        return matrix.ARGUMENTS
    if name in GENERAL:
        return GENERAL_PASSES
    return harmonics.ARGUMENTS if name in HARMONICS else PASSES


def _row(name: str, dtype: str, target: str, pass_name: str) -> str:
    """A line of the table."""
    usages = _usages(name, getattr(torch, dtype), target, pass_name)
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

    names = [*PROBLEMS, *GENERAL, *CONTRACTIONS, *GAUNT_CONTRACTIONS, *HARMONICS, *MATRICES]
    passes = sorted({name for problem in names for name in _passes(problem)})
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--problems", nargs="*", default=names, choices=names)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--passes", nargs="*", default=passes, choices=passes)
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=["float32", "float64"])
    options = parser.parse_args()
    print(f"Triton {triton.__version__}; registers and stack: the largest of the kernels.\n")
    print("| problem | dtype | target | pass | kernels | registers | spills | stack, B | CPU, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, dtype, target in itertools.product(options.problems, options.dtypes, options.targets):
        for pass_name in _passes(name):
            if pass_name in options.passes:
                print(_row(name, dtype, target, pass_name), flush=True)


if __name__ == "__main__":
    main()
