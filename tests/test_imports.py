"""Imports point down the floors, and `import eqtp` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("eqtp", "kernels", "models", "benchmarks")  # eqtp/ without its links
HEAVY = (
    *("lightning", "pytorch_lightning", "torch_geometric", "ase", "matplotlib", "pydantic"),
    *("vesin", "tensorboard", "yaml", "safetensors", "scipy.integrate", "torch._dynamo"),
)

FLOORS = {
    "eqtp.benchmarks": 5,
    "eqtp.__main__": 5,
    "eqtp.cli": 5,
    "eqtp.models": 4,
    "eqtp.nn": 3,
    "eqtp.kernels": 2,
    "eqtp": 1,
}
LOW_FLOORS_NEED = {"eqtp", "torch", "numpy", "scipy", "e3nn", "jaxtyping", "typing_extensions"}

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"yaml": "pyyaml", "torch_geometric": "torch-geometric"}
INDIRECT = {"tensorboard"}  # torch.utils.tensorboard imports it
OPTIONAL = {"mace", "torchmdnet"}  # benchmarks' opponents, in environments of their own

# The harmonics are a kernel that users look for in so3; imported when first used.
EXCEPTIONS = {("eqtp.so3", "eqtp.kernels.spherical_harmonics")}


def modules() -> dict[str, Path]:
    """Name -> file of every module of the package."""
    files = [
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(parent.is_symlink() for parent in path.parents)
    ]
    return {_name(path): path for path in files}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "eqtp" else ("eqtp", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(name: str) -> list[tuple[str, bool]]:
    """What a module imports, absolute, and whether only for the type checker."""
    return list(_imports(name, MODULES[name], ast.parse(MODULES[name].read_text())))


def _imports(name: str, path: Path, tree: ast.Module) -> Iterator[tuple[str, bool]]:
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node in for_types


def floor(name: str) -> int:
    """The floor of a module; the longest prefix decides."""
    return next(FLOORS[prefix] for prefix in FLOORS if f"{name}.".startswith(f"{prefix}."))


MODULES = modules()


def test_every_folder_is_seen() -> None:
    assert {floor(name) for name in MODULES} == {1, 2, 3, 4, 5}
    assert len(MODULES) > 50


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"eqtp"}))
def test_imports_point_down(name: str) -> None:
    ours = [item for item, _ in imports(name) if item.split(".")[0] == "eqtp"]
    upward = [item for item in ours if floor(item) > floor(name) and (name, item) not in EXCEPTIONS]
    assert not upward, f"{name} (floor {floor(name)}) imports from above: {upward}"


@pytest.mark.parametrize("name", sorted(name for name in MODULES if floor(name) <= 3))
def test_low_floors_need_little(name: str) -> None:
    foreign = {item.split(".")[0] for item, _ in imports(name)}
    assert foreign <= LOW_FLOORS_NEED | sys.stdlib_module_names


def test_e3nn_is_imported_in_one_place() -> None:
    users = {name for name in MODULES for item, _ in imports(name) if "e3nn" in item}
    opponents = {name for name in users if floor(name) == FLOORS["eqtp.benchmarks"]}
    hosts = {name for name in users if name.startswith("eqtp.models.acceleration.")}
    assert users - opponents - hosts == {"eqtp.irreps"}


def test_annotations_are_not_evaluated() -> None:
    without = [
        name
        for name, path in MODULES.items()
        if "__future__" not in [item for item, _ in imports(name)]
        and ("def " in path.read_text() or "class " in path.read_text())
    ]
    assert not without


def test_dependencies_are_what_is_imported() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared, extra = (
        {re.split(r"[<>=\[; ]", text)[0] for text in texts}
        for texts in (project["dependencies"], extras["xtb"] + extras["triton"])
    )
    used = {
        item.split(".")[0] for name in MODULES for item, for_types in imports(name) if not for_types
    }
    foreign = {
        DISTRIBUTIONS.get(name, name)
        for name in used - sys.stdlib_module_names - {"eqtp"} - OPTIONAL
    }
    assert foreign - extra == declared - INDIRECT
    assert extra <= foreign


def test_import_and_product_load_nothing_heavy() -> None:
    code = (
        "import sys, torch, eqtp\n"
        "tp = eqtp.ChannelwiseTensorProduct('2x0e+2x1o', '0e+1o', '0e+1o')\n"
        "graph = eqtp.Graph(torch.tensor([0, 1]), torch.tensor([1, 0]), 2)\n"
        "x = torch.randn(2, 8, requires_grad=True)\n"
        "out = tp(x, torch.randn(2, 4), torch.randn(2, tp.weight_numel), graph=graph)\n"
        "out.sum().backward()\n"
        f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
