"""The harness: what the published benchmarks got wrong is refused or cannot happen here.

Each test names the flaw (`benchmarks/README.md` lists them with their sources).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eqtp.benchmarks import timing
from eqtp.benchmarks.harness import run
from eqtp.benchmarks.harness.case import Case, Contestant, Inputs, Work, tolerance
from eqtp.benchmarks.harness.ceilings import Ceilings, ceiling_source
from eqtp.benchmarks.harness.counting import contraction_work, flops_per_row, product_work
from eqtp.benchmarks.harness.measure import Options, Row, add_pass, is_late_setup, measure
from eqtp.benchmarks.harness.memory import peak_bytes
from eqtp.benchmarks.harness.record import read_record
from eqtp.benchmarks.products import product
from eqtp.benchmarks.timing import Samples, alternate
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.codegen.compiler import load_library
from eqtp.problem import TensorProductProblem
from eqtp.symmetric_problem import SymmetricContractionProblem

FAST = Options(seconds=0.01, min_rounds=3, max_rounds=5)
Call = Callable[[Mapping[str, Tensor], Any], Tensor]


def outer(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
    return tensors["x1"][:, :, None] * tensors["x2"][:, None, :].square()


def case_of(*calls: Call, definition: Call = outer, **changes: Any) -> Case:
    """A case whose contestants are the definition and some calls, by number."""

    def make(rows: int, generator: torch.Generator) -> Inputs:
        def normal() -> Tensor:
            return torch.randn(rows, 3, generator=generator)

        return Inputs({"x1": normal(), "x2": normal()})

    contestants: dict[str, Callable[[], Contestant]] = {
        "base": partial(Contestant, definition, definition, paths=1)
    }
    for number, call in enumerate(calls):
        contestants[str(number)] = partial(Contestant, call, definition)
    case = Case("test", "outer", make, 40, contestants, "base", tasks=("forward",), check_rows=7)
    return replace(case, **changes)


def rows_of(case: Case, options: Options = FAST, ceilings: Ceilings | None = None) -> list[Row]:
    return [row for rows in measure(case, options, ceilings) for row in rows]


def row_of(call: Call, **changes: Any) -> Row:
    return rows_of(case_of(call, **changes))[1]


def test_right_contestants_are_measured() -> None:
    base, row = rows_of(case_of(outer, tasks=("forward", "backward", "double backward")))[:2]
    assert base["ratio"]["wall"]["value"] == 1
    assert row["status"] == "measured"
    assert row["error"] < 1e-6
    assert row["checked_rows"] == 7
    assert row["outputs"] == 40 * 9
    assert len(row["wall"]["samples"]) >= 3
    assert row["wall"]["quartiles"][0] <= row["wall"]["median"] <= row["wall"]["quartiles"][1]
    assert row["seconds_per_output"] == row["wall"]["median"] / 360


def test_times_per_number_are_of_the_clock_that_was_asked_for() -> None:
    def waiting(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        time.sleep(0.005)
        return outer(tensors, place)

    row = rows_of(case_of(waiting), replace(FAST, clock="cpu"))[1]
    assert row["seconds_per_output"] == row["cpu"]["median"] / 360
    assert row["cpu"]["median"] < row["wall"]["median"] / 2


def test_empty_product_is_refused() -> None:
    """Price of Freedom times products of odd l whose output is empty by parity."""

    def empty(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        return tensors["x1"].new_zeros(len(tensors["x1"]), 0)

    def vanishing(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        return 0 * outer(tensors, place)

    for nothing in (empty, vanishing):
        rows = rows_of(case_of(nothing, definition=nothing))
        assert [row["status"] for row in rows] == ["refused"] * 2
        assert "empty" in rows[0]["reason"]
        assert all("wall" not in row for row in rows)


def test_no_setting_of_the_paper_is_empty_here() -> None:
    for setting in ("SISO", "SIMO", "MIMO natural", "MIMO all"):
        for degree in (1, 2, 3):
            assert product(setting, degree).weight_numel > 0


def test_dropped_paths_are_counted() -> None:
    """Price of Freedom times CG on the paths that its labels allow, without saying so."""
    counts = [len(product("MIMO natural", degree).paths) for degree in (1, 2, 3, 4)]
    assert counts == [5, 14, 30, 55]
    assert [len(product("MIMO all", degree).paths) for degree in (1, 2, 3, 4)] == [6, 19, 44, 85]


def test_wrong_result_is_refused() -> None:
    """There is no accuracy column in Price of Freedom; TF32 errs by 1e-3."""
    row = row_of(lambda tensors, place: outer(tensors, place) * (1 + 1e-3))
    assert row["status"] == "refused"
    assert "float64 definition" in row["reason"]


def test_nan_is_refused() -> None:
    def broken(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        out = outer(tensors, place).clone()
        out[0, 0, 0] = torch.nan
        return out

    assert row_of(broken)["status"] == "refused"


def test_wrong_gradient_is_refused_though_the_value_is_right() -> None:
    """OpenEquivariance #211: energies right, forces wrong."""

    def detached(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        return outer(tensors, place) + 0.01 * (tensors["x2"] - tensors["x2"].detach())[:, None]

    rows = rows_of(case_of(detached, tasks=("forward", "backward", "double backward")))
    assert [row["status"] for row in rows if row["contestant"] == "0"] == [
        "measured",
        "refused",
        "refused",
    ]


def test_wrong_shape_is_refused() -> None:
    row = row_of(lambda tensors, place: outer(tensors, place).flatten(1))
    assert row["status"] == "refused"
    assert "shape" in row["reason"]


def test_float32_is_held_to_less_than_tf32_and_float64_to_less_than_float32() -> None:
    """OpenEquivariance passes gradients at 7.5e-2 to 5e-1, absolute."""
    for dtype, bound in ((torch.float32, 5e-4), (torch.float64, 1e-9)):
        case = case_of(dtype=dtype)
        assert all(tolerance(case, task) < bound for task in ("forward", "double backward"))
    with pytest.raises(NotImplementedError, match="float32 or float64"):
        tolerance(case_of(dtype=torch.float16), "forward")


def test_lazy_first_call_is_not_in_the_timing() -> None:
    """The Gaunt paper's means are dominated by TorchScript's compilation on the first call."""
    compiled: list[bool] = []

    def lazy(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        if not compiled:
            time.sleep(0.3)
            compiled.append(True)
        return outer(tensors, place)

    row = row_of(lazy)
    assert row["status"] == "measured"
    assert max(row["wall"]["samples"]) < 0.1
    assert row["setup_seconds"] > 0.3


def test_construction_is_not_in_the_timing() -> None:
    """The Gaunt paper's many-body notebook builds e3nn's and MACE's modules inside it."""

    def make() -> Contestant:
        time.sleep(0.3)
        return Contestant(outer, outer)

    case = case_of()
    row = rows_of(replace(case, contestants={**case.contestants, "slow": make}))[1]
    assert max(row["wall"]["samples"]) < 0.1
    assert row["setup_seconds"] > 0.3


def test_setup_that_hits_the_clock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_late_setup([0.5, 0.01, 0.01, 0.02], 1)
    assert is_late_setup([0.005, 0.0001, 0.0001], 100)
    assert not is_late_setup([0.02, 0.01, 0.5, 0.01], 1)  # a hiccup, not setting up
    assert not is_late_setup([0.001, 0.0001, 0.0001], 1)
    from eqtp.benchmarks.harness import measure as module

    def late(calls: Any, **options: Any) -> Any:
        samples = alternate(calls, **options)
        samples["0"].wall[0] = 1.0
        return samples

    monkeypatch.setattr(module, "alternate", late)
    base, row = rows_of(case_of(outer))
    assert base["status"] == "measured"
    assert row["status"] == "refused"
    assert "set up" in row["reason"]


def test_one_outlier_does_not_move_the_result() -> None:
    """The Gaunt paper reports means of ten calls whose deviation is three times the mean."""
    calls = []

    def hiccup(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        calls.append(1)
        if len(calls) % 40 == 0:
            time.sleep(0.05)
        return outer(tensors, place)

    row = row_of(hiccup)
    assert row["wall"]["median"] < 0.01


def test_turns_alternate() -> None:
    """Contestants timed one after the other meet another clock frequency each."""
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = alternate(calls, repetitions=4, warmup=1, inner={"b": 2})
    assert "".join(order) == "abc" + "abbc" * 4
    assert all(len(sample.wall) == 4 for sample in samples.values())


def test_quick_calls_find_their_own_operands_in_the_caches() -> None:
    """One call of each sample is not timed; of long calls all are."""
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = alternate(calls, repetitions=3, warmup=0, inner={"a": 2}, primed={"a"})
    assert "".join(order) == "aaab" * 3
    assert all(len(sample.wall) == 3 for sample in samples.values())


def test_ratio_is_of_the_same_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the machine slows down threefold, the ratio stays what it is."""
    from eqtp.benchmarks.harness import measure as module

    def drifting(calls: Any, **options: Any) -> Any:
        mood = [1.0, 1.5, 2.0, 2.5, 3.0]
        return {
            name: Samples([mood_of * own for mood_of in mood], mood)
            for name, own in {"base": 0.2, "0": 0.1}.items()
        }

    monkeypatch.setattr(module, "alternate", drifting)
    ratio = row_of(outer)["ratio"]["wall"]
    assert ratio == {key: pytest.approx(2.0) for key in ("value", "first", "third")}


def test_absent_and_failing_contestants_are_listed() -> None:
    """cuEquivariance falls back to a slow path with a warning; here absence has a reason."""

    def absent() -> Contestant:
        raise NotImplementedError("needs a CUDA device\nand more")

    def failing(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        raise RuntimeError("does not support double backward")

    case = case_of(failing)
    rows = rows_of(replace(case, contestants={**case.contestants, "absent": absent}))
    assert [row["status"] for row in rows] == ["measured", "refused", "absent"]
    assert "double backward" in rows[1]["reason"]
    assert rows[2]["reason"] == "needs a CUDA device"


def test_sizes_are_those_of_the_operands() -> None:
    """OpenEquivariance ignores the batch size that it is given in double backward."""
    seen = []

    def spy(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        seen.append(len(tensors["x1"]))
        return outer(tensors, place)

    row = row_of(spy, tasks=("double backward",))
    assert row["rows"] == 40
    assert set(seen) == {7, 40}


def test_unknown_baseline_or_task_is_an_error() -> None:
    for changes in ({"baseline": "nobody"}, {"tasks": ("sideways",)}):
        with pytest.raises(ValueError, match="baseline must be one of"):
            rows_of(case_of(outer, **changes))


def test_only_named_contestants_and_the_baseline() -> None:
    rows = rows_of(case_of(outer, outer), replace(FAST, only=("1",)))
    assert [row["contestant"] for row in rows] == ["base", "1"]


@pytest.mark.skipif(why_unavailable("cpu") is not None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arithmetic_ceiling_counts_eight_different_sums(dtype: torch.dtype) -> None:
    # Equal ones are compiled into one: this ceiling was twice the machine's.
    sums = torch.tensor([0.5, 0.25, torch.nan], dtype=dtype)
    flops = load_library(ceiling_source(dtype)).multiply_add(1, ctypes.c_void_p(sums.data_ptr()), 1)
    lanes = flops // 16
    assert sums[2] == lanes * sum(0.5 * start + 0.25 for start in range(1, 9))


def test_roofline_is_the_slower_of_traffic_and_arithmetic() -> None:
    ceilings = Ceilings(100.0, {"float32": 1000.0}, "")
    assert ceilings.seconds(Work(flops=500, numbers=10), torch.float32) == 0.5
    assert ceilings.seconds(Work(flops=500, numbers=100), torch.float32) == 4.0
    row = rows_of(
        case_of(work=lambda task: Work(0.0, 250.0)), FAST, Ceilings(1e9, {"float32": 1e9}, "")
    )[0]
    assert row["roofline"] == pytest.approx(1e-6 / row["wall"]["median"])
    assert row["bytes"] == 1000


def test_shares_are_of_the_highest_rates_that_any_process_measured() -> None:
    row = {"threads": 1, "dtype": "float32", "flops": 10.0, "bytes": 80.0, "roofline": 0.5}
    rows = [{**row, "wall": {"median": 40.0}}, {**row, "wall": {"median": 40.0}, "threads": 2}]
    record: dict[str, Any] = {"clock": "wall", "ceilings": {}, "rows": rows}
    run.raise_ceilings(record, 1, Ceilings(4.0, {"float32": 1.0}, "").as_dict())
    assert rows[0]["roofline"] == 0.5
    run.raise_ceilings(record, 1, Ceilings(8.0, {"float32": 0.5}, "").as_dict())
    assert rows[0]["roofline"] == 0.25
    assert rows[1]["roofline"] == 0.5
    assert record["ceilings"]["1"]["flops_per_second"] == {"float32": 1.0}


def test_counted_flops_by_hand() -> None:
    """1o x 1o -> 0e of three channels and one: 3 constants; see `flops_per_row`."""
    problem = TensorProductProblem.from_instructions(
        "3x1o", "1x1o", "3x0e", [(0, 0, 0, "uvu", True)]
    )
    assert flops_per_row(problem) == 2 * 3 + 2 * 3 * 3 + 3
    work = product_work(problem, "forward", rows_in1=5, rows=10, rows_out=5, shared_weights=True)
    assert work.flops == 270
    assert work.numbers == 5 * 9 + 10 * 3 + 3 + 5 * 3


def test_counted_contraction_by_hand() -> None:
    """a + b a a + c |v|^2: 5 terms of 5 couplings, made for as many elements as there can be."""
    problem = SymmetricContractionProblem.from_irreps("2x0e+2x1o", "2x0e", 2)
    for rows, elements in ((10, 3), (2, 2)):
        work = contraction_work(problem, "forward", rows=rows, num_elements=3)
        assert work.flops == 2 * 2 * 5 * (rows + elements)
        assert work.numbers == 2 * (rows * 4 + elements * 3 + rows)
        backward = contraction_work(problem, "backward", rows=rows, num_elements=3)
        assert (backward.flops, backward.numbers) == (3 * work.flops, 2 * work.numbers)


def test_counted_contraction_has_the_terms_of_the_kernel() -> None:
    """410 terms: what `kernels/symmetric_contraction/_factors.py` states of lmax 3, 0e + 1o."""
    problem = SymmetricContractionProblem.from_irreps("0e+1o+2e+3o", "0e+1o", 3)
    one, two = (contraction_work(problem, "forward", rows=n, num_elements=1) for n in (1, 2))
    assert two.flops - one.flops == 2 * 410


def test_a_gpu_has_results_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One machine's devices do not overwrite each other's; a wheel writes where it is called."""
    monkeypatch.setattr(timing, "device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / ".git").touch()
    assert timing.results_folder("cuda") == tmp_path / "benchmarks" / "results" / "nvidia-h200"
    assert timing.results_folder().name.endswith("-cores")
    (tmp_path / ".git").unlink()
    assert timing.results_folder("cuda") == Path("benchmark-results/nvidia-h200")


def test_peak_memory_sees_what_is_freed_again() -> None:
    peak = peak_bytes(lambda: torch.ones(1 << 22).sum() + torch.ones(1 << 21).sum())
    if peak is None:
        pytest.skip("the kernel does not tell")
    assert 32e6 < peak < 60e6


def test_a_call_beyond_the_memory_fails_by_itself() -> None:
    script = (
        "import torch\n"
        "from eqtp.benchmarks.harness.memory import limit_memory\n"
        "limit_memory(0.5 * 2**30 / MEMORY)\n"
        "try:\n    torch.ones(2**28)\n"
        "except RuntimeError:\n    print('refused')\n"
    ).replace("MEMORY", "(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))")
    command = [sys.executable, "-c", "import os\n" + script]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "refused\n"


DYING = """
import json, os, signal, sys
ceilings = {"bytes_per_second": 1.0, "flops_per_second": {}, "how": "guessed"}
costs = {"first case": {"wall": 2.0, "compilers": 0.0}}
answer = {"ceilings": ceilings, "rows": [], "costs": costs}
with open(sys.argv[sys.argv.index("--worker") + 1], "w") as file:
    json.dump(answer, file)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_measured_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dying_worker.py").write_text(DYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(run, "MODULE", "dying_worker")
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    args = parser.parse_args(["--threads", "1", "--output", str(tmp_path / "run.json")])
    assert run.run_families(["matrix"], args) == 1
    record = read_record(tmp_path / "run.json")
    assert list(record["costs"]["matrix, 1 thread(s), float32"]) == ["first case"]
    (failure,) = record["failed"].values()
    assert "SIGKILL" in failure
    assert failure.endswith("Measured before: first case.")


def test_passes_are_put_together() -> None:
    """A pass that met a busy machine moves neither the ratios nor what follows from the work."""
    first = rows_of(case_of(outer))
    again = rows_of(case_of(outer), replace(FAST, again=True))
    assert "error" not in again[1]
    quiet = [row["wall"]["samples"] for row in first]
    for row, slower in zip(again, (3.0, 5.0), strict=True):
        samples = [float(f"{slower * sample:.5g}") for sample in row["wall"]["samples"]]
        row["wall"]["samples"] = samples
    add_pass(first, again, "wall")
    for row, samples, other in zip(first, quiet, again, strict=True):
        assert row["wall"]["samples"] == [*samples, *other["wall"]["samples"]]
        assert row["wall"]["quartiles"][0] < max(samples)
        assert row["seconds_per_output"] == row["wall"]["median"] / row["outputs"]
    base, row = (one["wall"]["quartiles"][0] for one in first)
    assert first[1]["ratio"]["wall"]["value"] == base / row
