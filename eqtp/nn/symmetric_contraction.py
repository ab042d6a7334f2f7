"""The symmetric contraction of MACE: equivariant polynomials of node features."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from eqtp.backend import Backend, check_backend
from eqtp.gaunt_contraction_coupling import gaunt_couplings, independent_weights
from eqtp.gaunt_contraction_problem import GauntContractionProblem
from eqtp.irreps import Irreps
from eqtp.kernels.gaunt_contraction import gaunt_contraction
from eqtp.kernels.symmetric_contraction import symmetric_contraction
from eqtp.layout import Layout, check_layout
from eqtp.so3.symmetric_coupling import (
    SymmetricCoupling,
    nested_coupling,
    project_coupling,
)
from eqtp.symmetric_problem import SymmetricContractionProblem

__all__ = ["SymmetricContraction"]

Basis = Literal["independent", "mace"]
ContractionMethod = Literal["cg", "gaunt", "gaunt_iterated"]


class SymmetricContraction(nn.Module):
    """Equivariant polynomials of every node's features, with weights for every element.

    out[n, c, M] = sum_nu sum_k W_nu[element(n), k, c] sum_i U_nu[M, i1 ... i_nu, k] x[n, c, i1] ...
    x[n, c, i_nu] for every block of irreps_out, with nu = 1 ... correlation. Channels do not mix.
    Source: Batatia et al., NeurIPS 2022, arXiv:2206.07697, equations 10 and 11.

    Method "gaunt" takes x for a function f on the sphere and weighs the parts of its powers,
    out_L = sum_nu w_nu,L n_nu,L P_L(f^nu) with weights u_l of the parts of f; "gaunt_iterated"
    projects and weighs after every product. Both are polynomials of the same kind with fewer
    independent weights; `eqtp.gaunt_contraction_problem` has the formulas and what each can
    represent: of 8, 12 and 14 couplings of degree 3 (lmax 3, results 0e, 1o, 2e) "gaunt" spans 8, 9
    and 9, "gaunt_iterated" all. Source: Luo et al., ICLR 2024, arXiv:2401.10216.

    Args:
        irreps_in: Irreps of x, the same multiplicity C in every block.
        irreps_out: Irreps of the result, multiplicity C in every block.
        correlation: Highest degree of the polynomials, at least 1.
        num_elements: Number of elements, each with weights of its own.
        method: "cg" (Clebsch-Gordan, a weight for every coupling), "gaunt" or "gaunt_iterated";
            the latter two need irreps of natural parity.
        basis: Meaning of the weights. "independent": one weight per symmetric coupling, the
            orthonormal basis of `eqtp.so3.symmetric_coupling`. "mace": one per coupling of
            mace-torch, a larger and redundant set; the same functions, other training dynamics.
            Of method "cg" only.
        backend: Implementation, see `eqtp.backend`.
        layout: Memory order of x and of the result.

    Attributes:
        weights: One parameter [num_elements, num_paths, C] for every block of irreps_out and,
            inside a block, every degree; drawn from a normal distribution of width 1 / num_paths.
            Of the Gaunt methods one parameter [num_elements, num_weights, C] in the order of
            `gaunt`: u and v are 1, w is drawn from a normal distribution of width 0.1.
        gaunt: The Gaunt product; None for method "cg".
        projection: Only for basis "mace": [paths of mace, independent paths], block-diagonal.

    Raises:
        ValueError: An argument is not among its choices, multiplicities differ, or correlation or
            num_elements is below 1; a Gaunt method got an irrep of other than natural parity.

    Example:
        >>> product = SymmetricContraction("8x0e+8x1o+8x2e", "8x0e+8x1o", 3, num_elements=2)
        >>> product(torch.randn(5, 72), torch.tensor([0, 1, 1, 0, 1])).shape
        torch.Size([5, 32])
    """

    projection: Tensor

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_out: Irreps | str,
        correlation: int,
        num_elements: int,
        *,
        method: ContractionMethod = "cg",
        basis: Basis = "independent",
        backend: Backend = "auto",
        layout: Layout = "mul_ir",
    ) -> None:
        super().__init__()
        if method not in get_args(ContractionMethod):
            raise ValueError(f"method must be one of {get_args(ContractionMethod)}, got {method!r}")
        if basis not in get_args(Basis):
            raise ValueError(f"basis must be one of {get_args(Basis)}, got {basis!r}")
        if method != "cg" and basis != "independent":
            raise ValueError(f"basis={basis!r} needs method='cg', got method={method!r}")
        if num_elements < 1:
            raise ValueError(f"num_elements must be at least 1, got {num_elements}")
        check_layout(layout)
        check_backend(backend)
        self.problem = SymmetricContractionProblem.from_irreps(irreps_in, irreps_out, correlation)
        self.num_elements = num_elements
        self.method = method
        self.basis = basis
        self.gaunt: GauntContractionProblem | None = None
        self.backend: Backend = backend
        self.layout: Layout = layout
        if method == "cg":
            self._make_coupling_weights()
        else:
            self.gaunt = GauntContractionProblem.from_irreps(
                irreps_in, irreps_out, correlation, iterated=method == "gaunt_iterated"
            )
            self.weights = nn.ParameterList([_initial_weights(self.gaunt, num_elements)])

    def _make_coupling_weights(self) -> None:
        """The parameters of method "cg", and the projection of basis "mace"."""
        num_paths = [coupling.num_paths for _, coupling in self.problem.couplings()]
        if self.basis == "mace":
            projections = [_mace_projection(c) for _, c in self.problem.couplings()]
            num_paths = [len(projection) for projection in projections]
            projection = torch.block_diag(*projections)
            self.register_buffer("projection", projection)
        channels = self.problem.num_channels
        self.weights = nn.ParameterList(
            torch.randn(self.num_elements, paths, channels) / max(1, paths) for paths in num_paths
        )

    @property
    def irreps_in(self) -> Irreps:
        """Irreps of x."""
        return self.problem.irreps_in

    @property
    def irreps_out(self) -> Irreps:
        """Irreps of the result."""
        return self.problem.irreps_out

    @property
    def correlation(self) -> int:
        """Highest degree of the polynomials."""
        return self.problem.correlation

    def weight(self, block: int, degree: int) -> nn.Parameter:
        """The weights [num_elements, num_paths, C] of one block of irreps_out and one degree.

        Raises:
            ValueError: There is no such block or degree, or the method is not "cg".
        """
        weight: nn.Parameter = self.weights[self._coupling_index(block, degree)]
        return weight

    def independent_weights(self) -> Float[Tensor, "num_elements num_paths num_channels"]:
        """All weights for the independent basis, whatever basis the parameters belong to.

        Those of a Gaunt method are polynomials of its parameters: with them method "cg" computes
        the same.
        """
        if self.gaunt is not None:
            return independent_weights(self.weights[0], self.gaunt)
        weights = torch.cat([*self.weights], dim=1)
        if self.basis == "mace":
            weights = self.projection.to(weights.dtype).T @ weights
        return weights

    def num_couplings(self, block: int, degree: int) -> tuple[int, int]:
        """How many symmetric couplings of one block and degree the weights reach, and of how many.

        The first number is the dimension of what the weights of the method span together; with
        "cg" it is all, and every coupling then has a weight of its own.

        Raises:
            ValueError: There is no such block or degree.

        Example:
            >>> irreps = "1x0e+1x1o+1x2e+1x3o"
            >>> SymmetricContraction(irreps, "1x1o", 3, 1, method="gaunt").num_couplings(0, 3)
            (9, 12)
        """
        index = self._index(block, degree)
        if self.gaunt is None:
            paths = [coupling.num_paths for _, coupling in self.problem.couplings()][index]
            return paths, paths
        _, projection = gaunt_couplings(self.gaunt, self.gaunt.degrees_out[block], degree)
        # Nonzero singular values are above 0.1, the others below 1e-14 (lmax <= 4, degree <= 4).
        return int(torch.linalg.matrix_rank(projection, rtol=1e-9)), projection.shape[1]

    @torch.no_grad()
    def set_coupling(
        self,
        block: int,
        degree: int,
        u: Float[Tensor, "*shape num_paths"],
        weight: Float[Tensor, "num_elements num_paths num_channels"],
    ) -> None:
        """Takes over the coupling tensors and weights of one degree from a mace-torch model.

        mace-torch keeps the tensors as buffers U_matrix_{degree}; their signs depend on the e3nn
        that the model was made with. With basis "mace" the weights are copied and the tensors
        change their meaning; with basis "independent" the weights of the same function are set.

        Args:
            block: Block of irreps_out.
            degree: Degree of the coupling.
            u: U[M, i1 ... i_degree, k], without M for a scalar block.
            weight: Weights of the paths k.

        Raises:
            ValueError: There is no such block or degree, a shape does not fit, or u is not a set of
                equivariant couplings.
        """
        index = self._coupling_index(block, degree)
        target = self.weights[index]
        expected = (self.num_elements, u.shape[-1], self.problem.num_channels)
        if weight.shape != expected:
            raise ValueError(f"weight must have shape {expected}, got {tuple(weight.shape)}")
        couplings = [coupling for _, coupling in self.problem.couplings()]
        projection = project_coupling(u, couplings[index])
        if not u.any():  # mace-torch's stand-in where no coupling exists
            projection, weight = projection[:0], weight[:, :0]
        if self.basis == "independent":
            target.copy_(projection.to(weight).T @ weight)
            return
        if weight.shape != target.shape:
            raise ValueError(
                f"u must have the {target.shape[1]} paths of block {block}, degree {degree} for "
                f"basis='mace', got {weight.shape[1]}; use basis='independent'"
            )
        row = sum(other.shape[1] for other in self.weights[:index])
        column = sum(coupling.num_paths for coupling in couplings[:index])
        rows, columns = (
            slice(i, i + n) for i, n in zip((row, column), projection.shape, strict=True)
        )
        self.projection[rows, columns] = projection.to(self.projection)
        target.copy_(weight)

    def forward(
        self, x: Float[Tensor, "num_nodes dim_in"], element: Int64[Tensor, " num_nodes"]
    ) -> Float[Tensor, "num_nodes dim_out"]:
        """Computes the polynomials.

        Args:
            x: Features of the nodes.
            element: Index in [0, num_elements) of every node's element.

        Returns:
            The polynomials, differentiable in x and the weights to any order.

        Raises:
            ValueError: A shape does not fit or an element is out of range.
            TypeError: element is no index, or x has not the dtype of the weights.
        """
        if self.gaunt is not None:
            return gaunt_contraction(
                x, self.weights[0], element, self.gaunt, layout=self.layout, backend=self.backend
            )
        return symmetric_contraction(
            x,
            self.independent_weights(),
            element,
            self.problem,
            layout=self.layout,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The arguments, for print."""
        return (
            f"{self.irreps_in}, {self.irreps_out}, correlation={self.correlation}, "
            f"num_elements={self.num_elements}, method={self.method!r}, basis={self.basis!r}, "
            f"layout={self.layout!r}"
        )

    def _coupling_index(self, block: int, degree: int) -> int:
        if self.gaunt is not None:
            raise ValueError(
                f"single couplings have weights with method='cg', got method={self.method!r}; "
                "independent_weights() has what they amount to"
            )
        return self._index(block, degree)

    def _index(self, block: int, degree: int) -> int:
        blocks = len(self.irreps_out)
        if not (0 <= block < blocks and 1 <= degree <= self.correlation):
            raise ValueError(
                f"block must be in [0, {blocks}) and degree in [1, {self.correlation}], "
                f"got block {block}, degree {degree}"
            )
        return block * self.correlation + degree - 1


def _initial_weights(
    problem: GauntContractionProblem, num_elements: int
) -> Float[Tensor, "num_elements num_weights num_channels"]:
    """Weights u and v of 1, so that f is x and intermediates are as they are; small random w.

    Adam's steps are of one size for all parameters, so that the smaller weights learn the faster;
    those of method "cg" start at 1 / num_paths. MACE 32x0e+32x1o on 3BPA after 2,160 steps, force
    RMSE of the validation frames in meV/Å, for w of width 1, 0.3, 0.1, 0.03: 54.6, 51.6, 50.6,
    50.4; method "cg" 48.6. Random u and products of different functions: no better.
    """
    weights = torch.ones(num_elements, problem.num_weights, problem.num_channels)
    weights[:, problem.power_weights(0).start :].normal_(std=0.1)
    return weights


def _mace_projection(
    coupling: SymmetricCoupling,
) -> Float64[Tensor, "num_mace_paths num_paths"]:
    """Expresses MACE's couplings by the independent ones."""
    nested = nested_coupling(coupling.irreps_in, coupling.irrep_out, coupling.degree)
    return project_coupling(nested, coupling)
