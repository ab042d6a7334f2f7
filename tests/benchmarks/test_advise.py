"""The advice: for the product that was asked for, from measurements, exact methods only."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eqtp.benchmarks.__main__ import main
from eqtp.benchmarks.harness import advise
from eqtp.benchmarks.harness.advise import parse, verdicts


def row(contestant: str, seconds: float, task: str = "forward") -> dict[str, Any]:
    return {
        "contestant": contestant,
        "task": task,
        "status": "measured",
        "error": 1e-7,
        "wall": {"median": seconds},
    }


def test_descriptions() -> None:
    large, from_vectors = parse("mace 128x0e+128x1o+128x2e")
    assert (len(large.paths), large.weight_numel, from_vectors) == (17, 2176, True)
    assert parse("mace-large")[0] == large
    assert parse("MACE 128x0e+128x1o+128x2e")[0] == large
    assert {path.mode for path in parse("escn 8x0e+8x1o")[0].paths} == {"uvw"}
    assert parse("uvw 2x0e 3x0e 4x0e")[0].weight_numel == 24
    assert parse("uuu 4x1o 4x1o 4x1e")[1] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mace", "a product is described as"),
        ("mace 8y0e", "irreps must look like"),
        ("uvu 8x0e 1y0e 8x0e", "irreps must look like"),
        ("mace 8x0e three", "highest degree must be a number such as 3, got 'three'"),
        ("uvu 8x0e 1x1o 8x0e", "must have a path"),
        ("uuu 8x0e 8x0e 8x0e --device cuda:99", "device must be one of those here, cpu"),
        ("uuu 8x0e 8x0e 8x0e --rows 0", "must be at least 1, got 0"),
    ],
)
def test_what_is_no_product_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(["--advise", *text.split()])


def test_fastest_exact_is_advised_and_a_faster_other_is_named() -> None:
    rows = [
        row("cg cpu mul_ir", 2e-3),
        row("cg cpu ir_mul", 1e-3),
        row("gaunt auto mul_ir", 5e-4),
        row("so2 torch mul_ir", 4e-3, "backward"),
        row("cg torch mul_ir", 5e-3, "backward"),
        {**row("cg triton mul_ir", 0.0), "status": "absent"},
    ]
    lines = verdicts(rows)
    assert lines[0].startswith("forward: method='cg', backend='cpu', layout='ir_mul': 1 ms")
    assert "gaunt auto mul_ir is 2.0 times faster and not the same" in lines[1]
    assert lines[2].startswith("backward: method='so2', backend='torch'")
    assert verdicts([row("gaunt auto mul_ir", 1.0)]) == ["forward: nothing serves this product"]


def test_command_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without quotes and without results of this machine: everything is measured on the spot."""
    every = advise.contestants
    wanted = ("cg torch mul_ir", "so2 torch mul_ir")

    def few(problem: Any, *, vectors: bool) -> Any:
        return {
            name: make for name, make in every(problem, vectors=vectors).items() if name in wanted
        }

    monkeypatch.setattr(advise, "contestants", few)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        assert main(["--advise", "mace", "2x0e+2x1o", "1", "--rows", "30", "--threads", "1"]) == 0
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "mace 2x0e+2x1o 1 on cpu, float32, 1 thread(s)" in out
    for task in ("forward", "backward", "double backward"):
        assert f"\n{task}: method=" in out
