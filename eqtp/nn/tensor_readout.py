"""From equivariant features to Cartesian tensors: dipoles, polarizabilities, elasticity."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from eqtp.irreps import Irreps
from eqtp.layout import Layout, to_layout
from eqtp.problem import parse_irreps
from eqtp.so3.index_symmetry import tensor_symmetry

from .linear import Linear

__all__ = ["TensorReadout"]


class TensorReadout(nn.Module):
    """Cartesian tensors of a given index symmetry, one per node or summed per graph.

        T[i, j, ...] = sum_a y[a] basis[a, i, j, ...],    y = Linear(x)

    The basis is orthonormal and exact, so the tensor obeys its symmetry to rounding whatever the
    weights, T(R x) = R T(x) R^T holds, and an error of y is the same error of T. With weights as
    drawn and features of variance one, every component y[a] has variance one.

        quantity                        formula                   traceless   irreps
        dipole, force                   "i"                                   1o
        magnetic moment (parity=1)      "i"                                   1e
        polarizability, stress          "ij=ji"                               0e+2e
        quadrupole, anisotropy (D)      "ij=ji"                   True        2e
        shielding, Born charges         "ij"                                  0e+1e+2e
        piezoelectricity                "ijk=ikj"                             2x1o+2o+3o
        hyperpolarizability             "ijk=jik=kij"                         1o+3o
        elasticity                      "ijkl=jikl=ijlk=klij"                 2x0e+2x2e+4e

    The decompositions are those of `eqtp.so3.tensor_symmetry`. Source of the use for anisotropy
    tensors: arXiv 2312.01415.

    Args:
        irreps_in: Irreps of the features; they must hold every irrep of the tensor.
        formula: Index symmetry, see `eqtp.so3.tensor_symmetry`.
        traceless: Only the part of which every contraction of two indices vanishes.
        parity: What inversion does to the tensor; (-1)^rank when None.
        layout: Memory order of the features.

    Raises:
        ValueError: The formula cannot be read, or the features lack an irrep of the tensor.

    Example:
        >>> import torch
        >>> polarizability = TensorReadout("16x0e+16x1o+16x2e", "ij=ji")
        >>> features, graph_of_node = torch.randn(5, 144), torch.tensor([0, 0, 0, 1, 1])
        >>> polarizability(features).shape, polarizability(features, graph_of_node).shape
        (torch.Size([5, 3, 3]), torch.Size([2, 3, 3]))
    """

    basis: Tensor

    def __init__(
        self,
        irreps_in: Irreps | str,
        formula: str = "ij=ji",
        traceless: bool = False,
        *,
        parity: int | None = None,
        layout: Layout = "mul_ir",
    ) -> None:
        super().__init__()
        symmetry = tensor_symmetry(formula, traceless, parity=parity)
        self.irreps_in = parse_irreps(irreps_in)
        self.irreps_out: Irreps = symmetry.irreps
        self.formula, self.traceless, self.rank = formula, symmetry.traceless, symmetry.rank
        missing = [str(ir) for _, ir in symmetry.irreps if self.irreps_in.count(ir) == 0]
        if missing:
            raise ValueError(
                f"irreps_in must hold every irrep of a tensor {formula!r}"
                f"{' without trace' if traceless else ''}, which is '{symmetry.irreps}'; "
                f"'{self.irreps_in}' lacks {', '.join(missing)}: add features of that degree and "
                "parity, or choose another symmetry"
            )
        self.linear = Linear(self.irreps_in, symmetry.irreps, layout=layout)
        rows = to_layout(symmetry.matrix.T, symmetry.irreps, "mul_ir", layout).T
        self.register_buffer("basis", rows.contiguous(), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "nodes dim_in"],
        batch: Int[Tensor, " nodes"] | None = None,
        num_graphs: int | None = None,
    ) -> Float[Tensor, "nodes_or_graphs ..."]:
        """The tensors.

        Args:
            x: Features, one row per node.
            batch: Graph of each node; then the tensors of a graph's nodes are summed.
            num_graphs: Number of graphs; the largest of `batch` plus one when None.

        Returns:
            [nodes, 3, ..., 3], or [graphs, 3, ..., 3] with `batch`, as many 3 as the formula has
            indices.

        Raises:
            ValueError: x has not the columns of irreps_in, or batch not one entry per node.
        """
        y = self.linear(x)
        if batch is not None:
            if batch.shape != x.shape[:1]:
                raise ValueError(
                    f"batch must hold the graph of each of {x.shape[0]} nodes, got shape "
                    f"{tuple(batch.shape)}"
                )
            if num_graphs is None:
                num_graphs = int(batch.max()) + 1 if batch.numel() else 0
            y = y.new_zeros(num_graphs, y.shape[1]).index_add(0, batch, y)
        tensor: Tensor = y @ self.basis.to(y.dtype)
        return tensor.reshape(y.shape[0], *(3,) * self.rank)

    def __repr__(self) -> str:
        return (
            f"TensorReadout({self.irreps_in} -> {self.formula!r}"
            f"{' without trace' if self.traceless else ''}: {self.irreps_out})"
        )
