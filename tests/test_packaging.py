"""The repository as a package: links, guards, names, dependencies, and examples that run."""

from __future__ import annotations

import argparse
import doctest
import fnmatch
import importlib
import importlib.util
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import eqtp
from eqtp.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
LINKS = ("kernels", "models", "benchmarks")
MODULES = sorted(module.name for module in pkgutil.walk_packages(eqtp.__path__, "eqtp."))

# The public contract; other projects rely on these names.
NAMES = """
Irreps Graph TensorProduct ChannelwiseTensorProduct FullyConnectedTensorProduct FullTensorProduct
ElementwiseTensorProduct SymmetricContraction Linear SphericalHarmonics Gate Calculator
so3.wigner_3j so3.gaunt so3.wigner_D so3.spherical_harmonics
models.MACE models.MACE.from_mace models.load models.save models.training.data.from_ase
TensorProduct.weight_numel TensorProduct.weight_rank TensorProduct.instructions
TensorProduct.irreps_in1 TensorProduct.irreps_in2 TensorProduct.irreps_out
TensorProduct.effective_path_weights TensorProduct.explain TensorProduct.prune
TensorReadout PathGate so3.expand so3.reduce so3.tensor_to_irreps models.prune_paths
"""
SIGNATURES = {
    "TensorProduct": (
        "irreps_in1 irreps_in2 irreps_out instructions irrep_normalization path_normalization "
        "internal_weights shared_weights method backend layout"
    ),
    "TensorProduct.forward": "self x1 x2 weight graph radial",
    "SymmetricContraction": "irreps_in irreps_out correlation num_elements method basis",
    "Graph": "edge_src edge_dst num_src num_dst",
    "TensorReadout": "irreps_in formula traceless",
    "PathGate": "tp keep",
    "so3.expand": "x l1 l2",
    "so3.reduce": "m l1 l2",
    "so3.spherical_harmonics": "lmax vec normalization normalize",
    "models.MACE.forward": "self data compute_forces compute_stress",
    "Calculator": "path_or_model device dtype",
}


def _public(dotted: str) -> Any:
    found: Any = eqtp
    for part in dotted.split("."):
        module = f"{found.__name__}.{part}" if inspect.ismodule(found) else ""
        found = importlib.import_module(module) if module in MODULES else getattr(found, part)
    return found


def test_submodules_are_reached_by_attributes() -> None:
    code = (
        "import eqtp; eqtp.models.training.data.from_ase; eqtp.nn.TensorProduct; eqtp.so3.convert"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("link", LINKS)
def test_links_are_tracked(link: str) -> None:
    path = ROOT / "eqtp" / link
    if not path.is_symlink():
        pytest.skip("not a checkout")
    assert str(path.readlink()) == f"../{link}"
    entry = subprocess.run(
        ["git", "ls-files", "--stage", f"eqtp/{link}"], cwd=ROOT, capture_output=True, text=True
    )
    assert entry.stdout.startswith("120000 ")


@pytest.mark.parametrize("link", LINKS)
def test_guard_refuses_the_second_name(link: str) -> None:
    spec = importlib.util.spec_from_file_location(link, ROOT / link / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=f"import this package as eqtp.{link}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_is_typed() -> None:
    assert (Path(eqtp.__path__[0]) / "py.typed").is_file()


@pytest.mark.parametrize("name", NAMES.split())
def test_public_name_exists(name: str) -> None:
    assert _public(name) is not None


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_signature(name: str) -> None:
    names = list(inspect.signature(_public(name)).parameters)
    expected = SIGNATURES[name].split()
    assert names[: len(expected)] == expected


def test_every_listed_name_resolves() -> None:
    for module in (eqtp, eqtp.models, eqtp.so3):
        assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'TensorProdukt'"):
        eqtp.TensorProdukt  # noqa: B018


def _pyproject() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text()))


def test_data_files_are_packed() -> None:
    patterns = _pyproject()["tool"]["setuptools"]["package-data"]["*"]
    tracked = subprocess.run(
        ["git", "ls-files", "eqtp", *LINKS], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    data = [Path(name) for name in tracked if not name.endswith(".py")]
    data = [path for path in data if path not in {Path("eqtp") / link for link in LINKS}]
    left_out = [
        str(path)
        for path in data
        if "results" not in path.parts
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert not left_out


@pytest.mark.parametrize("name", ["eqtp", *MODULES])
def test_docstring_examples(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    if ">>>" not in Path(spec.origin).read_text():
        return
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    torch.set_default_dtype(torch.float32)  # what a reader has
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def _readme(language: str) -> list[str]:
    """The code blocks of the README, without those marked as not to be run."""
    text = re.sub(
        r"<!-- not run.*?-->\s*```.*?```", "", (ROOT / "README.md").read_text(), flags=re.S
    )
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)
    model = eqtp.models.MACE(
        atomic_numbers=[1, 6, 7, 8],
        atomic_energies=[-13.6, -1029.0, -1484.0, -2041.0],
        avg_num_neighbors=8.0,
        hidden_irreps="4x0e",
        max_ell=1,
        correlation=2,
    )
    (tmp_path / "runs" / "3bpa-quick").mkdir(parents=True)
    eqtp.models.save(model, tmp_path / "runs" / "3bpa-quick" / "model.safetensors")
    blocks = _readme("python")
    assert len(blocks) >= 4
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_readme_layer_is_short() -> None:
    """A layer of one's own fits on a screen."""
    assert len([line for line in _readme("python")[0].splitlines() if line.strip()]) <= 16


def _commands() -> list[list[str]]:
    lines = [line for block in _readme("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("eqtp ")]


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_readme_commands_parse(command: list[str]) -> None:
    _, name, *rest = command
    if name == "--help":
        return
    module = importlib.import_module(COMMANDS[name][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_intermixed_args(rest)


def test_readme_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    asked = re.findall(
        r"\bmake ([a-z-]+)", "\n".join(_readme("sh")) + (ROOT / "CONTRIBUTING.md").read_text()
    )
    assert asked
    assert set(asked) <= set(targets)
