"""What the tests of Triton kernels share: the interpreter's process, and the limit of spills.

Triton's interpreter is chosen by an environment variable before triton is imported. So tests of
values run in a process of their own: `run_in_the_interpreter` starts pytest on their own file,
where those marked `interpreted` run and those marked `compiled` do not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from eqtp.benchmarks.triton_registers import Usage

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
PINNED = "3.7.1"  # of torch 2.13's CUDA wheels; spills depend on the version

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="runs in the process that test_in_the_interpreter starts"
)
compiled = pytest.mark.skipif(
    INTERPRETED or importlib.util.find_spec("triton") is None,
    reason="Triton's interpreter compiles nothing" if INTERPRETED else "needs triton",
)


def run_in_the_interpreter(file: str) -> None:
    """Runs the tests of a file where Triton interprets its kernels."""
    pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("this is the interpreter's process")
    out = _run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert " passed" in out


def assert_importable_without_triton(*modules: str) -> None:
    """Importing the modules in a fresh process needs no triton."""
    _run("-c", f"import sys; sys.modules['triton'] = None; import {', '.join(modules)}")


def _run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def assert_no_spills(usage: Usage, what: str, allowed: int = 0) -> None:
    """A kernel keeps everything in registers; with another Triton than the pinned one it warns."""
    import triton

    assert usage.registers > 0
    if usage.spills > allowed or usage.stack > 0:
        assert triton.__version__ != PINNED, f"{what}: {usage}"
        warnings.warn(f"{what} spills with triton {triton.__version__}: {usage}", stacklevel=2)
