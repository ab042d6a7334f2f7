"""Tensor products whose instructions follow from the irreps.

Each class only computes its instructions. They are subclasses, not functions, so that
`isinstance(module, TensorProduct)` holds for all of them, as users of e3nn expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict

from eqtp.backend import Backend
from eqtp.irreps import Irrep, Irreps
from eqtp.layout import Layout
from eqtp.problem import IrrepNormalization, Mode, PathNormalization, parse_irreps

from .evaluators import Evaluation
from .tensor_product import TensorProduct

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ChannelwiseTensorProduct",
    "ElementwiseTensorProduct",
    "FullTensorProduct",
    "FullyConnectedTensorProduct",
    "cut_to_common_blocks",
]

Instruction = tuple[int, int, int, Mode, bool]


class TensorProductOptions(TypedDict, total=False):
    """The keyword arguments that are handed on to `TensorProduct`."""

    internal_weights: bool | None
    shared_weights: bool | None
    method: str
    backend: Backend
    layout: Layout
    evaluation: Evaluation
    passes: int
    in1_var: Sequence[float] | None
    in2_var: Sequence[float] | None
    out_var: Sequence[float] | None


class ChannelwiseTensorProduct(TensorProduct):
    """The product of a convolution: "uvu", every path whose result is among `irreps_out`.

    Weights come per row (edge) by default. The module's own `irreps_out` has one block per path,
    sorted by irrep, paths of one irrep in the order of (irreps_in1, irreps_in2) - as in MACE and
    NequIP, so their weights fit.

    Args:
        irreps_in1: Irreps of x1.
        irreps_in2: Irreps of x2, usually spherical harmonics.
        irreps_out: The irreps that may appear in the result; multiplicities do not matter.
        irrep_normalization: "component", "norm" or "none".
        path_normalization: "element", "path" or "none".
        **options: As in `TensorProduct`.

    Example:
        >>> tp = ChannelwiseTensorProduct("8x0e+8x1o", "0e+1o", "0e+1o")
        >>> str(tp.irreps_out), tp.weight_numel
        ('8x0e+8x0e+8x1o+8x1o', 32)
    """

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        irreps_out: Irreps | str,
        irrep_normalization: IrrepNormalization | None = None,
        path_normalization: PathNormalization | None = None,
        **options: Unpack[TensorProductOptions],
    ) -> None:
        in1, in2, wanted = map(parse_irreps, (irreps_in1, irreps_in2, irreps_out))
        blocks: list[tuple[int, Irrep]] = []
        instructions: list[Instruction] = []
        for i_in1, (mul, ir1) in enumerate(in1):
            for i_in2, (_, ir2) in enumerate(in2):
                for ir_out in ir1 * ir2:
                    if ir_out in wanted:
                        instructions.append((i_in1, i_in2, len(blocks), "uvu", True))
                        blocks.append((mul, ir_out))
        out, instructions = _sort_result(blocks, instructions)
        instructions.sort(key=lambda instruction: instruction[2])
        options.setdefault("shared_weights", False)
        normalization = irrep_normalization, path_normalization
        super().__init__(in1, in2, out, instructions, *normalization, **options)


class FullyConnectedTensorProduct(TensorProduct):
    """Every allowed path, "uvw": all channels mix, as in `e3nn.o3.FullyConnectedTensorProduct`.

    Args:
        irreps_in1: Irreps of x1.
        irreps_in2: Irreps of x2.
        irreps_out: Irreps of the result.
        irrep_normalization: "component", "norm" or "none".
        path_normalization: "element", "path" or "none".
        **options: As in `TensorProduct`.

    Example:
        >>> FullyConnectedTensorProduct("2x0e+3x1o", "0e+1o", "4x1o").weight_numel
        20
    """

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        irreps_out: Irreps | str,
        irrep_normalization: IrrepNormalization | None = None,
        path_normalization: PathNormalization | None = None,
        **options: Unpack[TensorProductOptions],
    ) -> None:
        in1, in2, out = map(parse_irreps, (irreps_in1, irreps_in2, irreps_out))
        instructions: list[Instruction] = [
            (i_in1, i_in2, i_out, "uvw", True)
            for i_in1, (_, ir1) in enumerate(in1)
            for i_in2, (_, ir2) in enumerate(in2)
            for i_out, (_, ir_out) in enumerate(out)
            if ir_out in ir1 * ir2
        ]
        normalization = irrep_normalization, path_normalization
        super().__init__(in1, in2, out, instructions, *normalization, **options)


class FullTensorProduct(TensorProduct):
    """Every pair of channels, unweighted ("uvuv"), as in `e3nn.o3.FullTensorProduct`.

    Args:
        irreps_in1: Irreps of x1; simplified first.
        irreps_in2: Irreps of x2; simplified first.
        filter_ir_out: The irreps that may appear in the result; all when None.
        irrep_normalization: "component", "norm" or "none".
        path_normalization: "element", "path" or "none".
        **options: As in `TensorProduct`.

    Example:
        >>> str(FullTensorProduct("2x1o", "1x1o").irreps_out)
        '2x0e+2x1e+2x2e'
    """

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        filter_ir_out: Iterable[Irrep | str] | None = None,
        irrep_normalization: IrrepNormalization | None = None,
        path_normalization: PathNormalization | None = None,
        **options: Unpack[TensorProductOptions],
    ) -> None:
        in1, in2 = parse_irreps(irreps_in1).simplify(), parse_irreps(irreps_in2).simplify()
        wanted = _parse_filter(filter_ir_out)
        blocks: list[tuple[int, Irrep]] = []
        instructions: list[Instruction] = []
        for i_in1, (mul1, ir1) in enumerate(in1):
            for i_in2, (mul2, ir2) in enumerate(in2):
                for ir_out in ir1 * ir2:
                    if wanted is None or ir_out in wanted:
                        instructions.append((i_in1, i_in2, len(blocks), "uvuv", False))
                        blocks.append((mul1 * mul2, ir_out))
        out, instructions = _sort_result(blocks, instructions)
        normalization = irrep_normalization, path_normalization
        super().__init__(in1, in2, out, instructions, *normalization, **options)


class ElementwiseTensorProduct(TensorProduct):
    """Channel by channel, unweighted ("uuu"), as in `e3nn.o3.ElementwiseTensorProduct`.

    Args:
        irreps_in1: Irreps of x1; simplified, and cut where the blocks of x2 end.
        irreps_in2: Irreps of x2, with as many channels; cut likewise.
        filter_ir_out: The irreps that may appear in the result; all when None.
        irrep_normalization: "component", "norm" or "none".
        path_normalization: "element", "path" or "none".
        **options: As in `TensorProduct`.

    Raises:
        ValueError: The numbers of channels differ.

    Example:
        >>> str(ElementwiseTensorProduct("5x1o+5x1e", "10x1e", ["0e", "0o"]).irreps_out)
        '5x0o+5x0e'
    """

    def __init__(
        self,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        filter_ir_out: Iterable[Irrep | str] | None = None,
        irrep_normalization: IrrepNormalization | None = None,
        path_normalization: PathNormalization | None = None,
        **options: Unpack[TensorProductOptions],
    ) -> None:
        in1, in2 = parse_irreps(irreps_in1).simplify(), parse_irreps(irreps_in2).simplify()
        if in1.num_irreps != in2.num_irreps:
            raise ValueError(
                "irreps_in1 and irreps_in2 must have as many channels, got "
                f"'{in1}' ({in1.num_irreps}) and '{in2}' ({in2.num_irreps})"
            )
        in1, in2 = cut_to_common_blocks(in1, in2)
        wanted = _parse_filter(filter_ir_out)
        blocks: list[tuple[int, Irrep]] = []
        instructions: list[Instruction] = []
        for index, ((mul, ir1), (_, ir2)) in enumerate(zip(in1, in2, strict=True)):
            for ir_out in ir1 * ir2:
                if wanted is None or ir_out in wanted:
                    instructions.append((index, index, len(blocks), "uuu", False))
                    blocks.append((mul, ir_out))
        normalization = irrep_normalization, path_normalization
        super().__init__(in1, in2, Irreps(blocks), instructions, *normalization, **options)


def _sort_result(
    blocks: list[tuple[int, Irrep]], instructions: list[Instruction]
) -> tuple[Irreps, list[Instruction]]:
    """The result's blocks in e3nn's order of irreps (stable), instructions in the order given."""
    out, position, _ = Irreps(blocks).sort()
    return out, [
        (i_in1, i_in2, position[i_out], mode, has_weight)
        for i_in1, i_in2, i_out, mode, has_weight in instructions
    ]


def _parse_filter(filter_ir_out: Iterable[Irrep | str] | None) -> list[Irrep] | None:
    return None if filter_ir_out is None else [Irrep(ir) for ir in filter_ir_out]


def cut_to_common_blocks(in1: Irreps, in2: Irreps) -> tuple[Irreps, Irreps]:
    """Splits blocks so that both irreps have the same multiplicities."""
    left, right = [(mul, ir) for mul, ir in in1], [(mul, ir) for mul, ir in in2]
    blocks1, blocks2 = [], []
    while left and right:
        (mul1, ir1), (mul2, ir2) = left.pop(0), right.pop(0)
        mul = min(mul1, mul2)
        blocks1.append((mul, ir1))
        blocks2.append((mul, ir2))
        if mul1 > mul:
            left.insert(0, (mul1 - mul, ir1))
        if mul2 > mul:
            right.insert(0, (mul2 - mul, ir2))
    return Irreps(blocks1), Irreps(blocks2)
