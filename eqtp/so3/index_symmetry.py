"""Cartesian tensors with index symmetries, as irreps: which ones, and the orthogonal map.

A formula such as "ij=ji" or "ijkl=jikl=ijlk=klij" says which permutations of the indices leave a
tensor as it is ("ij=ji") or change its sign ("ij=-ji"). The tensors that obey it are a space on
which rotations act, so it is a direct sum of irreps.

Algorithm: chains of couplings with degree 1, ((1 x 1)_J x 1)_L ..., are an orthonormal basis of
all tensors of rank n. A projection on a symmetry commutes with rotations and so acts on the chains
of one degree as a small matrix, the same for every component; Gram-Schmidt of its columns picks
the irreps. Order, signs and choice depend on no rounding and on no other library: labels and
weights stored for this basis keep their meaning.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eqtp.irreps import Irreps
from eqtp.so3.clebsch_gordan import wigner_3j

__all__ = [
    "TensorSymmetry",
    "irreps_to_tensor",
    "tensor_irreps",
    "tensor_symmetry",
    "tensor_to_irreps",
]

MAX_RANK = 6
"""729 chains of 729 numbers; rank 7 would be nine times as many of each."""

# What is left of a projected chain beside the irreps found so far must have this norm to count.
# Measured over 300 random formulas up to rank 5, two fifths of them traceless: above 0.18 or below
# 5e-16, so the choice does not depend on rounding.
_INDEPENDENT = 1e-6


@dataclass(frozen=True, eq=False)
class TensorSymmetry:
    """The tensors of a formula and their irreps.

    Attributes:
        formula: As given, e.g. "ij=ji".
        traceless: Whether every contraction of two indices vanishes.
        rank: Number of indices n.
        irreps: Irreps of the tensors, ascending, blocks in the order of `basis`.
        basis: [irreps.dim, 3, ..., 3], orthonormal; a tensor is T = sum_a x[a] basis[a] with
            x in the layout "mul_ir". Not to be changed.
    """

    formula: str
    traceless: bool
    rank: int
    irreps: Irreps
    basis: Float64[Tensor, "dim ..."]

    @property
    def matrix(self) -> Float64[Tensor, "dim entries"]:
        """The basis with each tensor as one row of 3^rank entries."""
        return self.basis.reshape(self.irreps.dim, 3**self.rank)


def tensor_symmetry(
    formula: str, traceless: bool = False, *, parity: int | None = None
) -> TensorSymmetry:
    """Decomposes the Cartesian tensors of an index symmetry into irreps.

    Args:
        formula: Permutations of the indices and their signs, e.g. "i", "ij=ji", "ij=-ji",
            "ijk=ikj", "ijkl=jikl=ijlk=klij"; every index runs over x, y, z. "" is a scalar.
        traceless: Only the tensors of which every contraction of two indices vanishes: 2e of
            "ij=ji", 3o of the fully symmetric "ijk=jik=kij".
        parity: What inversion does to the tensor; (-1)^rank, a true tensor, when None. +1 with
            formula "i" is an axial vector.

    Returns:
        Irreps and basis, cached.

    Raises:
        ValueError: The formula cannot be read, allows no tensor but zero, or has more than 6
            indices; parity is neither 1 nor -1.

    Example:
        >>> tensor_symmetry("ij=ji").irreps, tensor_symmetry("ijkl=jikl=ijlk=klij").irreps
        (1x0e+1x2e, 2x0e+2x2e+1x4e)
    """
    if parity not in (None, 1, -1):
        raise ValueError(f"parity must be 1, -1 or None for (-1)^rank, got {parity!r}")
    degrees, basis, rank = _decompose(formula, bool(traceless))
    if not degrees:
        raise ValueError(
            f"formula {formula!r} with traceless={traceless} must allow a tensor other than zero; "
            "drop a symmetry or traceless=True"
        )
    sign = parity or (-1) ** rank
    runs = [(len(list(group)), (degree, sign)) for degree, group in itertools.groupby(degrees)]
    return TensorSymmetry(formula, bool(traceless), rank, Irreps(runs), basis)


def tensor_irreps(formula: str, traceless: bool = False, *, parity: int | None = None) -> Irreps:
    """The irreps of the Cartesian tensors of an index symmetry; arguments as `tensor_symmetry`.

    Example:
        >>> tensor_irreps("ijk=ikj")  # piezoelectric
        2x1o+1x2o+1x3o
    """
    return tensor_symmetry(formula, traceless, parity=parity).irreps


def tensor_to_irreps(
    tensor: Float[Tensor, "*batch components"],
    formula: str,
    traceless: bool = False,
    *,
    tolerance: float | None = 1e-3,
) -> Float[Tensor, "*batch dim"]:
    """The irreps of Cartesian tensors, e.g. of labels: the inverse of `irreps_to_tensor`.

    The map is orthogonal: squared differences of irreps are those of tensors.

    Args:
        tensor: [..., 3, ..., 3], as many 3 as the formula has indices.
        formula: Index symmetry, see `tensor_symmetry`.
        traceless: Whether only the traceless part exists.
        tolerance: Largest norm of the part of a tensor that does not obey the symmetry, relative
            to the tensor; None projects without a check (and without waiting for the device).

    Returns:
        Columns as `tensor_irreps(formula, traceless)`, layout "mul_ir".

    Raises:
        ValueError: The shape does not fit, or a tensor does not have the symmetry.

    Example:
        >>> tensor_to_irreps(torch.eye(3), "ij=ji").round(decimals=4)[0]
        tensor(1.7321)
    """
    symmetry = tensor_symmetry(formula, traceless)
    shape = (3,) * symmetry.rank
    if tensor.shape[max(tensor.ndim - symmetry.rank, 0) :] != shape:
        raise ValueError(
            f"tensor must have shape [..., {', '.join(map(str, shape))}] for formula {formula!r}, "
            f"got {tuple(tensor.shape)}"
        )
    batch = tensor.shape[: tensor.ndim - symmetry.rank]
    flat = tensor.reshape(*batch, 3**symmetry.rank)
    basis = symmetry.matrix.to(flat)
    x = flat @ basis.T
    if tolerance is not None and x.numel():
        rest = (flat.detach() - x.detach() @ basis).norm(dim=-1)
        excess = rest - tolerance * flat.detach().norm(dim=-1)
        worst = int(excess.argmax())
        if not float(excess.max()) <= 0:
            raise ValueError(
                f"tensor must obey {formula!r}{' and be traceless' if traceless else ''} to "
                f"{tolerance:g} of its norm, got number {worst} of norm "
                f"{float(flat.detach().norm(dim=-1).flatten()[worst]):.3g}, of which a part of "
                f"norm {float(rest.flatten()[worst]):.2g} does not; choose the formula of the "
                "data, or pass tolerance=None to drop that part"
            )
    return x


def irreps_to_tensor(
    x: Float[Tensor, "*batch dim"], formula: str, traceless: bool = False
) -> Float[Tensor, "*batch components"]:
    """Cartesian tensors from their irreps.

        T[i, j, ...] = sum_a x[a] basis[a, i, j, ...]

    Args:
        x: Columns as `tensor_irreps(formula, traceless)`, layout "mul_ir".
        formula: Index symmetry, see `tensor_symmetry`.
        traceless: Whether only the traceless part exists.

    Raises:
        ValueError: x has another number of columns.

    Example:
        >>> irreps_to_tensor(torch.randn(5, 6), "ij=ji").shape
        torch.Size([5, 3, 3])
    """
    symmetry = tensor_symmetry(formula, traceless)
    if x.shape[-1:] != (symmetry.irreps.dim,):
        raise ValueError(
            f"x must have {symmetry.irreps.dim} columns ('{symmetry.irreps}', formula "
            f"{formula!r}), got shape {tuple(x.shape)}"
        )
    return (x @ symmetry.matrix.to(x)).reshape((*x.shape[:-1], *(3,) * symmetry.rank))


@functools.cache
@torch.inference_mode(False)  # the cached tensor must serve later calls that record gradients
def _decompose(formula: str, traceless: bool) -> tuple[tuple[int, ...], Tensor, int]:
    """Degree of each irrep, ascending; the basis [dim, 3, ..., 3]; the rank."""
    rank, group = _permutations(formula)
    projector = _symmetriser(rank, group)
    degrees: list[int] = []
    rows = []
    for degree, chains in sorted(_chains(rank).items()):
        first = chains[:, 0]  # one component stands for all: the projection commutes with turning
        small = first @ projector @ first.T
        if traceless:
            small = _without_traces(small, first, rank)
        chosen = _independent_columns(small)
        degrees += [degree] * len(chosen)
        rows.append(torch.einsum("rc,ckt->rkt", chosen, chains).flatten(0, 1))
    return tuple(degrees), torch.cat(rows).view(-1, *(3,) * rank), rank


def _permutations(formula: str) -> tuple[int, dict[tuple[int, ...], int]]:
    """The rank, and all permutations that a formula implies, with their signs."""
    terms = [term.strip() for term in formula.split("=")]
    signs = [-1 if term.startswith("-") else 1 for term in terms]
    terms = [term.lstrip("+-") for term in terms]
    letters = terms[0]
    if (letters and not letters.isalpha()) or len(set(letters)) != len(letters):
        raise ValueError(
            "a formula must start with different letters, one per index, e.g. 'ij=ji' or "
            f"'ijk=-jik', got {formula!r}"
        )
    if len(letters) > MAX_RANK:
        raise ValueError(f"a formula must have at most {MAX_RANK} indices, got {formula!r}")
    for term in terms:
        if sorted(term) != sorted(letters):
            raise ValueError(
                f"every side of a formula must hold the indices {letters!r} in some order, with "
                f"a sign or none, got {term!r} in {formula!r}"
            )
    identity = tuple(range(len(letters)))
    generators = [
        (tuple(letters.index(letter) for letter in term), sign * signs[0])
        for term, sign in zip(terms, signs, strict=True)
    ]
    group, elements = {identity: 1}, [identity]
    for element in elements:  # grows while it is run through
        for permutation, sign in generators:
            product = tuple(element[index] for index in permutation)
            if product not in group:
                elements.append(product)
            if group.setdefault(product, sign * group[element]) != sign * group[element]:
                raise ValueError(
                    f"a formula must allow a tensor other than zero, got {formula!r}, which makes "
                    "every tensor its own negative; drop a symmetry or a sign"
                )
    return len(letters), group


def _symmetriser(rank: int, group: dict[tuple[int, ...], int]) -> Tensor:
    """The projection on tensors that obey the symmetry, [3^rank, 3^rank]: the group's mean."""
    entries = torch.arange(3**rank).view((3,) * rank)
    projector = torch.zeros(3**rank, 3**rank, dtype=torch.float64)
    for permutation, sign in group.items():
        moved = entries.permute(permutation).flatten()
        projector[entries.flatten(), moved] += sign / len(group)
    return projector


@functools.cache
def _chains(rank: int) -> dict[int, Tensor]:
    """Degree -> its chains of couplings, [chains, 2 degree + 1, 3^rank]; all orthonormal."""
    chains = [(min(rank, 1), torch.eye(3 ** min(rank, 1), dtype=torch.float64))]
    for _ in range(rank - 1):
        longer = []
        for left, rows in chains:
            for degree in range(abs(left - 1), left + 2):
                coupling = wigner_3j(left, 1, degree) * (2 * degree + 1) ** 0.5
                new = torch.einsum("ijk,ia->kaj", coupling, rows)
                longer.append((degree, new.flatten(1)))
        chains = longer
    degrees = {degree for degree, _ in chains}
    return {l: torch.stack([rows for degree, rows in chains if degree == l]) for l in degrees}


def _without_traces(small: Tensor, first: Tensor, rank: int) -> Tensor:
    """The projection on the part of `small`'s range of which every contraction vanishes."""
    traces = torch.zeros_like(small)
    for i, j in itertools.combinations(range(rank), 2):
        contracted = first.view(-1, *(3,) * rank).diagonal(dim1=i + 1, dim2=j + 1).sum(-1)
        contracted = contracted.reshape(len(first), -1)
        traces += contracted @ contracted.T
    # Both terms are positive: what neither sees is in the range and has no trace.
    outside = torch.eye(len(small), dtype=small.dtype) - small
    values, vectors = torch.linalg.eigh(outside + small @ traces @ small)
    kept = vectors[:, values < _INDEPENDENT]
    projector: Tensor = kept @ kept.T
    return projector


def _independent_columns(projector: Tensor) -> Tensor:
    """Orthonormal rows that span a projection's range: its columns in order, what is new."""
    rows: list[Tensor] = []
    for column in projector.T:
        for _ in range(2):  # the second pass removes what rounding left of the first
            for row in rows:
                column = column - (column @ row) * row
        if column.norm() > _INDEPENDENT:
            rows.append(column / column.norm())
    return torch.stack(rows) if rows else projector[:0]
