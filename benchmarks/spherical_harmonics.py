"""Spherical harmonics of edge vectors: values, gradients, second gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eqtp.benchmarks.contestants import Make
from eqtp.benchmarks.harness.case import Case, Contestant, Inputs, Work
from eqtp.benchmarks.harness.family import Choice
from eqtp.benchmarks.harness.providers import require
from eqtp.kernels.spherical_harmonics import _torch, op, reference

__all__ = ["cases"]

# Steep near the zero vector: the gradient grows as 1 / |r|, the second as 1 / |r|^2.
TOLERANCES = {torch.float32: {"backward": 1e-4, "double backward": 1e-3}}


def cases(choice: Choice) -> Iterator[Case]:
    """Degrees up to 11, e3nn's highest."""
    for degree in (3,) if choice.quick else (1, 2, 3, 4, 6, 8, 11):
        yield _case(degree, 10_000 if choice.quick else 100_000, choice)


def _case(degree: int, rows: int, choice: Choice) -> Case:
    def make(number: int, generator: torch.Generator) -> Inputs:
        vectors = torch.randn(number, 3, generator=generator, dtype=choice.dtype)
        return Inputs({"vectors": vectors})

    def work(task: str) -> Work:
        """Numbers alone: arithmetic is some products per number."""
        numbers = {"forward": 3 + dim, "backward": 6 + 2 * dim, "double backward": 9 + dim}[task]
        return Work(0.0, float(rows * numbers))

    dim = (degree + 1) ** 2
    functions = {
        "eqtp": op.spherical_harmonics,
        "eqtp torch": _torch.spherical_harmonics,
        "eqtp reference": reference.spherical_harmonics,
    }
    contestants: dict[str, Make] = {
        name: _eqtp(degree, name, function) for name, function in functions.items()
    }
    return Case(
        family="spherical_harmonics",
        name=f"degrees up to {degree}",
        make=make,
        rows=rows,
        contestants=contestants
        | {"e3nn": _e3nn(degree), "cuequivariance": _cue(degree, choice.device)},
        baseline="e3nn",
        sizes={"rows": rows, "L": degree},
        forces=("vectors",),
        work=work,
        dtype=choice.dtype,
        check_rows=1_000,
        # Steep near the zero vector: the gradient grows as 1 / |r|, the second as 1 / |r|^2.
        tolerances={"backward": 1e-4, "double backward": 1e-3}
        if choice.dtype == torch.float32
        else {},
        group="all degrees up to L",
    )


def _contestant(function: Callable[[Tensor], Tensor], degree: int, about: str) -> Contestant:
    def call(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        return function(tensors["vectors"])

    def definition(tensors: Mapping[str, Tensor], place: Any) -> Tensor:
        return reference.spherical_harmonics(degree, tensors["vectors"])

    return Contestant(call, definition, about=about)


def _eqtp(degree: int, name: str, function: Callable[..., Tensor]) -> Make:
    def make() -> Contestant:
        def harmonics(vectors: Tensor) -> Tensor:
            return function(degree, vectors, "component", True)

        return _contestant(harmonics, degree, f"{name}: {function.__module__}")

    return make


def _e3nn(degree: int) -> Make:
    def make() -> Contestant:
        o3 = require("e3nn", "e3nn.o3")
        degrees = list(range(degree + 1))

        def function(vectors: Tensor) -> Tensor:
            y: Tensor = o3.spherical_harmonics(degrees, vectors, True, "component")
            return y

        return _contestant(function, degree, "e3nn.o3.spherical_harmonics")

    return make


def _cue(degree: int, device: str) -> Make:
    def make() -> Contestant:
        if degree > 4 and device == "cpu":
            raise NotImplementedError("its plain path takes minutes, and 24 GB for degree 11")
        cuet = require("cuequivariance")
        harmonics = cuet.SphericalHarmonics(list(range(degree + 1)), normalize=True)

        def function(vectors: Tensor) -> Tensor:
            y: Tensor = harmonics(vectors)
            return y

        return _contestant(function, degree, repr(harmonics))

    return make
