"""What MACE's registry gets: eqtp's capabilities and the factories of its modules."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from eqtp.backend import Backend
from eqtp.irreps import Irrep, Irreps
from eqtp.models.acceleration.mace_backend.contraction import SymmetricContraction
from eqtp.models.acceleration.mace_backend.conventions import DTYPES
from eqtp.models.acceleration.mace_backend.convolution import (
    ChannelwiseConvolution,
    SegmentReduce,
    paths_of,
)
from eqtp.models.acceleration.mace_backend.linear_maps import ElementProduct, LinearMap

__all__ = ["KernelBackend"]


class KernelBackend:
    """What MACE's registry gets: factories from descriptors to modules.

    Args:
        backend: Which of eqtp's kernels the modules use, see `eqtp.backend`.
    """

    name = "eqtp"

    def __init__(self, backend: Backend = "auto") -> None:
        self.backend: Backend = backend

    def capabilities(self) -> Any:
        """MACE's `BackendCapabilities`, with eqtp's own limits in `supports`."""
        contract = importlib.import_module("mace_core.kernels.capabilities")

        class Capabilities(contract.BackendCapabilities):  # type: ignore[name-defined, misc]
            def supports(self, descriptor: Any) -> bool:
                return super().supports(descriptor) and _obstacle(descriptor) is None

            def unsupported_reason(self, descriptor: Any) -> str | None:
                inherited = getattr(super(), "unsupported_reason", lambda _: None)
                return inherited(descriptor) or _obstacle(descriptor)

        fields = {field.name for field in dataclasses.fields(contract.BackendCapabilities)}
        values = {
            "ops": frozenset(_OPERATIONS.values()),
            "devices": frozenset({"cpu", "cuda"}),
            "dtypes": frozenset(DTYPES),
            "layouts": frozenset({"mul_ir"}),
            "activation_layouts": frozenset({"mul_ir", "ir_mul"}),
            "native_layout": "ir_mul",
            "bases": frozenset({"reduced", "full"}),
            "supports_double_backward": True,
            "spec_version": "1.0",
        }
        return Capabilities(**{name: value for name, value in values.items() if name in fields})

    def make_linear(self, descriptor: Any) -> LinearMap:
        """A linear map between equal irreps, with a bias of the even scalars where asked for."""
        self._check(descriptor)
        return LinearMap(descriptor)

    def make_channelwise_tp_conv(self, descriptor: Any) -> ChannelwiseConvolution:
        """Gather, channelwise product and sum at the receivers, in one kernel."""
        self._check(descriptor)
        return ChannelwiseConvolution(descriptor, self.backend)

    def make_symmetric_contraction(self, descriptor: Any) -> SymmetricContraction:
        """Polynomials of every node's features with weights of its element."""
        self._check(descriptor)
        return SymmetricContraction(descriptor, self.backend)

    def make_fully_connected_tp(self, descriptor: Any) -> ElementProduct:
        """One linear map for each of several scalars."""
        self._check(descriptor)
        return ElementProduct(descriptor, self.backend)

    def make_segment_reduce(self, descriptor: Any) -> SegmentReduce:
        """Sums or means of rows."""
        self._check(descriptor)
        return SegmentReduce(descriptor)

    def make_spherical_harmonics(self, descriptor: Any) -> None:
        """Left to MACE's reference."""

    def make_radial_basis(self, descriptor: Any) -> None:
        """Left to MACE's reference."""

    def make_interaction_layer(self, descriptors: Sequence[Any]) -> None:
        """A layer is built operation by operation."""

    def _check(self, descriptor: Any) -> None:
        self.capabilities().require(descriptor, self.name)


_OPERATIONS = {
    "LinearDescriptor": "linear",
    "ChannelwiseTPConvDescriptor": "channelwise_tp_conv",
    "SymmetricContractionDescriptor": "symmetric_contraction",
    "FullyConnectedTPDescriptor": "fully_connected_tp",
    "SegmentReduceDescriptor": "segment_reduce",
}


def _obstacle(descriptor: Any) -> str | None:
    """Why eqtp does not compute an operation, None where it does."""
    operation = _OPERATIONS.get(type(descriptor).__name__)
    if operation is None:
        return "eqtp leaves it to the reference"
    if operation == "segment_reduce":
        reductions = ("sum", "mean")
        known = descriptor.reduction in reductions
        return None if known else f"its reductions are {reductions}"
    if operation == "fully_connected_tp" and any(
        ir != Irrep("0e") for _, ir in Irreps(descriptor.irreps_in2)
    ):
        return f"irreps_in2 must be even scalars, got '{descriptor.irreps_in2}'"
    if operation == "symmetric_contraction":
        return _repeated(descriptor, "irreps_in", "irreps_out")
    if operation == "channelwise_tp_conv":
        return _repeated(descriptor, "irreps_node", "irreps_edge") or (
            None if paths_of(descriptor) else "it has no path"
        )
    return None


def _repeated(descriptor: Any, *names: str) -> str | None:
    for name in names:
        irreps = getattr(descriptor, name)
        if any(mul != 1 for mul, _ in Irreps(irreps)):
            return f"{name} must have each irrep once per channel, got '{irreps}'"
    return None
