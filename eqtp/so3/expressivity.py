"""What a tensor product can express: how many bilinear maps it reaches, and which couplings.

Put equivariant linear layers before and after a product T: X' x Y' -> Z', so that it maps one
channel of every irrep of its operands to one channel of every irrep of its result,

    B = { Lin_Z o T_w o (Lin_X, Lin_Y) },    all linear layers, all weights w.

Any such map is sum of k(ir1, ir2, ir3) w3j over the couplings of the irreps, so B is a set of
vectors k. Its dimension is the rank of the derivative of k in all parameters at a random point.
Source: Xie et al., ICML 2025, "The Price of Freedom", section 4.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from eqtp.irreps import Irrep, Irreps
from eqtp.layout import Layout, to_layout
from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = ["expressivity", "interactability"]

# Singular values below this part of the largest are rounding. Those of random points lie above
# 1e-5 in every case of the tests, the others below 1e-14.
RANK_TOLERANCE = 1e-9

Coupling = tuple[int, int, int]


class TensorProduct(Protocol):
    """What is asked of an `eqtp.TensorProduct`, which stands above this package."""

    @property
    def irreps_in1(self) -> Irreps: ...
    @property
    def irreps_in2(self) -> Irreps: ...
    @property
    def irreps_out(self) -> Irreps: ...
    @property
    def weight_numel(self) -> int: ...
    @property
    def layout(self) -> Layout: ...

    evaluator: Any

    def __call__(self, x1: Tensor, x2: Tensor, weight: Tensor | None) -> Tensor: ...


def expressivity(tp: TensorProduct) -> int:
    """Dimension of the bilinear maps that a product reaches between linear layers.

    One channel of every irrep before and after, so channels of the product itself count: they are
    summed with linear layers of their own. Numerical, float64, on the CPU.

    Args:
        tp: A product of any method.

    Example:
        >>> import eqtp
        >>> paths = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
        >>> tp = eqtp.TensorProduct("0e+1o", "0e+1o", "0e+1o",
        ...                         [(*path, "uuu", True) for path in paths])
        >>> expressivity(tp)
        4
    """
    parameters = _random_parameters(tp)
    _, couplings = _couplings(tp, parameters)
    rows = []
    for value in couplings:
        gradients = torch.autograd.grad(
            value, parameters, retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    if not rows:
        return 0
    singular = torch.linalg.svdvals(torch.stack(rows))
    return int((singular > RANK_TOLERANCE * singular.max()).sum())


def interactability(tp: TensorProduct) -> frozenset[Coupling]:
    """The couplings (l1, l2, l3) that a product between linear layers can have.

    Args:
        tp: A product of any method.

    Example:
        >>> import eqtp
        >>> tp = eqtp.TensorProduct("1o", "1o", "1e", [(0, 0, 0, "uuu", True)])
        >>> interactability(tp)
        frozenset({(1, 1, 1)})
    """
    names, couplings = _couplings(tp, _random_parameters(tp))
    largest = couplings.abs().max() if len(names) else 0.0
    return frozenset(
        name
        for name, value in zip(names, couplings, strict=True)
        if value.abs() > RANK_TOLERANCE * largest
    )


def _random_parameters(tp: TensorProduct) -> list[Tensor]:
    """Weights, then the three linear layers: a vector over all channels of each side."""
    generator = torch.Generator().manual_seed(0)
    sides = tp.irreps_in1, tp.irreps_in2, tp.irreps_out
    sizes = [tp.weight_numel, *(sum(mul for mul, _ in side) for side in sides)]
    return [
        torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in sizes
    ]


def _couplings(tp: TensorProduct, parameters: list[Tensor]) -> tuple[list[Coupling], Tensor]:
    """Every coupling that the irreps allow, and its coefficient k.

    The maps are evaluated at random operands with one irrep in x1, and the coefficients solved for.
    """
    weight, layer1, layer2, layer_out = parameters
    kinds1, kinds2, kinds3 = (
        sorted({ir for _, ir in irreps}) for irreps in (tp.irreps_in1, tp.irreps_in2, tp.irreps_out)
    )
    generator = torch.Generator().manual_seed(1)
    samples = len(kinds2) + 2
    names: list[Coupling] = []
    values = []
    for ir1 in kinds1:
        x = {ir1: torch.randn(samples, ir1.dim, dtype=torch.float64, generator=generator)}
        x2, y = _second_operand(tp, kinds2, samples, layer2, generator)
        x1 = _spread(x, layer1, tp.irreps_in1, samples)
        out = tp(
            to_layout(x1, tp.irreps_in1, "mul_ir", tp.layout),
            x2,
            weight.expand(samples, -1) if tp.weight_numel else None,
        )
        out = to_layout(out, tp.irreps_out, tp.layout, "mul_ir")
        for ir3 in kinds3:
            partners = [ir2 for ir2 in kinds2 if ir3 in ir1 * ir2]
            if not partners:
                continue
            design = torch.stack(
                [
                    torch.einsum("ijk,zi,zj->zk", wigner_3j(ir1.l, ir2.l, ir3.l), x[ir1], y[ir2])
                    for ir2 in partners
                ],
                dim=-1,
            ).flatten(0, 1)
            collected = _collect(out, layer_out, tp.irreps_out, ir3).flatten()
            values.append(torch.linalg.pinv(design) @ collected)
            names += [(ir1.l, ir2.l, ir3.l) for ir2 in partners]
    return names, torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)


def _second_operand(
    tp: TensorProduct,
    kinds: list[Irrep],
    samples: int,
    layer: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[Irrep, Tensor]]:
    """The product's x2, and its irreps before the linear layer."""
    if tp.evaluator.method.name == "so2":  # x2 are edge vectors, which no layer mixes
        from eqtp.so3 import spherical_harmonics

        vectors = torch.randn(samples, 3, dtype=torch.float64, generator=generator)
        harmonics = spherical_harmonics(max(ir.l for ir in kinds), vectors)
        return vectors, {ir: harmonics[:, ir.l**2 : (ir.l + 1) ** 2] for ir in kinds}
    y = {ir: torch.randn(samples, ir.dim, dtype=torch.float64, generator=generator) for ir in kinds}
    x2 = _spread(y, layer, tp.irreps_in2, samples)
    return to_layout(x2, tp.irreps_in2, "mul_ir", tp.layout), y


def _spread(x: dict[Irrep, Tensor], layer: Tensor, irreps: Irreps, samples: int) -> Tensor:
    """A linear layer from one channel of some irreps; the others are zero."""
    factors = layer.split([mul for mul, _ in irreps])
    blocks = [
        (factor[:, None] * x[ir][:, None]).flatten(1)
        if ir in x
        else layer.new_zeros(samples, mul * ir.dim)
        for factor, (mul, ir) in zip(factors, irreps, strict=True)
    ]
    return torch.cat(blocks, dim=1)


def _collect(out: Tensor, layer: Tensor, irreps: Irreps, kind: Irrep) -> Tensor:
    """A linear layer to one channel of an irrep, [samples, dim]."""
    factors = layer.split([mul for mul, _ in irreps])
    blocks = [
        (factor[:, None] * out[:, columns].unflatten(1, (mul, ir.dim))).sum(1)
        for factor, columns, (mul, ir) in zip(factors, irreps.slices(), irreps, strict=True)
        if ir == kind
    ]
    return torch.stack(blocks).sum(0)
