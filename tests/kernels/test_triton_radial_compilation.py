"""The Triton kernels with computed weights compile ahead of time, without spills."""

from __future__ import annotations

import pytest
import torch
from triton_checks import assert_no_spills, compiled

from eqtp.benchmarks.triton_radial_registers import (
    PASSES,
    compile_pass,
    make_pass,
)
from eqtp.benchmarks.triton_registers import TARGETS, problem

pytestmark = compiled


def check(name: str, pass_name: str, target: str) -> None:
    plan = make_pass(problem(name), pass_name, target)
    for kernel, usage in compile_pass(plan, target):
        assert_no_spills(usage, f"{name} {pass_name}, paths {kernel.paths}, {target}")


@pytest.mark.parametrize("pass_name", ["forward", "gradient x y", "gradient h m"])
def test_does_not_spill(pass_name: str) -> None:
    check("mace-medium", pass_name, "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["mace-medium", "mace-large"])
def test_mace_does_not_spill(name: str, target: str, pass_name: str) -> None:
    check(name, pass_name, target)


def test_float64_compiles() -> None:
    plan = make_pass(problem("mace-medium"), "forward", "sm_90", torch.float64)
    (_, usage), *_ = compile_pass(plan, "sm_90")
    assert usage.registers > 0
