"""The many-body product of MACE: `symmetric_contraction`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqtp.backend import Backend
from eqtp.irreps import Irreps
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.layout import Layout
from eqtp.models.acceleration.mace_backend.conventions import (
    DTYPES,
    channels_first,
    components_first,
    draw,
    layout_of,
    weights_are_raw,
)
from eqtp.so3.symmetric_coupling import project_coupling, symmetric_coupling
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["SymmetricContraction"]


class SymmetricContraction(nn.Module):
    """`symmetric_contraction`: MACE's couplings written in eqtp's orthonormal basis, once."""

    mixing: Tensor

    def __init__(self, descriptor: Any, backend: Backend) -> None:
        super().__init__()
        channels = descriptor.num_features
        self.problem = SymmetricContractionProblem.from_irreps(
            Irreps([(channels, ir) for _, ir in Irreps(descriptor.irreps_in)]),
            Irreps([(channels, ir) for _, ir in Irreps(descriptor.irreps_out)]),
            descriptor.correlation,
        )
        self.layout: Layout = layout_of(descriptor)
        self.backend: Backend = backend
        mixing, self.path_counts = _mixing(descriptor)
        dtype = DTYPES[descriptor.precision]
        self.register_buffer("mixing", mixing.to(dtype), persistent=False)
        shape = descriptor.num_elements, len(mixing), channels
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))

    def forward(self, features: Tensor, element: Tensor) -> Tensor:
        """Polynomials of features [N, C, dim] or [N, C dim] with weights of elements [N]."""
        apart = features.ndim == 3
        out = symmetric_contraction(
            components_first(features) if apart else features,
            self.mixing.T @ self.weight,
            element,
            self.problem,
            layout="ir_mul" if apart else self.layout,
            backend=self.backend,
        )
        return channels_first(out, self.problem.num_channels) if apart else out

    def to_canonical(self) -> dict[str, Tensor]:
        """The weights [element, path, channel], and how many paths each block has."""
        return {"weight": self.weight.detach(), "path_counts": torch.tensor(self.path_counts)}

    @torch.no_grad()
    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """Takes weights for the same couplings."""
        counts = state["path_counts"].tolist()
        if counts != self.path_counts or state["weight"].shape != self.weight.shape:
            raise ValueError(
                f"weight must have shape {tuple(self.weight.shape)} with {self.path_counts} paths, "
                f"got {tuple(state['weight'].shape)} with {counts}"
            )
        self.weight.copy_(state["weight"])

    @torch.no_grad()
    def initialize_weights(self, seed: int) -> None:
        """Draws weights at the scale of MACE's format: 1 / paths of a block where they are raw."""
        self.weight.copy_(draw(self.weight, seed))
        if weights_are_raw():
            for block in self.weight.split(self.path_counts, dim=1):
                block.div_(max(block.shape[1], 1))


def _mixing(descriptor: Any) -> tuple[Tensor, list[int]]:
    """MACE's couplings in eqtp's basis [paths of MACE, paths of eqtp], and MACE's path counts."""
    library = importlib.import_module("mace_core.clebsch_gordan.reduced_basis")
    build: Callable[..., Any] = getattr(
        library, f"{descriptor.basis}_symmetric_tensor_product_basis"
    )
    irreps_in, irreps_out = Irreps(descriptor.irreps_in), Irreps(descriptor.irreps_out)
    blocks: dict[tuple[int, int], Tensor] = {}
    for degree in range(1, descriptor.correlation + 1):
        for i, (_, ir) in enumerate(irreps_out):
            given = torch.tensor(build(descriptor.irreps_in, degree, str(ir))[str(ir)])
            shape = (len(given), ir.dim, *[irreps_in.dim] * degree)
            dense = given.double().view(shape).movedim(0, -1)
            blocks[i, degree] = project_coupling(dense, symmetric_coupling(irreps_in, ir, degree))
    ours = sorted(blocks)
    columns = dict(zip(ours, _spans([blocks[key].shape[1] for key in ours]), strict=True))
    counts = [len(block) for block in blocks.values()]
    mixing = torch.zeros(sum(counts), sum(block.shape[1] for block in blocks.values())).double()
    for (key, block), rows in zip(blocks.items(), _spans(counts), strict=True):
        mixing[rows, columns[key]] = block
    return mixing, counts


def _spans(sizes: Sequence[int]) -> list[slice]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
