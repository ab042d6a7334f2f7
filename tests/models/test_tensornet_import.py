"""TensorNet from torchmd-net's weights: names and shapes, refusals, and torchmd-net itself.

torchmd-net is no dependency; where it is installed (`pip install torchmd-net`), its own plain-torch
path is the reference. Elsewhere a dictionary with its names stands in.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ase.build import molecule
from torch import Tensor

from eqtp.benchmarks.tensornet import torchmd_net
from eqtp.models import TensorNet
from eqtp.models.training.data import from_ase

TOLERANCE = 1e-10  # relative, the bar; 2e-15 measured with torchmd-net 3.1.0
R_MAX = 3.5
CONFIG: dict[str, Any] = {
    "model": "tensornet",
    "embedding_dimension": 4,
    "num_layers": 1,
    "num_rbf": 5,
    "cutoff_upper": R_MAX,
    "activation": "silu",
    "equivariance_invariance_group": "SO(3)",
    "output_model": "Scalar",
    "reduce_op": "add",
}


def state_of_torchmd_net(channels: int = 4, num_rbf: int = 5, max_z: int = 10) -> dict[str, Tensor]:
    """The names and shapes of torchmd-net 3.1's TorchMD_Net, one layer."""
    f, root = channels, "representation_model."

    def linear(name: str, fan_out: int, fan_in: int, bias: bool = True) -> dict[str, Tensor]:
        entries = {f"{name}.weight": torch.randn(fan_out, fan_in)}
        return entries | ({f"{name}.bias": torch.randn(fan_out)} if bias else {})

    def norm(name: str, size: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(size), f"{name}.bias": torch.randn(size)}

    embedding, layer = f"{root}tensor_embedding", f"{root}layers.0"
    state = {
        f"{root}distance_expansion.means": torch.linspace(0.1, 0.9, num_rbf),
        f"{root}distance_expansion.betas": torch.full((num_rbf,), 3.0),
        f"{root}distance.box": torch.empty(0),
        f"{embedding}.emb.weight": torch.randn(max_z, f),
    }
    for k in (1, 2, 3):
        state |= linear(f"{embedding}.distance_proj{k}", f, num_rbf)
        state |= linear(f"{embedding}.linears_tensor.{k - 1}", f, f, bias=False)
    state |= linear(f"{embedding}.emb2", f, 2 * f)
    state |= norm(f"{embedding}.init_norm", f)
    state |= linear(f"{embedding}.linears_scalar.0", 2 * f, f)
    state |= linear(f"{embedding}.linears_scalar.1", 3 * f, 2 * f)
    for k, (a, b) in enumerate([(num_rbf, f), (f, 2 * f), (2 * f, 3 * f)]):
        state |= linear(f"{layer}.linears_scalar.{k}", b, a)
    for k in range(6):
        state |= linear(f"{layer}.linears_tensor.{k}", f, f, bias=False)
    state |= linear(f"{root}linear", f, 3 * f) | norm(f"{root}out_norm", 3 * f)
    state |= linear("output_model.output_network.layers.0", f // 2, f)
    state |= linear("output_model.output_network.layers.2", 1, f // 2)
    return state


def test_every_weight_finds_its_place() -> None:
    state = state_of_torchmd_net()
    model = TensorNet.from_torchmd_net(state, CONFIG)
    assert model.hyperparameters["group"] == "SO(3)"
    assert model.atomic_numbers == list(range(1, 10))
    root = "representation_model."
    own = model.state_dict()
    assert torch.equal(own["radial_basis.betas"], state[f"{root}distance_expansion.betas"])
    embedding = state[f"{root}tensor_embedding.emb.weight"]
    assert torch.equal(own["embedding.elements.weight"], embedding[1:])
    first = state[f"{root}layers.0.linears_tensor.4.weight"]
    assert torch.equal(own["layers.0.mix_after.weight"][1], first.t())
    second = state[f"{root}tensor_embedding.distance_proj3.bias"]
    assert torch.equal(own["embedding.radial.linears.0.bias"][8:], second)
    head = state["output_model.output_network.layers.2.weight"]
    assert torch.equal(own["readout.head.1.weight"], head)


def test_a_lightning_checkpoint_with_a_prior_and_a_scale() -> None:
    state = {f"model.{name}": value for name, value in state_of_torchmd_net().items()}
    table = torch.arange(10.0)[:, None]
    state |= {
        "model.mean": torch.tensor(0.0),
        "model.std": torch.tensor(2.5),
        "model.prior_model.0.atomref.weight": table,
        "model.prior_model.0.initial_atomref": table,
    }
    model = TensorNet.from_torchmd_net(state, CONFIG | {"prior_model": "Atomref"})
    assert model.scale == 2.5
    assert model.hyperparameters["atomic_energies"] == list(range(1, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tensornet2"}, "supports model 'tensornet', got 'tensornet2'"),
        ({"rbf_type": "gauss"}, "supports rbf_type 'expnorm'"),
        ({"activation": "tanh"}, "supports activation 'silu'"),
        ({"cutoff_lower": 1.0}, "supports cutoff_lower 0.0, got 1.0"),
        ({"output_model": "DipoleMoment"}, "supports output_model 'Scalar'"),
        ({"prior_model": "ZBL"}, r"the prior 'Atomref' alone, got \['ZBL'\]"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        TensorNet.from_torchmd_net(state_of_torchmd_net(), CONFIG | changes)


def test_a_shift_per_molecule_is_refused() -> None:
    state = state_of_torchmd_net() | {"mean": torch.tensor(1.5)}
    with pytest.raises(NotImplementedError, match="once per molecule"):
        TensorNet.from_torchmd_net(state, CONFIG)


def test_weights_that_do_not_fit_are_refused() -> None:
    state = state_of_torchmd_net()
    with pytest.raises(ValueError, match="do not fit a TensorNet of this config"):
        TensorNet.from_torchmd_net(state | {"extra": torch.zeros(1)}, CONFIG)
    with pytest.raises(ValueError, match="config must have 'num_rbf'"):
        TensorNet.from_torchmd_net(state, {k: v for k, v in CONFIG.items() if k != "num_rbf"})
    del state["representation_model.layers.0.linears_tensor.2.weight"]
    with pytest.raises(ValueError, match=r"linears_tensor\.2"):
        TensorNet.from_torchmd_net(state, CONFIG)


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("charge", [None, (1.0, -2.0)])
def test_torchmd_net_itself(group: str, charge: tuple[float, float] | None) -> None:
    """Energies, forces and the gradients of a loss on both in every parameter."""
    pytest.importorskip("torchmdnet")
    torch.manual_seed(0)
    changes = {"embedding_dimension": 16, "num_rbf": 8, "equivariance_invariance_group": group}
    theirs, config = torchmd_net(R_MAX, **changes)
    for parameter in theirs.parameters():
        if parameter.ndim == 1:  # zero or small at the start
            torch.nn.init.normal_(parameter, std=0.3)
    ours = TensorNet.from_torchmd_net(theirs.model.state_dict(), config)
    frames = [molecule("CH3CH2OH"), molecule("C6H6")]
    for frame in frames:
        frame.rattle(0.05, seed=1)
    data = from_ase(frames, R_MAX, dtype=torch.float64)
    if charge is not None:
        data.total_charge = torch.tensor(charge, dtype=torch.float64)
    covector = torch.randn(len(data.positions), 3, dtype=torch.float64)

    found = []
    for model in (theirs.train(), ours.train()):
        output = model(data)
        loss = (output["forces"] - covector).square().sum() + output["energy"].sin().sum()
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        found.append((output, dict(zip(named, gradients, strict=True))))
    (expected, to_theirs), (result, to_ours) = found
    for key in ("energy", "forces"):
        assert_close(result[key], expected[key])
    # Gradients have the names and shapes of weights, and go the same way.
    state = theirs.model.state_dict()
    state |= {name.removeprefix("model."): gradient for name, gradient in to_theirs.items()}
    mapped = dict(TensorNet.from_torchmd_net(state, config).named_parameters())
    for name, gradient in to_ours.items():
        assert_close(gradient, mapped[name].detach())


def assert_close(a: Tensor, b: Tensor) -> None:
    scale = float(b.detach().abs().max())
    torch.testing.assert_close(a, b, rtol=0.0, atol=TOLERANCE * scale)
