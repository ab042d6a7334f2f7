"""Registers and spills of the Triton kernels of the SO(2) family, compiled ahead of time.

    python -m eqtp.benchmarks.so2_registers [--degrees 2 3 4 6] [--channels 64 128]

Needs triton and no GPU; see `triton_registers`. The rotations have kernels of their own for every
degree of the features; the code of the linear maps is one for all sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

from eqtp.benchmarks.triton_registers import TARGETS, Usage, compile_source
from eqtp.kernels.so2._triton_linear import GRADIENT_SOURCE, LINEAR_SOURCE
from eqtp.kernels.so2._triton_source import (
    back_source,
    nodes_source,
    rotate_source,
    torque_source,
)
from eqtp.kernels.so2.config import triton_linear, triton_rotation

__all__ = ["LINEAR_KERNELS", "ROTATION_KERNELS", "compile_linear", "compile_rotation"]

_KINDS = ("rotate", "back", "nodes", "torque")
ROTATION_KERNELS = tuple(kind + turned for kind in _KINDS for turned in ("", " turned"))
LINEAR_KERNELS = ("order 0", "A alone", "A and B", "gradient A", "gradient A and B")


class _Launch(NamedTuple):
    num_warps: int
    num_stages: int


def compile_rotation(name: str, l: int, m_max: int, channels: int, target: str) -> Usage:
    """Compiles the kernel of a degree of which the orders up to m_max are kept."""
    kind, turned = name.split()[0], name.endswith("turned")
    floats, indices = "*fp32", "*i64"
    if kind == "rotate":
        source = rotate_source(l, m_max, turned=turned, gathers=True)
        names = {"x": floats, "r": floats, "v": floats, "node": indices, "y": floats}
    elif kind == "back":
        source = back_source(l, m_max, turned=turned)
        names = {"y": floats, "r": floats, "v": floats, "x": floats}
    elif kind == "nodes":
        source = nodes_source(l, m_max, turned=turned)
        names = {"y": floats, "r": floats, "v": floats, "order": indices, "pointers": indices}
        names["x"] = floats
    else:
        source = torque_source(l, m_max, turned=turned, gathers=True)
        names = {"x": floats, "y": floats, "r": floats, "v": floats, "node": indices}
        names["out"] = floats
    choice = triton_rotation(channels, nodes=kind == "nodes")
    constants = {"x_length": (l + 1) ** 2 * channels, "y_length": (l + 1) ** 2 * channels}
    constants |= {"start": l * l * channels, "mul": channels}
    constants |= {f"column_{i}": i * channels for i in range(2 * m_max + 1)}
    constants |= {"EDGES": choice.edges, "CHANNELS": choice.channels}
    types = {**names, "num_edges": "i32"}
    launch = _Launch(choice.num_warps, 1)
    return compile_source(source, f"so2_{kind}", types, launch, target, constants)


def compile_linear(name: str, target: str, precision: str = "tf32x3") -> Usage:
    """Compiles a kernel of the linear maps."""
    if TARGETS[target][0] == "hip":
        precision = "ieee"
    choice = triton_linear(precision)
    constants: dict[str, object] = {"HAS_B": name.endswith("B"), "PAIR": name != "order 0"}
    constants |= {"EDGES": choice.edges, "COLUMNS": choice.columns}
    if name.startswith("gradient"):
        columns = ["y_plus", "y_minus", "g_plus", "g_minus", "depth", "width"]
        sizes = ["num_edges", "share", "y_length", "g_length", *columns]
        types = {**dict.fromkeys(("y", "g", "out"), "*fp32"), **dict.fromkeys(sizes, "i32")}
        constants |= {"EDGES": choice.depth, "ROWS": choice.rows, "PRECISION": precision}
        source, function = GRADIENT_SOURCE, "so2_weight_gradient"
    else:
        columns = ["y_plus", "y_minus", "out_plus", "out_minus", "depth", "width"]
        sizes = ["num_edges", "y_length", "out_length", *columns, "a_row", "a_column"]
        types = {**dict.fromkeys(("y", "a", "b", "out"), "*fp32"), **dict.fromkeys(sizes, "i32")}
        constants |= {"B_SIGN": 1, "DEPTH": choice.depth, "PRECISION": precision}
        source, function = LINEAR_SOURCE, "so2_linear"
    launch = _Launch(choice.num_warps, choice.num_stages)
    return compile_source(source, function, types, launch, target, constants)


def _rows(target: str, degrees: list[int], channels: list[int]) -> Iterator[tuple[object, ...]]:
    for l in degrees:
        for mul in channels:
            for name in ROTATION_KERNELS:
                usage = compile_rotation(name, l, l, mul, target)
                yield f"degree {l}", mul, target, name, *_cells(usage)
    for precision in ("tf32x3", "tf32"):
        for name in LINEAR_KERNELS:
            usage = compile_linear(name, target, precision)
            yield f"linear {precision}", "any", target, name, *_cells(usage)


def _cells(usage: Usage) -> tuple[object, ...]:
    return usage.registers, usage.spills, usage.stack


def main() -> None:
    """Prints the table as Markdown, a line as soon as it is known."""
    import triton

    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--degrees", nargs="*", type=int, default=[2, 3, 4, 6])
    parser.add_argument("--channels", nargs="*", type=int, default=[64, 128])
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    options = parser.parse_args()
    print(f"Triton {triton.__version__}\n")
    print("| problem | channels | target | kernel | registers | spills | stack, B |")
    print("|---|---|---|---|---|---|---|")
    for target in options.targets:
        for row in _rows(target, options.degrees, options.channels):
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
