"""What every benchmark needs: alternating timings, the machine in words, and atomic JSON."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eqtp.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "e3nn", "mace-torch", "torch-geometric", "numpy")


@dataclass
class Samples:
    """The repetitions of one timed call, in seconds: wall clock and CPU time of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Median, quartiles and every sample of both clocks."""
        return {"wall": _summary(self.wall), "cpu": _summary(self.cpu)}


def _summary(samples: list[float]) -> dict[str, Any]:
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    rounded = [float(f"{sample:.5g}") for sample in samples]  # files of 2,000 rows are kept
    return {"median": median, "quartiles": [first, third], "min": min(samples), "samples": rounded}


def alternate(
    calls: Mapping[str, Callable[[], object]],
    *,
    repetitions: int = 20,
    warmup: int = 3,
    device: str = "cpu",
    inner: Mapping[str, int] | None = None,
    primed: Collection[str] = (),
) -> dict[str, Samples]:
    """Times several calls in turn, so that a change of the machine's mood meets all of them.

    Args:
        calls: What to time, by name. In each repetition every one is called once, in this order.
        repetitions: Timed rounds, at least 2.
        warmup: Rounds before the clock runs.
        device: "cpu", or the GPU whose work is waited for; its caches are flushed between calls.
        inner: Calls per sample of the quick ones; the sample is their mean. 1 where not named.
        primed: Those whose samples follow a call that is not timed, so that they find in the caches
            what is their own and not the other contestants', however many calls a sample is.

    Returns:
        The samples of each call.

    Example:
        >>> samples = alternate({"nothing": lambda: None}, repetitions=4)
        >>> len(samples["nothing"].wall)
        4
    """
    if repetitions < 2:
        raise ValueError(f"repetitions must be at least 2, got {repetitions}")
    inner = inner or {}
    for _ in range(warmup):
        for call in calls.values():
            call()
    samples = {name: Samples() for name in calls}
    gc.collect()
    gc.freeze()  # or each of the collections below walks through all of torch
    try:
        for _ in range(repetitions):
            for name, call in calls.items():
                if name in primed:
                    call()
                wall, cpu = _time(call, inner.get(name, 1), device)
                samples[name].wall.append(wall)
                samples[name].cpu.append(cpu)
    finally:
        gc.unfreeze()
    return samples


def _time(call: Callable[[], object], number: int, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call of `number`."""
    gc.collect()  # or one contestant's call frees what another left behind
    settle(device, flush=True)
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(number):
            call()
        settle(device)
        return (time.perf_counter() - wall) / number, (time.process_time() - cpu) / number
    finally:
        gc.enable()


def settle(device: str, *, flush: bool = False) -> None:
    """Waits for a GPU; `flush` also writes more than its second-level cache holds."""
    if device == "cpu":
        return
    if flush:
        torch.empty(1 << 28, dtype=torch.int8, device=device).zero_()
    torch.cuda.synchronize(device)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference over the largest reference, both taken to float64."""
    reference = reference.detach().double()
    difference = (value.detach().double() - reference).abs().max()
    return float(difference / reference.abs().max())


def machine() -> dict[str, Any]:
    """The processor, the versions and the commit that a result belongs to."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "load": os.getloadavg(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    """What a device is called.

    Raises:
        ValueError: There is no such device here.
    """
    count = torch.cuda.device_count()
    known = ["cpu", *["cuda"] * (count > 0), *(f"cuda:{number}" for number in range(count))]
    if device not in known:
        raise ValueError(f"device must be one of those here, {', '.join(known)}, got {device!r}")
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def results_folder(device: str = "cpu") -> Path:
    """The folder of this machine's results, e.g. benchmarks/results/amd-epyc-2-cores.

    Of a GPU the folder has its name. Without a checkout it stands where the command was called.
    """
    name = f"{_cpu_model()} {os.cpu_count()} cores" if device == "cpu" else device_name(device)
    in_checkout = (RESULTS.parents[1] / ".git").exists()
    base = RESULTS if in_checkout else Path("benchmark-results")
    return base / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class WorkerError(RuntimeError):
    """A measuring process failed.

    Attributes:
        answer: What it had written until then; None where it had written nothing.
    """

    def __init__(self, reason: str, answer: dict[str, Any] | None) -> None:
        super().__init__(reason)
        self.answer = answer


def worker(
    module: str, threads: int, *options: object, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What a benchmark measures in a fresh interpreter, where OpenMP starts with those threads.

    The module is run with `--worker FILE --threads THREADS` and `options` and writes its answer to
    FILE; `environment` is added to this process's.

    Raises:
        WorkerError: The process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", module, "--worker", str(answer)]
        command += ["--threads", str(threads), *map(str, options)]
        variables = os.environ | {"OMP_NUM_THREADS": str(threads)} | dict(environment or {})
        status = subprocess.run(command, env=variables).returncode
        result: dict[str, Any] | None = json.loads(answer.read_text()) if answer.exists() else None
    if status or result is None:
        raise WorkerError(str(subprocess.CalledProcessError(status, command)), result)
    return result


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, marked `-dirty` when the working tree differs; None in a wheel."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run([*command, "--abbrev=12"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None
