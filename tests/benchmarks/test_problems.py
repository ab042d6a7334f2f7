"""The catalogue of products, held against the reference's file of the same 72."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eqtp.benchmarks.problems import CORE, PROBLEMS

FILE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "problems.json"


def entries() -> dict[str, dict[str, Any]]:
    if not FILE.exists():
        return {}
    return {entry["label"]: entry for entry in json.loads(FILE.read_text())}


def test_there_are_72_and_the_core_is_among_them() -> None:
    assert len(PROBLEMS) == 72
    assert set(CORE) <= set(PROBLEMS)


def test_the_largest_of_mace_is_what_its_authors_run() -> None:
    """Paths, weights, columns and constants of a known product, where the file is absent too."""
    problem = PROBLEMS["mace-large"].problem
    assert len(problem.paths) == 17
    assert problem.dims == (1152, 16, 2176, 9088)
    assert problem.num_constants == 215


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
@pytest.mark.parametrize("name", PROBLEMS)
def test_rule_gives_the_product_of_the_file(name: str) -> None:
    entry, problem = entries()[name], PROBLEMS[name].problem
    assert len(problem.paths) == entry["paths"]
    assert problem.weight_numel == entry["weight_numel"]
    assert problem.num_constants == entry["cg_nnz_sum"]
    assert problem.dims[0] == entry["dim1"]
    assert problem.dims[1] == entry["dim2"]
    assert problem.irreps_out.dim == entry["dim_out"]
    assert {path.mode for path in problem.paths} == {entry["mode"]}
    assert [ir for _, ir in problem.irreps_in1] == [ir for _, ir in parse(entry["irreps_in1"])]
    if "instructions" in entry:
        assert [(*i[:4], i[4]) for i in problem.instructions] == [
            tuple(i) for i in entry["instructions"]
        ]
        assert problem.irreps_out == parse(entry["irreps_out_arg"])


def parse(irreps: str) -> Any:
    import eqtp

    return eqtp.Irreps(irreps)
