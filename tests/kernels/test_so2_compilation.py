"""The Triton kernels of the SO(2) family compiled ahead of time, without a GPU: no spills."""

from __future__ import annotations

import pytest
from triton_checks import assert_no_spills, compiled

from eqtp.benchmarks.so2_registers import (
    LINEAR_KERNELS,
    ROTATION_KERNELS,
    compile_linear,
    compile_rotation,
)
from eqtp.benchmarks.triton_registers import TARGETS

pytestmark = compiled


# On gfx942 one kernel of the second gradient keeps a few scalar registers in lanes of a vector
# register (4 for degree 6): not in memory.
SCALAR_SPILLS = {("nodes turned", "gfx942"): 8}


def test_kernels_of_training_do_not_spill() -> None:
    for name in ("rotate", "nodes", "torque"):
        assert_no_spills(compile_rotation(name, 2, 2, 64, "sm_90"), name)
    assert_no_spills(compile_linear("A alone", "sm_90"), "linear")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("l", [2, 3, 4, 6])
def test_rotations_do_not_spill(l: int, channels: int, target: str) -> None:
    for m_max in {l, 2}:
        for name in ROTATION_KERNELS:
            usage = compile_rotation(name, l, m_max, channels, target)
            what = f"{name}, degree {l}, m_max {m_max}, {channels} channels, {target}"
            assert_no_spills(usage, what, SCALAR_SPILLS.get((name, target), 0))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
@pytest.mark.parametrize("name", LINEAR_KERNELS)
def test_linear_maps_do_not_spill(name: str, precision: str, target: str) -> None:
    assert_no_spills(compile_linear(name, target, precision), f"{name}, {precision}, {target}")
