"""The Triton kernels compiled ahead of time, without a GPU: they compile, and do not spill."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton_checks import assert_no_spills, compiled

from eqtp.benchmarks.triton_registers import (
    PASSES,
    PROBLEMS,
    TARGETS,
    compile_pass,
    make_pass,
    problem,
)
from eqtp.graph import Graph
from eqtp.kernels.channelwise import _triton
from eqtp.kernels.codegen import triton_items

pytestmark = compiled


def check(name: str, pass_name: str, target: str, dtype: torch.dtype) -> None:
    plan = make_pass(problem(name), pass_name, target, dtype)
    for kernel, usage in compile_pass(plan, target):
        assert_no_spills(usage, f"{name} {pass_name}, paths {kernel.paths}, {target}, {dtype}")


def test_forward_does_not_spill() -> None:
    check("mace-medium", "forward", "sm_90", torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["mace-medium", "mace-large"])
def test_mace_does_not_spill(name: str, dtype: torch.dtype, target: str, pass_name: str) -> None:
    check(name, pass_name, target, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", [n for n in PROBLEMS if not n.startswith("mace")])
def test_other_models_do_not_spill(name: str, pass_name: str) -> None:
    check(name, pass_name, "sm_90", torch.float32)


def test_another_number_of_edges_is_not_compiled_again(
    launches: list[tuple[Any, tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_items, "PIECE_EDGES", 16)
    product = problem("mace-medium")
    kernels = []
    for num_nodes, num_edges in ((1, 1), (16, 16), (17, 160), (40, 1001)):
        graph = Graph(
            torch.randint(num_nodes, (num_edges,)),
            torch.randint(num_nodes, (num_edges,)),
            num_nodes,
        )
        x = torch.randn(num_nodes, product.irreps_in1.dim)
        y = torch.randn(num_edges, product.irreps_in2.dim)
        w = torch.randn(num_edges, product.weight_numel)
        launches.clear()
        operands = {"x": x.float(), "y": y.float(), "w": w.float()}
        _triton.run(product, graph, operands, ["out"])
        (kernel, grid), *sums = launches
        assert grid == (num_nodes + num_edges // 16, 4)
        assert len(sums) == (1 if num_edges >= 16 else 0)
        kernels.append([kernel, *(s for s, _ in sums)])
    assert all(made[0] is kernels[0][0] for made in kernels)
    assert all(made[1:] == kernels[1][1:] for made in kernels[1:])


def test_one_warp_sums_without_shared_memory(
    launches: list[tuple[Any, tuple[int, ...]]],
) -> None:
    product = problem("mace-medium")
    g, x, y, w = (torch.randn(3, n, dtype=torch.float32) for n in (3328, 512, 16, 1024))
    operands = {"g": g, "x": x, "y": y, "w": w}
    _triton.run(product, None, operands, ["grad_x", "grad_y", "grad_w"])
    for kernel, _ in launches:
        assert "bar.sync" not in kernel.asm["ptx"]
        assert "shfl.sync.bfly" in kernel.asm["ptx"]
        assert "fma.rn.f32" in kernel.asm["ptx"]
