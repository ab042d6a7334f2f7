"""Matrix products: blocks are (2j+1) x (2j+1) matrices, and matrices are multiplied.

A matrix holds every degree from 0 to 2j, so one product computes every path among the blocks: those
of even l1 + l2 + l3 by the anticommutator (X Y + Y X) / 2, those of odd sum by the commutator
(X Y - Y X) / 2, all by X Y. Which of the three runs follows from the instructions. With natural
parities, "0e+1o+2e", O(3) has only the paths of even sum and takes the anticommutator; the plain
product is for irreps that have the odd paths, too, such as the parts of a tensor, "0e+1e+2e".

The method is TensorNet's (arXiv 2306.06482) and e3x's FusedTensor (arXiv 2401.07595).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from eqtp.backend import Backend
from eqtp.compiling import constant_property
from eqtp.graph import Graph
from eqtp.kernels.matrix import Kind, matrix_product
from eqtp.kernels.matrix import op as matrix_op
from eqtp.layout import Layout
from eqtp.methods import Method, get_method
from eqtp.nn.explanation import Explanation, flops_per_row
from eqtp.problem import TensorProductProblem

from .cg import ClebschGordan
from .sector_products import multiply_sectors
from .separable import SeparableWeights
from .sphere_functions import Function, Sector, fits, function_of, sectors_of

__all__ = ["MatrixProduct"]

Triple = tuple[int, int, int]

_KINDS: dict[bool | None, Kind] = {None: "product", True: "commutator", False: "anticommutator"}
"""How matrices are multiplied, by `Sector.odd`."""


@dataclass(frozen=True)
class MatrixProduct:
    """`method="matrix"`; see `Evaluator` for the attributes and methods.

    Attributes:
        weights: The separable weights and the scales; they hold the problem and the method.
        j: The matrices are (2j+1) x (2j+1).
        backend: What the caller asked for.
        layout: Memory order of x1, x2 and the result.
    """

    weights: SeparableWeights
    j: int
    backend: Backend
    layout: Layout
    _direct: ClebschGordan = field(init=False, repr=False, compare=False)
    _sectors: tuple[Sector, ...] = field(init=False, repr=False, compare=False)
    _halved: SeparableWeights = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Not when first called: that may be inside of `torch.compile`, which cannot follow it.
        direct = ClebschGordan(self.weights.cg_problem, self.backend, self.layout)
        object.__setattr__(self, "_direct", direct)
        object.__setattr__(self, "_sectors", self._fewest() if self.why_direct is None else ())
        halves = tuple(scale / 2 for scale in self.weights.scales)
        object.__setattr__(self, "_halved", replace(self.weights, scales=halves))

    @classmethod
    def of(cls, problem: TensorProductProblem, backend: Backend, layout: Layout) -> MatrixProduct:
        """The product, with the smallest matrices that hold its degrees.

        Raises:
            ValueError: See `SeparableWeights.of`: some 6j symbols vanish by accident, and their
                paths are none of the method's.
        """
        sides = problem.irreps_in1, problem.irreps_in2, problem.irreps_out
        highest = max((ir.l for side in sides for _, ir in side), default=0)
        weights = SeparableWeights.of(problem, get_method("matrix", highest))
        return cls(weights, max(1, -(-highest // 2)), backend, layout)

    @property
    def problem(self) -> TensorProductProblem:
        return self.weights.problem

    @property
    def method(self) -> Method:
        return self.weights.method

    @property
    def dim2(self) -> int:
        return self.problem.dims[1]

    @property
    def weight_numel(self) -> int:
        return self.weights.numel

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """How matrices are multiplied, product by product."""
        return tuple(_KINDS[sector.odd] for sector in self._sectors)

    @constant_property
    def why_direct(self) -> str | None:
        """Why products of matrices do not compute just these paths; None where they do."""
        modes = {path.mode for path in self.problem.paths}
        if len(modes) != 1:
            return f"products of matrices need instructions of one mode, got {sorted(modes)}"
        missing = min((self._missing(natural) for natural in (True, False)), key=len)
        if not missing:
            return None
        named = ", ".join(map(str, missing[:4]))
        return (
            "a product of matrices computes every path of even sum or every one of odd sum among "
            f"the blocks, but these {len(missing)} are not among the instructions, or are there "
            f"twice: {named}{', ...' if len(missing) > 4 else ''}"
        )

    def _missing(self, natural: bool) -> list[Triple]:
        """Triples of blocks that the products couple and the instructions do not, just once."""
        given = [(path.i_in1, path.i_in2, path.i_out) for path in self.problem.paths]
        wanted = {
            triple
            for sector in sectors_of(self.problem, natural=natural)
            for triple in self._coupled(sector)
        }
        twice = [triple for triple in sorted(set(given)) if given.count(triple) > 1]
        return [*twice, *sorted(wanted - set(given))]

    def _joined(self, sectors: Sequence[Sector]) -> tuple[Sector, ...]:
        """One plain product in place of an anticommutator and a commutator, where it can be."""
        given = {(path.i_in1, path.i_in2, path.i_out) for path in self.problem.paths}
        even = [sector for sector in sectors if not sector.odd]
        products: list[Sector] = []
        for sector in (sector for sector in sectors if sector.odd):
            for other in even:
                both = replace(other, result=_union(sector.result, other.result), odd=None)
                same = sector.first == other.first and sector.second == other.second
                if same and given.issuperset(self._coupled(both)):
                    even.remove(other)
                    products.append(both)
                    break
            else:
                products.append(sector)
        return (*products, *even)

    def _coupled(self, sector: Sector) -> list[Triple]:
        sides = [sector.first, sector.second, sector.result]
        triples = itertools.product(*(itertools.chain(*side.blocks) for side in sides))
        found = []
        for a, b, c in triples:
            blocks = [side.irreps[i] for side, i in zip(sides, (a, b, c), strict=True)]
            degrees = [ir.l for _, ir in blocks]
            even_or_odd = sector.odd in (None, sum(degrees) % 2 == 1)
            has_path = even_or_odd and self.method.has_path(*degrees)
            if has_path and fits(sector.mode, *(mul for mul, _ in blocks)):
                found.append((a, b, c))
        return found

    def _fewest(self) -> tuple[Sector, ...]:
        """The fewest products of matrices that compute the paths."""
        groupings = [
            self._joined(sectors_of(self.problem, natural=natural))
            for natural in (True, False)
            if not self._missing(natural)
        ]
        return min(groupings, key=len)

    @constant_property
    def _halves_last(self) -> bool:
        """Whether every product is to be halved, so that the result's constants can do it."""
        return all(sector.odd is not None for sector in self._sectors)

    def __call__(
        self,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor | None,
        *,
        graph: Graph | None,
        radial: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        x1, x2, weight = self.weights.operands(x1, x2, weight, graph, radial)
        if self.why_direct is not None:
            paths = None if weight is None else self.weights.path_weights(weight)
            return self._direct(x1, x2, paths, graph=graph, radial=None)
        weights = self._halved if self._halves_last else self.weights
        return multiply_sectors(
            weights, self._sectors, self._multiply, x1, x2, weight, graph, self.layout
        )

    def _multiply(self, first: Tensor, second: Tensor, sector: Sector) -> Tensor:
        """Parts of the product's degrees, [rows, dim, channels]."""
        channels = max(first.shape[2], second.shape[2])
        left = self._all_degrees(first, sector.first, channels)
        right = self._all_degrees(second, sector.second, channels)
        out = matrix_product(left, right, _KINDS[sector.odd], j=self.j, backend=self.backend)
        parts = out.view(len(out), (2 * self.j + 1) ** 2, channels)
        if sector.result.degrees != tuple(range(2 * self.j + 1)):
            columns = [parts[:, l**2 : (l + 1) ** 2] for l in sector.result.degrees]
            parts = torch.cat(columns, dim=1)
        return parts if sector.odd is None or self._halves_last else parts / 2

    def _all_degrees(self, x: Tensor, function: Function, channels: int) -> Tensor:
        """Nine (or (2j+1)^2) blocks of channels, zero where there is no part of the degree."""
        degrees = function.degrees
        x = x.expand(-1, -1, channels)
        if degrees != tuple(range(2 * self.j + 1)):
            pieces = dict(zip(degrees, x.split([2 * l + 1 for l in degrees], dim=1), strict=True))
            x = torch.cat(
                [
                    pieces[l] if l in pieces else x.new_zeros(len(x), 2 * l + 1, channels)
                    for l in range(2 * self.j + 1)
                ],
                dim=1,
            )
        return x.reshape(len(x), x.shape[1] * channels)

    def effective_path_weights(self, weight: Tensor) -> Tensor:
        return self.weights.effective_path_weights(weight)

    def prune(self, keep: Sequence[int]) -> MatrixProduct:
        return replace(self, weights=self.weights.prune(keep))

    def prune_weight(self, weight: Tensor, keep: Sequence[int]) -> Tensor:
        return weight

    def family(self, device: str) -> str:
        return "matrix" if self.why_direct is None else self._direct.family(device)

    def explain(self, title: str, like: Tensor | None) -> str:
        explanation = Explanation.of(self, title, like)
        if self.why_direct is not None:
            why = f"  path by path: {self.why_direct}"
            return explanation.text(why, *self._direct.explain_kernels(explanation))
        chosen = explanation.resolve(
            "matrix",
            matrix_op.IMPLEMENTED,
            lambda name: matrix_op.why_not(name, explanation.dtype, self.j),
        )
        side = 2 * self.j + 1
        lines = [
            f"  kernel    matrix: {kind} of degrees {sector.first.degrees} x "
            f"{sector.second.degrees} -> {sector.result.degrees}"
            for sector, kind in zip(self._sectors, self.kinds, strict=True)
        ]
        products = sum(1 if kind == "product" else 2 for kind in self.kinds)
        return explanation.text(
            *lines,
            f"  backend   {chosen.backend}: {chosen.reason}",
            f"  flops     {2 * products * side**3:,} per row and channel, forward; path by "
            f"path {flops_per_row(self.problem):,} per row",
        )


def _union(one: Function, other: Function) -> Function:
    """The blocks of both."""
    numbers = {*itertools.chain(*one.blocks), *itertools.chain(*other.blocks)}
    return function_of(one.irreps, numbers, one.summed)
