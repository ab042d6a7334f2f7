"""The definition of a radial network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["hidden_features", "radial_network"]


def radial_network(
    basis: Float[Tensor, "edges size_in"], weights: Sequence[Tensor], gain: float
) -> Float[Tensor, "edges size_out"]:
    """Hidden layers, then the last matrix: ``h W / sqrt(fan_in)``."""
    last = weights[-1]
    return hidden_features(basis, weights[:-1], gain) @ last / math.sqrt(last.shape[0])


def hidden_features(
    basis: Float[Tensor, "edges size_in"], weights: Sequence[Tensor], gain: float
) -> Float[Tensor, "edges size_out"]:
    """``h <- gain * silu(h W / sqrt(fan_in))`` for every matrix in turn, from the basis on."""
    features = basis
    for weight in weights:
        features = gain * silu(features @ weight / math.sqrt(weight.shape[0]))
    return features
