"""The families: what they measure computes what it says, in every contestant that is here."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from eqtp.benchmarks import channelwise, convolution, so2
from eqtp.benchmarks.__main__ import SPECIAL, main
from eqtp.benchmarks.graphs import GRAPHS, edges
from eqtp.benchmarks.harness.case import Case
from eqtp.benchmarks.harness.family import Choice
from eqtp.benchmarks.harness.measure import check
from eqtp.benchmarks.harness.run import FAMILIES, PARALLEL

FAST = ("products", "fully_connected", "symmetric_contraction", "gaunt", "matrix", "so2")


def quick_cases(family: str, dtype: torch.dtype = torch.float64) -> list[Case]:
    return list(importlib.import_module(f"eqtp.benchmarks.{family}").cases(Choice(dtype=dtype)))


@pytest.mark.parametrize("family", FAMILIES)
def test_cases_are_named_and_have_their_baseline(family: str) -> None:
    cases = quick_cases(family)
    assert cases
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.family == family
        assert case.baseline in case.contestants
        assert case.x in case.sizes or not case.group


@pytest.mark.parametrize("family", FAST)
def test_every_contestant_agrees_with_its_definition(family: str) -> None:
    """One case of each family, in float64: far below what a wrong path or weight would leave."""
    case = replace(quick_cases(family)[-1], check_rows=4, rows=4)
    served = 0
    for make in case.contestants.values():
        try:
            contestant = make()
            for task in case.tasks:
                assert check(case, task, contestant)["error"] < 1e-10
            served += 1
        except (NotImplementedError, ValueError):
            continue
    assert served >= 2


def test_convolution_on_a_part_of_a_graph() -> None:
    """On 30 edges of the crystal, renumbered: the check of the large graphs."""
    case = next(convolution.cases(Choice(dtype=torch.float64)))
    case = replace(case, check_rows=30)
    inputs = case.inputs(30)
    assert inputs.place.num_edges == 30
    assert inputs.place.num_src < 54
    for name in ("eqtp cpu", "eqtp torch", "e3nn"):
        assert check(case, "double backward", case.contestants[name]())["checked_rows"] == 30


def test_so2_and_harmonics_take_the_same_vectors() -> None:
    case = replace(next(so2.cases(Choice(dtype=torch.float64))), check_rows=20)
    assert case.inputs(20).tensors["x2"].shape == (20, 3)
    for name in ("eqtp cg", "eqtp so2", "e3nn"):
        assert check(case, "backward", case.contestants[name]())["error"] < 1e-11


@pytest.mark.parametrize(
    ("graph", "nodes", "num_edges"),
    [("diamond", 1000, 158_000), ("iron", 54, 2_992), ("water", 192, 10_562)],
)
def test_graphs_are_those_of_the_published_measurements(
    graph: str, nodes: int, num_edges: int
) -> None:
    found = edges(graph)
    assert (found.num_nodes, found.graph.num_edges) == (nodes, num_edges)
    lengths = found.vectors.norm(dim=1)
    assert float(lengths.min()) > 0.5
    assert float(lengths.max()) <= GRAPHS[graph][1]
    order = found.graph.edge_dst
    assert bool((order.diff() >= 0).all())


def test_all_cores_take_a_few_large_cases() -> None:
    """A second pass over everything would not fit an hour; the bars of two threads are in it."""
    choice = Choice(quick=False, large=True)
    names = {
        family: [
            case.name for case in importlib.import_module(f"eqtp.benchmarks.{family}").cases(choice)
        ]
        for family in PARALLEL
    }
    assert {family: len(found) for family, found in names.items()} == {
        "channelwise": 1,
        "convolution": 3,
        "models": 6,
    }
    assert "diamond" in names["convolution"][-1]
    bars = next(channelwise.cases(choice)).bars
    assert ("forward", "eqtp cpu", 2) in bars


def test_unknown_graph_is_an_error() -> None:
    with pytest.raises(ValueError, match="graph must be one of"):
        edges("cube")


def test_command_lists_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(family in out for family in (*FAMILIES, "compare", "training_step"))


def test_names_are_of_one_thing_each() -> None:
    """A family and a special benchmark of one name would stand in one file."""
    assert not set(FAMILIES) & set(SPECIAL)
    for name in SPECIAL:
        assert hasattr(importlib.import_module(f"eqtp.benchmarks.{name}"), "main")
    for name in FAMILIES:
        assert hasattr(importlib.import_module(f"eqtp.benchmarks.{name}"), "cases")
