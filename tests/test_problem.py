"""The description of a product: e3nn's constants, weights and rules."""

from __future__ import annotations

from typing import Any

import pytest
from e3nn import o3

from eqtp.irreps import Irreps
from eqtp.problem import TensorProductProblem, parse_irreps

ARGUMENTS: tuple[Any, ...] = (
    "3x0e+2x1o+0x2e", "0e+2x1o", "3x1o+2x0e+4x1e+1x0e",
    [(0, 1, 0, "uvu", True, 2.0), (1, 1, 1, "uuu", False), (1, 1, 2, "uvw", True),
     (1, 1, 3, "uuw", False, 0.5), (1, 0, 0, "uvw", True)],
)  # fmt: skip


@pytest.mark.parametrize("irrep_normalization", ["component", "norm", "none"])
@pytest.mark.parametrize("path_normalization", ["element", "path", "none"])
@pytest.mark.parametrize("variances", [False, True])
def test_coefficients_are_e3nns(
    irrep_normalization: Any, path_normalization: Any, variances: bool
) -> None:
    options: dict[str, Any] = {
        "irrep_normalization": irrep_normalization,
        "path_normalization": path_normalization,
    }
    if variances:
        options |= {"in1_var": [2.0, 0.5, 1.0], "in2_var": [3.0, 1.5], "out_var": [1, 2, 3, 4]}
    problem = TensorProductProblem.from_instructions(*ARGUMENTS, **options)
    rival = o3.TensorProduct(*ARGUMENTS, **options)
    for path, theirs in zip(problem.paths, rival.instructions, strict=True):
        assert path.coefficient == pytest.approx(theirs.path_weight, rel=1e-14)


def test_weights_follow_one_another() -> None:
    problem = TensorProductProblem.from_instructions(*ARGUMENTS)
    assert [path.weight_numel for path in problem.paths] == [6, 0, 16, 0, 6]
    assert problem.paths[2].weight_slice == slice(6, 22)
    assert problem.paths[2].weight_shape == (2, 2, 4)
    assert problem.weight_numel == 28


def test_degrees_and_multiplicities() -> None:
    problem = TensorProductProblem.from_instructions(*ARGUMENTS)
    assert problem.degrees(problem.paths[2]) == (1, 1, 1)
    assert problem.multiplicities(problem.paths[2]) == (2, 2, 4)


def test_instructions_come_back_as_passed_in() -> None:
    problem = TensorProductProblem.from_instructions(*ARGUMENTS)
    assert problem.instructions[0] == (0, 1, 0, "uvu", True, 2.0)
    assert problem.instructions[1] == (1, 1, 1, "uuu", False, 1.0)
    in1, in2, out, _ = ARGUMENTS
    again = TensorProductProblem.from_instructions(in1, in2, out, problem.instructions)
    assert again == problem
    assert hash(again) == hash(problem)


def test_zero_path_weight_gives_a_zero_constant() -> None:
    problem = TensorProductProblem.from_instructions(
        "2x0e", "1x0e", "2x0e", [(0, 0, 0, "uvu", True, 0.0)]
    )
    assert problem.paths[0].coefficient == 0.0


def test_prune_freezes_constants_and_keeps_the_order() -> None:
    problem = TensorProductProblem.from_instructions(*ARGUMENTS)
    pruned = problem.prune([4, 2])
    assert [p.coefficient for p in pruned.paths] == [
        problem.paths[2].coefficient,
        problem.paths[4].coefficient,
    ]
    assert [p.weight_start for p in pruned.paths] == [0, 16]
    assert pruned.irreps_out == problem.irreps_out
    for keep in ([0, 0], [5], [-1]):
        with pytest.raises(ValueError, match="keep must list path indices in"):
            problem.prune(keep)


def test_irreps_are_e3nns_own() -> None:
    assert parse_irreps("2x1o+0e") == o3.Irreps("2x1o+0e")
    assert isinstance(parse_irreps("2x1o"), Irreps)


BAD: dict[str, tuple[Any, str]] = {
    "irreps": (("2q", "0e", "0e", []), "irreps must look like"),
    "length": (("0e", "0e", "0e", [(0, 0, 0, "uvw")]), "got 4 entries"),
    "index": (("0e", "0e", "0e", [(0, 1, 0, "uvw", True)]), r"i_in2 must be in \[0, 1\)"),
    "mode": (("0e", "0e", "0e", [(0, 0, 0, "vuw", True)]), "mode must be one of"),
    "path_weight": (("0e", "0e", "0e", [(0, 0, 0, "uvw", True, -1)]), "must not be negative"),
    "triangle": (("1o", "1o", "3e", [(0, 0, 0, "uvw", True)]), "3e is not in 1o x 1o"),
    "parity": (("1o", "1o", "1o", [(0, 0, 0, "uvw", True)]), "1o is not in 1o x 1o"),
    "uvu": (("2x0e", "0e", "3x0e", [(0, 0, 0, "uvu", True)]), "'uvu' needs mul1 = mul_out"),
    "uvv": (("0e", "2x0e", "3x0e", [(0, 0, 0, "uvv", True)]), "'uvv' needs mul2 = mul_out"),
    "uuw": (("2x0e", "3x0e", "0e", [(0, 0, 0, "uuw", True)]), "'uuw' needs mul1 = mul2"),
    "uuu": (("2x0e", "2x0e", "3x0e", [(0, 0, 0, "uuu", True)]), "'uuu' needs mul1 = mul2 = mul"),
    "uvuv": (("2x0e", "2x0e", "3x0e", [(0, 0, 0, "uvuv", True)]), r"'uvuv' needs mul1 \* mul2"),
    "uvu<v": (("3x0e", "3x0e", "2x0e", [(0, 0, 0, "uvu<v", True)]), "'uvu<v' needs"),
    "u<vw": (("3x0e", "2x0e", "2x0e", [(0, 0, 0, "u<vw", True)]), "'u<vw' needs mul1 = mul2"),
    "no_weight_uvw": (("0e", "0e", "0e", [(0, 0, 0, "uvw", False)]), "must have weights"),
    "no_weight_uuw": (("0e", "0e", "2x0e", [(0, 0, 0, "uuw", False)]), "needs mul_out=1, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_rejects_bad_instructions(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        TensorProductProblem.from_instructions(*arguments)


def test_rejects_bad_normalisation() -> None:
    with pytest.raises(ValueError, match="irrep_normalization must be one of"):
        TensorProductProblem.from_instructions(*ARGUMENTS, irrep_normalization="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in1_var must have one value per block"):
        TensorProductProblem.from_instructions(*ARGUMENTS, in1_var=[1.0])
