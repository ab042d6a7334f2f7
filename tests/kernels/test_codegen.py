"""Programs, their C++, and the cache of compiled kernels."""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eqtp.kernels.channelwise import channelwise_tensor_product
from eqtp.kernels.channelwise._program import SECOND_ORDER, path_program
from eqtp.kernels.codegen import compiler, cpp, memory
from eqtp.kernels.codegen.matrix_product import MATRIX_PRODUCT
from eqtp.kernels.codegen.program import Program, Statement, Variable, product
from eqtp.problem import TensorProductProblem

SOURCE = f"{cpp.EXPORT} int answer() {{ return 42; }}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "eqtp"


def test_specialize_keeps_what_bears_on_the_results() -> None:
    program = Program(
        (
            Statement(Variable("a"), "edge", (product("x", 0), product("y", 0))),
            Statement(Variable("b"), "edge", (product("y", 1),)),
            Statement(Variable("c"), "channel", (product("a", "g"), product("b", "g"))),
            Statement(Variable("d"), "channel", (product("b"),)),
        )
    )
    assert str(program.specialize({"x", "y", "g"}, {"c"})).splitlines() == [
        "a = x_0 + y_0",
        "b = y_1",
        "c = a * g + b * g",
    ]
    assert str(program.specialize({"x", "g"}, {"c", "d"})).splitlines() == ["a = x_0", "c = a * g"]
    assert program.specialize({"x"}, {"c"}).statements == ()


def test_statements_stand_right_before_their_first_use() -> None:
    operands = "x", "y", "w", "g", "vx", "vy", "vw"
    program = path_program((2, 2, 2), 1.0, True, operands, tuple(SECOND_ORDER.values()))
    defined: set[Variable] = set()
    used = {f for s in program.statements for p in s.products for f in p.factors}
    for statement in program.statements:
        needed = {f for p in statement.products for f in p.factors} - set(program.operands)
        assert needed <= defined
        defined.add(statement.target)
        assert statement.target in used or statement.target.name in SECOND_ORDER.values()


def test_compiles_once_and_keeps_the_library_private(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiler.load_library(SOURCE).answer() == 42
    (library,) = cache.glob("*.so")
    for path in (cache, library):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [path.suffix for path in sorted(cache.iterdir())] == [".lock", ".so"]
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled twice"))
    assert compiler.load_library(SOURCE).answer() == 42


def test_a_described_source_is_printed_only_to_be_compiled(cache: Path) -> None:
    printed = []

    def generate() -> str:
        printed.append(1)
        return SOURCE

    for _ in range(2):
        assert compiler.load_generated("answer", generate).answer() == 42
    assert compiler.load_generated("another", generate).answer() == 42
    assert len(printed) == 2


def test_refuses_what_others_could_have_written(cache: Path) -> None:
    compiler.load_library(SOURCE)
    (library,) = cache.glob("*.so")
    library.chmod(0o722)
    with pytest.raises(PermissionError, match="by this user alone"):
        compiler.load_library(SOURCE)
    library.chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(PermissionError, match="by this user alone"):
        compiler.load_library(SOURCE)


def test_a_refused_source_is_told_and_not_kept(cache: Path) -> None:
    with pytest.raises(compiler.CompilationError, match=r"nonsense"):
        compiler.load_library("nonsense")
    assert list(cache.glob("*.so")) == []
    assert list(cache.glob("build-*")) == []


@pytest.mark.parametrize("processes", [3, pytest.param(16, marks=pytest.mark.slow)])
def test_processes_that_start_together(processes: int, cache: Path) -> None:
    code = (
        "from eqtp.kernels.codegen import compiler\n"
        f"assert compiler.load_library({SOURCE!r}).answer() == 42"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ.copy())
        for _ in range(processes)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    assert len(list(cache.glob("*.so"))) == 1


def test_a_machine_without_a_compiler_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    why_unavailable = functools.cache(compiler.why_unavailable.__wrapped__)
    monkeypatch.setattr(compiler, "find_compiler", lambda: None)
    with pytest.warns(
        UserWarning, match="no C\\+\\+ compiler.*plain-torch kernels take over"
    ) as found:
        assert why_unavailable() == why_unavailable()
    assert len(found) == 1


def test_without_a_compiler_torch_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "why_unavailable", lambda: "no compiler here")
    problem = TensorProductProblem.from_instructions("2x1o", "1o", "2x0e", [(0, 0, 0, "uvu", True)])
    operands = torch.randn(4, 6), torch.randn(4, 3), torch.randn(4, 2)
    automatic = channelwise_tensor_product(*operands, problem)
    assert torch.equal(automatic, channelwise_tensor_product(*operands, problem, backend="torch"))
    with pytest.raises(NotImplementedError, match="no compiler here"):
        channelwise_tensor_product(*operands, problem, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 35, 4), (32, 64, 7), (17, 5, 64)])
def test_matrix_product(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    height, width, depth = shape
    source = (
        cpp.prelude(dtype)
        + MATRIX_PRODUCT
        + cpp.EXPORT
        + """ void run(int height, int width, int depth, const real* a, const real* b, real* c) {
    product(
        height, width, depth, [=](int i, int k) { return a[k * height + i]; },
        [=](int k) { return b + k * width; }, [=](int i) { return c + i * width; }, true);
}"""
    )
    a, b, c = (torch.randn(s, dtype=dtype) for s in ((depth, height), (depth, width), shape[:2]))
    expected = c + a.t() @ b
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c)]
    compiler.load_library(source).run(height, width, depth, *pointers)
    torch.testing.assert_close(c, expected, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_large_memory_is_ordinary_memory() -> None:
    like = torch.zeros(1)
    for rows in (0, 3, memory.MINIMUM_BYTES // 4):
        tensor = memory.empty(like, rows, 1)
        tensor.fill_(1.0)
        assert (tensor.shape, tensor.dtype) == ((rows, 1), like.dtype)
        assert float(tensor.sum()) == rows
