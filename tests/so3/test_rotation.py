from __future__ import annotations

import torch

from eqtp.so3 import rand_matrix

SAMPLES = 100_000
TOLERANCES = {
    "orthogonal": 1e-14,  # entries of at most 1, two roundings each
    "mean": 5 * SAMPLES**-0.5,  # five standard deviations of a mean of variance at most 1
}


def test_matrices_are_proper_rotations() -> None:
    R = rand_matrix(4, 5)
    assert R.shape == (4, 5, 3, 3)
    identity = torch.eye(3).expand_as(R)
    torch.testing.assert_close(R @ R.mT, identity, rtol=0, atol=TOLERANCES["orthogonal"])
    assert (torch.linalg.det(R) > 0).all()
    assert rand_matrix().shape == (3, 3)


def test_distribution_is_uniform() -> None:
    R = rand_matrix(SAMPLES)
    characters = R.diagonal(dim1=-2, dim2=-1).sum(-1)  # of l = 1: mean 0, mean square 1
    assert characters.mean().abs() < TOLERANCES["mean"]
    assert (characters.square().mean() - 1).abs() < 2 * TOLERANCES["mean"]
    assert R.mean(0).abs().max() < TOLERANCES["mean"]


def test_generator_dtype_and_device_are_honoured() -> None:
    first, second = (
        rand_matrix(
            3, dtype=torch.float32, device="cpu", generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
