"""eqtp as a kernel backend of MACE 1.0, in the entry point group `mace.kernel_backends.torch`.

MACE 1.0 gives a backend the description of an operation when a model is built and gets a module
back. Its contract is not released; this file follows what was public on 22 November 2026:
github.com/ACEsuit/mace, issues 1560, 1567 and 1568, pull request 1740 ("kernel spec version 1.0"),
and the template of a backend on its author's branch. Where these differ both forms are served:

    linear, fully_connected_tp   raw weights, divided by sqrt(fan in) in the forward pass, or with
                                 that factor folded in; told apart by what
                                 `mace_core.kernels.canonical` defines
    channelwise_tp_conv          features [N, C, dim], paths to equal irreps summed, or, where the
                                 descriptor has `num_features`, features grouped by irrep
                                 [N, C dim], one block of the result per path
    symmetric_contraction        features [N, C, dim] or grouped by irrep [N, C dim]

Weights cross the border in MACE's canonical layout only: linear maps [copy of the result, copy of
the operand], the contraction [element, path, channel], paths by body order and then by irrep of the
result, for the couplings that `mace_core.clebsch_gordan` builds. `mace_core` is imported when MACE
calls, not before. Harmonics and radial basis are left to MACE's reference.
"""

from eqtp.models.acceleration.mace_backend.backend import KernelBackend
from eqtp.models.acceleration.mace_backend.contraction import SymmetricContraction
from eqtp.models.acceleration.mace_backend.convolution import ChannelwiseConvolution, SegmentReduce
from eqtp.models.acceleration.mace_backend.linear_maps import ElementProduct, LinearMap

__all__ = [
    "ChannelwiseConvolution",
    "ElementProduct",
    "KernelBackend",
    "LinearMap",
    "SegmentReduce",
    "SymmetricContraction",
]
