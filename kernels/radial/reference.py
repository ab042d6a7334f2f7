"""The definition of a radial network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["Activation", "radial_network"]


class Activation(NamedTuple):
    """``gain * silu``, after every layer or after all but the last.

    Attributes:
        gain: The factor.
        on_last: Whether the last layer has it, too.
    """

    gain: float
    on_last: bool = False


def radial_network(
    basis: Float[Tensor, "edges size_in"],
    weights: Sequence[Tensor],
    activation: Activation,
    biases: Sequence[Tensor] = (),
) -> Float[Tensor, "edges size_out"]:
    """``h <- gain * silu(h W / sqrt(fan_in) + b)`` for every matrix in turn, from the basis on."""
    features = basis
    for layer, weight in enumerate(weights):
        features = features @ weight / math.sqrt(weight.shape[0])
        if biases:
            features = features + biases[layer]
        if layer < len(weights) - 1 or activation.on_last:
            features = activation.gain * silu(features)
    return features
