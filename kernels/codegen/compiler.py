"""C++ source to a loaded library: compiled once per machine, kept in the user's own cache.

A plain C ABI and ctypes: compiling takes about a second where `load_inline` with torch's headers
takes 35. OpenMP symbols stay open in the library and bind to the runtime that torch has loaded, so
that there is one pool of threads.

The cache is `$XDG_CACHE_HOME/eqtp` or `~/.cache/eqtp`, mode 0700. A library's name is a hash of
source, compiler, flags and processor, so a home directory shared by different machines is safe; it
is written under a temporary name and renamed, and a lock file keeps processes that start together
from doing the same work. A library that another user owns or could have written is not loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "CompilationError",
    "cache_folder",
    "find_compiler",
    "load_generated",
    "load_library",
    "why_unavailable",
]

COMPILERS = ("g++", "clang++", "c++")
FLAGS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-fPIC",
    "-fvisibility=hidden",
)
LIMIT_SECONDS = 600


class CompilationError(RuntimeError):
    """The compiler refused a generated source."""


@functools.cache
def find_compiler() -> str | None:
    """Path of the first C++ compiler on the PATH, or None."""
    if os.name != "posix":
        return None
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


@functools.cache
def why_unavailable() -> str | None:
    """Why generated C++ cannot run here, or None where it can; tried once with a tiny kernel."""
    if find_compiler() is None:
        reason = f"no C++ compiler found on the PATH ({', '.join(COMPILERS)})"
    else:
        try:
            load_library(_PROBE).eqtp_probe(1)
        except (CompilationError, OSError, PermissionError, AttributeError) as error:
            reason = f"generated C++ does not run here: {error}"
        else:
            return None
    warnings.warn(f"{reason}; the plain-torch kernels take over", stacklevel=2)
    return reason


_PROBE = """
extern "C" __attribute__((visibility("default"))) int eqtp_probe(int threads) {
    int sum = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : sum)
    for (int i = 0; i < 4; ++i) sum += i;
    return sum;
}
"""


def cache_folder() -> Path:
    """The user's cache of compiled kernels, made if needed.

    Raises:
        PermissionError: The folder belongs to another user or others may write to it.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "eqtp"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)
    return folder


def load_library(source: str) -> ctypes.CDLL:
    """Compiles a source, or takes it from the cache, and loads it.

    Args:
        source: C++ with `extern "C"` functions of default visibility.

    Raises:
        CompilationError: The compiler refused it; the message ends with the compiler's own.
        PermissionError: The cache is not the user's own.
    """
    return _load(source, lambda: source)


def load_generated(description: str, generate: Callable[[], str]) -> ctypes.CDLL:
    """As `load_library`, for a source that need not be generated where it has been compiled before.

    Printing the second gradient of a large product takes longer (0.1 s) than loading it (0.01 s).

    Args:
        description: What the source depends on, beside the code of this package.
        generate: Makes the source; defined in a module of the family's folder.
    """
    return _load(f"{description}\0{_code_digest(generate.__module__)}", generate)


def _load(identity: str, generate: Callable[[], str]) -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        raise CompilationError("generated C++ needs a compiler, found none: install g++ or clang++")
    text = "\0".join([identity, *FLAGS, _toolchain(compiler)])
    key = hashlib.sha256(text.encode()).hexdigest()[:40]
    folder = cache_folder()
    library = folder / f"{key}.so"
    if not library.exists():
        import fcntl  # absent from Windows, where no compiler is looked for

        with (folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.exists():
                _compile(compiler, generate(), library)
    _check_private(library)
    return ctypes.CDLL(str(library))


@functools.cache
def _code_digest(module: str) -> str:
    """A hash of the code behind a family's sources: its folder, this folder, and the constants."""
    digest = hashlib.sha256()
    for name in (module, __name__, "eqtp.so3.clebsch_gordan"):
        folder = Path(str(importlib.import_module(name).__file__)).resolve().parent
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _compile(compiler: str, source: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as build:
        text, code, result = (Path(build) / f"kernel.{end}" for end in ("cpp", "o", "so"))
        text.write_text(source)
        _run(compiler, *FLAGS, "-c", str(text), "-o", str(code))
        _run(compiler, "-shared", str(code), "-o", str(result))  # OpenMP is torch's: not linked
        result.chmod(0o700)
        result.replace(library)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode != 0:
        raise CompilationError(
            f"{command[0]} failed with status {done.returncode}:\n{done.stderr[-2000:]}"
        )


@functools.cache
def _toolchain(compiler: str) -> str:
    """What `-march=native` and the compiler's version stand for, without running the compiler."""
    binary = Path(compiler).resolve()
    status = binary.stat()
    return f"{binary} {status.st_size} {status.st_mtime_ns} {platform.machine()} {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    first = {line.split(":")[0].strip(): line for line in reversed(lines) if ":" in line}
    return "\n".join(first[name] for name in wanted if name in first)


def _check_private(path: Path) -> None:
    status = path.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            f"{path} must be owned and writable by this user alone, got owner {status.st_uid} and "
            f"mode {stat.filemode(status.st_mode)}: remove it or set XDG_CACHE_HOME"
        )
