"""Products of functions on the sphere. Definition: reference.py."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from eqtp.backend import Backend, resolve
from eqtp.compiling import constant_when_compiled
from eqtp.kernels.codegen.availability import why_unavailable
from eqtp.kernels.gaunt_grid import _ops, reference
from eqtp.kernels.gaunt_grid._symmetry import choose_grid
from eqtp.kernels.gaunt_grid.config import (
    CPU_MAX_STATEMENTS,
    TRITON_MAX_PARTS,
    TRITON_MAX_WEIGHTED_PARTS,
)
from eqtp.kernels.gaunt_grid.problem import SphereProductProblem
from eqtp.operands import check_alike
from eqtp.operators import is_autocast, widest

__all__ = ["IMPLEMENTED", "sphere_product", "validate", "why_not"]

IMPLEMENTED = ("triton", "cpu", "torch", "reference")


def sphere_product(
    x1: Float[Tensor, "rows dim1 channels1"],
    x2: Float[Tensor, "rows dim2 channels2"],
    problem: SphereProductProblem,
    a: Float[Tensor, "#rows degrees1 channels1"] | None = None,
    b: Float[Tensor, "#rows degrees2 channels2"] | None = None,
    c: Float[Tensor, "#rows degrees3 channels"] | None = None,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "rows dim3 channels"]:
    """Product of functions on the sphere, on the smallest grid that makes it exact.

        out[z, k, u] = c[l(k)] mean over the sphere of F(a x1[z, :, u]) G(b x2[z, :, u]) Y_k

    with F and G sums of "component" harmonics; for `problem.odd` of r . (grad F x grad G) Y_k.
    That is sqrt(4 pi) times the Gaunt coefficients. Rotation-equivariant, linear in every operand,
    differentiable to any order. Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv:2401.10216,
    section 3; the grid: Xie et al., ICML 2025 ("The Price of Freedom"); the curl:
    arXiv:2605.15073.

    Args:
        x1: Parts of F, degrees in the order of `problem.degrees1`.
        x2: Parts of G. Either operand may have one channel, which then serves all of the other's.
        problem: The degrees, and whether the product is the even or the odd one.
        a: Weights of F, one per degree and channel, for every row or for all; 1 when None.
        b: Weights of G.
        c: Weights of the result.
        backend: See `eqtp.backend`.

    Raises:
        ValueError: Shapes disagree with the problem or with each other.
        TypeError: Operands differ in dtype or device, or are not floating-point tensors.
        NotImplementedError: The backend was asked for by name and cannot serve.

    Example:
        >>> problem = SphereProductProblem((0, 1), (0, 1), (0, 1, 2))
        >>> sphere_product(torch.randn(5, 4, 8), torch.randn(5, 4, 8), problem).shape
        torch.Size([5, 9, 8])
    """
    if is_autocast(x1):
        x1, x2, a, b, c = widest((x1, x2, a, b, c))
    validate(x1, x2, problem)
    _validate_weights(x1, x2, (a, b, c), problem)
    kernel, text = _choose(problem, backend, x1.dtype, x1.device.type)
    if kernel == "reference":
        return reference.sphere_product(x1, x2, problem, a, b, c)
    if kernel == "triton" and max(problem.dims) > TRITON_MAX_WEIGHTED_PARTS:
        blocks = [block.to(x1.device) for block in problem.blocks]
        x1 = x1 if a is None else x1 * a[:, blocks[0]]
        x2 = x2 if b is None else x2 * b[:, blocks[1]]
        out = _ops.product(x1, x2, None, None, None, text, kernel)
        return out if c is None else out * c[:, blocks[2]]
    return _ops.product(x1, x2, a, b, c, text, kernel)


@constant_when_compiled
def _choose(
    problem: SphereProductProblem, backend: Backend, dtype: torch.dtype, device: str
) -> tuple[str, str]:
    """The backend that computes a product, and the product as a text."""
    chosen = resolve(
        backend,
        family="gaunt_grid",
        implemented=IMPLEMENTED,
        device=device,
        why_not=lambda name: why_not(name, problem, dtype),
    )
    return chosen.backend, problem.text


def why_not(backend: str, problem: SphereProductProblem, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run a product; None where it can."""
    if backend == "cpu" and dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 or float64, got {dtype}"
    obstacle = why_unavailable(backend)
    if backend == "cpu" and obstacle is None:
        statements = sum(slot.num_statements for slot in choose_grid(problem))
        if statements > CPU_MAX_STATEMENTS:
            return (
                f"its code is unrolled and takes at most {CPU_MAX_STATEMENTS} operations, "
                f"degrees {problem.degrees} take {statements}"
            )
    if backend == "triton" and obstacle is None:
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, got {dtype}"
        if max(problem.dims) > TRITON_MAX_PARTS:
            return (
                f"a program holds functions of at most {TRITON_MAX_PARTS} components, degrees "
                f"{problem.degrees} have {problem.dims}"
            )
    return obstacle


def validate(x1: Tensor, x2: Tensor, problem: SphereProductProblem) -> None:
    """Refuses operands that do not fit the problem or each other.

    Raises:
        ValueError: A shape is wrong.
        TypeError: A dtype or device is wrong.
    """
    for name, x, dim in (("x1", x1, problem.dims[0]), ("x2", x2, problem.dims[1])):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {got}")
        if x.ndim != 3 or x.shape[1] != dim:
            raise ValueError(
                f"{name} must have shape [rows, {dim}, channels] (degrees "
                f"{problem.degrees[int(name[1]) - 1]}), got {tuple(x.shape)}"
            )
    if x1.shape[0] != x2.shape[0] or (
        x1.shape[2] != x2.shape[2] and 1 not in (x1.shape[2], x2.shape[2])
    ):
        raise ValueError(
            "x1 and x2 must have as many rows and as many channels (or one), got shapes "
            f"{tuple(x1.shape)} and {tuple(x2.shape)}"
        )
    check_alike(x1=x1, x2=x2)


def _validate_weights(
    x1: Tensor, x2: Tensor, weights: tuple[Tensor | None, ...], problem: SphereProductProblem
) -> None:
    rows = x1.shape[0]
    channels = x1.shape[2], x2.shape[2], max(x1.shape[2], x2.shape[2])
    for name, weight, degrees, width in zip("abc", weights, problem.degrees, channels, strict=True):
        if weight is None:
            continue
        expected = len(degrees), width
        if weight.ndim != 3 or weight.shape[1:] != expected or weight.shape[0] not in (1, rows):
            raise ValueError(
                f"{name} must have shape [{rows} or 1, {expected[0]} degrees, {expected[1]} "
                f"channels], got {tuple(weight.shape)}"
            )
        check_alike(**{"x1": x1, name: weight})
