"""The resolver: one place, never silent."""

from __future__ import annotations

import pytest

from eqtp.backend import resolve


def test_auto_takes_the_first_that_serves() -> None:
    everything = ("reference", "torch", "cpu", "triton")
    assert resolve("auto", family="f", implemented=everything, device="cuda").backend == "triton"
    assert resolve("auto", family="f", implemented=everything, device="cpu").backend == "cpu"
    assert resolve("auto", family="f", implemented=everything, device="mps").backend == "torch"
    assert resolve("auto", family="f", implemented=("reference",)).backend == "reference"


def test_auto_says_what_is_missing() -> None:
    reason = resolve("auto", family="f", implemented=("torch",), device="cpu").reason
    assert "cpu: no kernel for this family" in reason
    assert "triton" not in reason
    reason = resolve("auto", family="f", implemented=("torch",), device="cuda").reason
    assert "triton: no kernel for this family" in reason


def test_by_name() -> None:
    resolution = resolve("reference", family="f", implemented=("torch", "reference"))
    assert (resolution.backend, resolution.reason) == ("reference", "asked for by name")


def test_by_name_never_falls_back() -> None:
    with pytest.raises(NotImplementedError, match="'cpu' has no kernel for 'f' in this version"):
        resolve("cpu", family="f", implemented=("torch",))
    with pytest.raises(NotImplementedError, match=r"'triton' runs on cuda tensors, got .* 'cpu'"):
        resolve("triton", family="f", implemented=("triton", "torch"))
    with pytest.raises(ValueError, match="backend must be one of"):
        resolve("gpu", family="f", implemented=("torch",))  # type: ignore[arg-type]
