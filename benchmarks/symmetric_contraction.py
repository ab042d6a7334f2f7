"""Symmetric contractions: the many-body products of MACE, and their Gaunt forms.

The Gaunt forms are polynomials of the same kind with fewer independent weights: another, smaller
class of functions. Each contestant has the weights of its own basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.benchmarks.contestants import Make
from eqtp.benchmarks.harness.case import Case, Contestant, Inputs, Work
from eqtp.benchmarks.harness.counting import contraction_work
from eqtp.benchmarks.harness.family import Choice
from eqtp.benchmarks.harness.providers import require
from eqtp.benchmarks.problems import harmonics
from eqtp.kernels.gaunt_contraction import gaunt_contraction
from eqtp.kernels.gaunt_contraction.reference import gaunt_contraction_reference
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.kernels.symmetric_contraction.reference import symmetric_contraction_reference
from eqtp.nn import SymmetricContraction
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["cases"]

NUM_ELEMENTS = 10  # as in cuEquivariance's tutorial


def cases(choice: Choice) -> Iterator[Case]:
    """MACE's own sizes: correlation 3, node features up to degree 2, results up to 2."""
    if choice.quick:
        yield _case(8, 2, 1, 2, 100, choice)
        yield _case(16, 3, 0, 3, 100, choice)
        return
    for channels in (32, 128):
        for out in (0, 1, 2):
            yield _case(channels, 3, out, 3, 1_000, choice)
    yield _case(64, 3, 1, 2, 1_000, choice)
    yield _case(32, 2, 1, 4, 500, choice)


def _case(
    channels: int, degree: int, out: int, correlation: int, rows: int, choice: Choice
) -> Case:
    irreps = harmonics(degree, channels=channels), harmonics(out, channels=channels)
    problem = SymmetricContractionProblem.from_irreps(*irreps, correlation)
    arguments = (*irreps, correlation)

    def make(number: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=choice.dtype)

        weight = normal(NUM_ELEMENTS, problem.num_paths, channels)
        tensors = {"x": normal(number, problem.irreps_in.dim), "weight": weight}
        return Inputs(tensors, torch.randint(NUM_ELEMENTS, (number,), generator=generator))

    def work(task: str) -> Work:
        return contraction_work(problem, task, rows=rows, num_elements=NUM_ELEMENTS)

    names: tuple[Backend, ...] = ("cpu", "triton", "torch")
    contestants: dict[str, Make] = {f"eqtp {name}": _eqtp(problem, name) for name in names}
    for method in ("gaunt", "gaunt_iterated"):
        contestants[f"eqtp {method}"] = _gaunt(arguments, method)
    contestants["mace-torch"] = _mace(arguments)
    return Case(
        family="symmetric_contraction",
        name=f"{channels} channels, l <= {degree} to l <= {out}, correlation {correlation}",
        make=make,
        rows=rows,
        contestants=contestants,
        baseline="eqtp torch",
        sizes={
            "rows": rows,
            "channels": channels,
            "L": degree,
            "correlation": correlation,
            "couplings": problem.num_paths,
            "elements": NUM_ELEMENTS,
        },
        forces=("x",),
        work=work,
        dtype=choice.dtype,
        check_rows=30,
        group=f"l <= {degree} to l <= {out}, correlation {correlation}",
        x="channels",
    )


def _contestant(
    call: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    paths: int,
    about: str,
    num_weights: int | None = None,
) -> Contestant:
    """Of functions of x, weight and element; `num_weights`: with weights of its own."""

    def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        own = dict(tensors)
        if num_weights is not None:
            weight = tensors["weight"]
            generator = torch.Generator(device=weight.device).manual_seed(2)
            shape = (weight.shape[0], num_weights, weight.shape[2])
            own["weight"] = torch.randn(
                shape, generator=generator, dtype=weight.dtype, device=weight.device
            )
        return own

    def of(function: Callable[..., Tensor]) -> Callable[[Mapping[str, Tensor], Any], Tensor]:
        return lambda tensors, element: function(tensors["x"], tensors["weight"], element)

    return Contestant(of(call), of(definition), adapt, paths=paths, about=about)


def _eqtp(problem: SymmetricContractionProblem, backend: Backend) -> Make:
    def make() -> Contestant:
        if backend == "triton" and not torch.cuda.is_available():
            raise NotImplementedError("the Triton kernels need a GPU")
        return _contestant(
            lambda x, weight, element: symmetric_contraction(
                x, weight, element, problem, backend=backend
            ),
            lambda x, weight, element: symmetric_contraction_reference(x, weight, element, problem),
            problem.num_paths,
            f"eqtp.SymmetricContraction, {backend}",
        )

    return make


def _gaunt(arguments: tuple[str, str, int], method: Any) -> Make:
    def make() -> Contestant:
        module = SymmetricContraction(*arguments, NUM_ELEMENTS, method=method)
        problem = module.gaunt
        if problem is None:
            raise NotImplementedError(f"method {method!r} is not in this version")
        return _contestant(
            lambda x, weight, element: gaunt_contraction(x, weight, element, problem),
            lambda x, weight, element: gaunt_contraction_reference(x, weight, element, problem),
            problem.num_weights,
            repr(module),
            problem.num_weights,
        )

    return make


def _mace(arguments: tuple[str, str, int]) -> Make:
    """mace-torch's module; its definition is itself in float64, as its basis is its own.

    tests/mace holds that basis against eqtp's.
    """

    def make() -> Contestant:
        contraction = require("mace-torch", "mace.modules.symmetric_contraction")
        o3 = require("e3nn", "e3nn.o3")
        irreps_in, irreps_out, correlation = arguments

        def module(dtype: torch.dtype) -> Any:
            default = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                torch.manual_seed(0)
                return contraction.SymmetricContraction(
                    irreps_in=o3.Irreps(irreps_in),
                    irreps_out=o3.Irreps(irreps_out),
                    correlation=correlation,
                    num_elements=NUM_ELEMENTS,
                )
            finally:
                torch.set_default_dtype(default)

        fast, exact = module(torch.get_default_dtype()), module(torch.float64)
        channels = o3.Irreps(irreps_in)[0].mul

        def of(model: Any) -> Callable[[Mapping[str, Tensor], Any], Tensor]:
            def call(tensors: Mapping[str, Tensor], element: Any) -> Tensor:
                x = tensors["x"]
                weights = {name: w for name, w in tensors.items() if name != "x"}
                blocks = [
                    x[:, columns].view(len(x), channels, -1)
                    for columns in o3.Irreps(irreps_in).slices()
                ]
                one_hot = torch.nn.functional.one_hot(element, NUM_ELEMENTS).to(x.dtype)
                operands = torch.cat(blocks, dim=2), one_hot
                out: Tensor = torch.func.functional_call(model, weights, operands)
                return out

            return call

        def adapt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            x = tensors["x"]
            fast.to(x)
            exact.to(x.device)
            weights = {name: weight.detach().to(x) for name, weight in fast.named_parameters()}
            return {"x": x} | {name: w for name, w in weights.items() if w.numel() > 0}

        return Contestant(of(fast), of(exact), adapt, about=repr(fast))

    return make
