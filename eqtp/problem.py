"""The description of a tensor product: which irreps, which paths, which constants.

Framework-free and immutable; every kernel, method and report reads the same description.

    out[i_out] += coefficient * sum_ij w3j(l1, l2, l3)[i, j, k] * x1[i_in1, u, i] * x2[i_in2, v, j]
                  * weight[path, ...]            with the multiplicities joined as the mode says
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from eqtp.irreps import Irreps
from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = [
    "IrrepNormalization",
    "Mode",
    "Path",
    "PathNormalization",
    "TensorProductProblem",
]

Mode = Literal["uvw", "uvu", "uvv", "uuw", "uuu", "uvuv", "uvu<v", "u<vw"]
IrrepNormalization = Literal["component", "norm", "none"]
PathNormalization = Literal["element", "path", "none"]


@dataclass(frozen=True)
class Path:
    """One path of a product: blocks `i_in1` and `i_in2` into block `i_out`.

    Attributes:
        i_in1: Index of the block in irreps_in1.
        i_in2: Index of the block in irreps_in2.
        i_out: Index of the block in irreps_out.
        mode: How the multiplicities u (x1), v (x2) and w (out) are joined; e3nn's letters.
        has_weight: Whether the path has weights.
        path_weight: The variance the caller asked for, as passed in.
        coefficient: The constant in front, path_weight and both normalisations included.
        weight_shape: Shape of the path's weights, as in e3nn; () for an unweighted path.
        weight_start: Where the path's weights start in the flat weight.
    """

    i_in1: int
    i_in2: int
    i_out: int
    mode: Mode
    has_weight: bool
    path_weight: float
    coefficient: float
    weight_shape: tuple[int, ...]
    weight_start: int

    @property
    def weight_numel(self) -> int:
        """Number of weights of this path."""
        return math.prod(self.weight_shape) if self.has_weight else 0

    @property
    def weight_slice(self) -> slice:
        """Where this path's weights are in the flat weight."""
        return slice(self.weight_start, self.weight_start + self.weight_numel)

    def without_weights(self, mode: Mode, i_out: int) -> Path:
        """The same coupling in another mode, without weights, into another block."""
        free: dict[str, Any] = {"has_weight": False, "weight_shape": (), "weight_start": 0}
        return replace(self, mode=mode, i_out=i_out, **free)


@dataclass(frozen=True)
class TensorProductProblem:
    """Everything that defines a tensor product; equal problems are equal products.

    Attributes:
        irreps_in1: Irreps of x1.
        irreps_in2: Irreps of x2.
        irreps_out: Irreps of the result.
        paths: The paths, in the order of their weights.

    Example:
        >>> problem = TensorProductProblem.from_instructions(
        ...     "8x0e+8x1o", "0e+1o", "8x1o", [(0, 1, 0, "uvu", True), (1, 0, 0, "uvu", True)])
        >>> problem.weight_numel
        16
    """

    irreps_in1: Irreps
    irreps_in2: Irreps
    irreps_out: Irreps
    paths: tuple[Path, ...]

    @classmethod
    def from_instructions(
        cls,
        irreps_in1: Irreps | str,
        irreps_in2: Irreps | str,
        irreps_out: Irreps | str,
        instructions: Iterable[Sequence[Any]],
        *,
        irrep_normalization: IrrepNormalization | None = "component",
        path_normalization: PathNormalization | None = "element",
        in1_var: Sequence[float] | None = None,
        in2_var: Sequence[float] | None = None,
        out_var: Sequence[float] | None = None,
    ) -> TensorProductProblem:
        """Builds a problem from e3nn's instruction tuples.

        Args:
            irreps_in1: Irreps of x1.
            irreps_in2: Irreps of x2.
            irreps_out: Irreps of the result.
            instructions: Tuples (i_in1, i_in2, i_out, mode, has_weight[, path_weight]).
            irrep_normalization: "component" (also None), "norm" or "none", as in e3nn.
            path_normalization: "element" (also None), "path" or "none", as in e3nn.
            in1_var: Variance of each block of x1, 1 by default.
            in2_var: Variance of each block of x2, 1 by default.
            out_var: Wanted variance of each block of the result, 1 by default.

        Raises:
            ValueError: An instruction breaks a rule of its mode, the triangle rule or parity.
        """
        in1, in2, out = parse_irreps(irreps_in1), parse_irreps(irreps_in2), parse_irreps(irreps_out)
        irrep_normalization = irrep_normalization or "component"
        path_normalization = path_normalization or "element"
        _check_choice("irrep_normalization", irrep_normalization, get_args(IrrepNormalization))
        _check_choice("path_normalization", path_normalization, get_args(PathNormalization))
        var1 = _variances("in1_var", in1_var, len(in1))
        var2 = _variances("in2_var", in2_var, len(in2))
        var_out = _variances("out_var", out_var, len(out))

        paths = []
        start = 0
        for number, instruction in enumerate(instructions):
            path = _parse_instruction(number, instruction, in1, in2, out, start)
            start += path.weight_numel
            paths.append(path)

        def variance(path: Path) -> float:
            return var1[path.i_in1] * var2[path.i_in2] * _num_elements(path, in1, in2)

        normalized = []
        for path in paths:
            siblings = [other for other in paths if other.i_out == path.i_out]
            ir1, ir2, ir3 = in1[path.i_in1].ir, in2[path.i_in2].ir, out[path.i_out].ir
            alpha = {"component": ir3.dim, "norm": ir1.dim * ir2.dim, "none": 1}[
                irrep_normalization
            ]
            total = {
                "element": sum(variance(other) for other in siblings),
                "path": variance(path) * len(siblings),
                "none": 1.0,
            }[path_normalization]
            square = alpha * var_out[path.i_out] * path.path_weight / (total if total > 0 else 1.0)
            normalized.append(replace(path, coefficient=math.sqrt(square)))
        return cls(in1, in2, out, tuple(normalized))

    @cached_property
    def text(self) -> str:
        """The problem as a string; `of_text` is the inverse."""
        irreps = [str(i) for i in (self.irreps_in1, self.irreps_in2, self.irreps_out)]
        return json.dumps([irreps, [astuple(path) for path in self.paths]])

    @staticmethod
    @lru_cache(maxsize=1024)
    def of_text(text: str) -> TensorProductProblem:
        """The problem of a `text`; the same object for the same text."""
        irreps, rows = json.loads(text)
        in1, in2, out = (Irreps(i) for i in irreps)
        values: list[list[Any]] = [[*row[:-2], tuple(row[-2]), row[-1]] for row in rows]
        return TensorProductProblem(in1, in2, out, tuple(Path(*row) for row in values))

    def __hash__(self) -> int:
        return hash(self.text)  # Python keeps the hash of a string; that of all paths takes 10 us

    @cached_property
    def weight_numel(self) -> int:
        """Length of the flat weight."""
        return sum(path.weight_numel for path in self.paths)

    @cached_property
    def num_constants(self) -> int:
        """Number of constants that are not zero, path by path."""
        constants = (wigner_3j(*self.degrees(path)).abs() for path in self.paths)
        return sum(int((values > 1e-14).sum()) for values in constants)

    @cached_property
    def dims(self) -> tuple[int, int, int, int]:
        """Columns of x1, x2, the weights and the result."""
        in1, in2, out = self.irreps_in1.dim, self.irreps_in2.dim, self.irreps_out.dim
        return in1, in2, self.weight_numel, out

    @property
    def instructions(self) -> list[tuple[int, int, int, Mode, bool, float]]:
        """The paths as e3nn's tuples, with path_weight as passed in."""
        return [
            (p.i_in1, p.i_in2, p.i_out, p.mode, p.has_weight, p.path_weight) for p in self.paths
        ]

    def degrees(self, path: Path) -> tuple[int, int, int]:
        """The degrees (l1, l2, l3) of a path."""
        return (
            self.irreps_in1[path.i_in1].ir.l,
            self.irreps_in2[path.i_in2].ir.l,
            self.irreps_out[path.i_out].ir.l,
        )

    def multiplicities(self, path: Path) -> tuple[int, int, int]:
        """The multiplicities (mul1, mul2, mul3) of a path's blocks."""
        return (
            self.irreps_in1[path.i_in1].mul,
            self.irreps_in2[path.i_in2].mul,
            self.irreps_out[path.i_out].mul,
        )

    def num_elements(self, path: Path) -> int:
        """Number of products that one element of the result sums over in a path."""
        return _num_elements(path, self.irreps_in1, self.irreps_in2)

    def prune(self, keep: Sequence[int]) -> TensorProductProblem:
        """The product with only the paths `keep`, every constant unchanged.

        Args:
            keep: Indices of the paths that stay, in any order; their order here is kept.

        Raises:
            ValueError: An index is out of range or repeated.
        """
        if len(set(keep)) != len(keep) or any(not 0 <= i < len(self.paths) for i in keep):
            raise ValueError(
                f"keep must list path indices in [0, {len(self.paths)}), each once, "
                f"got {list(keep)}"
            )
        paths = []
        start = 0
        for index in sorted(keep):
            paths.append(replace(self.paths[index], weight_start=start))
            start += self.paths[index].weight_numel
        return replace(self, paths=tuple(paths))

    def compact(self) -> TensorProductProblem:
        """The product without the blocks of the result that no path reaches."""
        reached = sorted({path.i_out for path in self.paths})
        paths = tuple(replace(path, i_out=reached.index(path.i_out)) for path in self.paths)
        out = Irreps([self.irreps_out[block] for block in reached])
        return replace(self, irreps_out=out, paths=paths)


def parse_irreps(irreps: Irreps | str) -> Irreps:
    """Irreps from a string or another version's Irreps, with a readable error."""
    try:
        return Irreps(irreps)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"irreps must look like '16x0e+8x1o' (mul x l parity), got {irreps!r}"
        ) from error


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def _variances(name: str, values: Sequence[float] | None, length: int) -> list[float]:
    if values is None:
        return [1.0] * length
    if len(values) != length:
        raise ValueError(f"{name} must have one value per block ({length}), got {len(values)}")
    return [float(value) for value in values]


def _parse_instruction(
    number: int, instruction: Sequence[Any], in1: Irreps, in2: Irreps, out: Irreps, start: int
) -> Path:
    where = f"instruction {number} {tuple(instruction)!r}"
    if len(instruction) not in (5, 6):
        raise ValueError(
            f"{where} must be (i_in1, i_in2, i_out, mode, has_weight[, path_weight]), "
            f"got {len(instruction)} entries"
        )
    i_in1, i_in2, i_out, mode, has_weight = instruction[:5]
    path_weight = float(instruction[5]) if len(instruction) == 6 else 1.0
    blocks = (("i_in1", i_in1, in1), ("i_in2", i_in2, in2), ("i_out", i_out, out))
    for name, index, irreps in blocks:
        if not 0 <= index < len(irreps):
            raise ValueError(f"{where}: {name} must be in [0, {len(irreps)}) ('{irreps}')")
    if mode not in get_args(Mode):
        raise ValueError(f"{where}: mode must be one of {get_args(Mode)}")
    if path_weight < 0:
        raise ValueError(f"{where}: path_weight is a variance and must not be negative")
    block1, block2, block3 = in1[i_in1], in2[i_in2], out[i_out]
    if block3.ir not in block1.ir * block2.ir:
        raise ValueError(
            f"{where}: {block3.ir} is not in {block1.ir} x {block2.ir} = "
            f"{'+'.join(str(ir) for ir in block1.ir * block2.ir)}"
        )
    shape = _weight_shape(where, mode, bool(has_weight), block1.mul, block2.mul, block3.mul)
    return Path(
        int(i_in1), int(i_in2), int(i_out), mode, bool(has_weight), path_weight, 1.0, shape, start
    )


def _weight_shape(
    where: str, mode: Mode, has_weight: bool, mul1: int, mul2: int, mul3: int
) -> tuple[int, ...]:
    """Checks the multiplicities of a mode and returns the shape of its weights."""
    pairs = mul1 * (mul1 - 1) // 2
    rules: dict[Mode, tuple[bool, str, tuple[int, ...]]] = {
        "uvw": (True, "", (mul1, mul2, mul3)),
        "uvu": (mul1 == mul3, "mul1 = mul_out", (mul1, mul2)),
        "uvv": (mul2 == mul3, "mul2 = mul_out", (mul1, mul2)),
        "uuw": (mul1 == mul2, "mul1 = mul2", (mul1, mul3)),
        "uuu": (mul1 == mul2 == mul3, "mul1 = mul2 = mul_out", (mul1,)),
        "uvuv": (mul1 * mul2 == mul3, "mul1 * mul2 = mul_out", (mul1, mul2)),
        "uvu<v": (
            mul1 == mul2 and pairs == mul3,
            "mul1 = mul2 and mul1 (mul1 - 1) / 2 = mul_out",
            (pairs,),
        ),
        "u<vw": (mul1 == mul2, "mul1 = mul2", (pairs, mul3)),
    }
    holds, rule, shape = rules[mode]
    if not holds:
        raise ValueError(
            f"{where}: mode {mode!r} needs {rule}, got mul1={mul1}, mul2={mul2}, mul_out={mul3}"
        )
    if has_weight:
        return shape
    if mode in ("uvw", "u<vw"):
        raise ValueError(f"{where}: mode {mode!r} mixes multiplicities and must have weights")
    if mode == "uuw" and mul3 != 1:
        raise ValueError(f"{where}: mode 'uuw' without weights needs mul_out=1, got {mul3}")
    return ()


def _num_elements(path: Path, in1: Irreps, in2: Irreps) -> int:
    """Number of products that one output element of a path sums over, as e3nn counts it."""
    mul1, mul2 = in1[path.i_in1].mul, in2[path.i_in2].mul
    counts: dict[Mode, int] = {
        "uvw": mul1 * mul2,
        "uvu": mul2,
        "uvv": mul1,
        "uuw": mul1,
        "uuu": 1,
        "uvuv": 1,
        "uvu<v": 1,
        "u<vw": mul1 * (mul2 - 1) // 2,
    }
    return counts[path.mode]
