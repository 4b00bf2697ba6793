"""Updates as hooks: the outputs of W + δ and of PEFT, also where half precision would round δ away."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fake_network import examples_of, fake_network
from peft_adapters import peft_model
from random_factors import random_factors
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.update import updated
from tangentlora.tangent.linearize import linearize
from tiny_networks import NETWORKS, tiny_module


def bits(module: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in module.state_dict().items()
    }


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_those_of_the_updated_weights(kind):
    module, tensors, read = NETWORKS[kind]()
    network, inputs = fake_network(module, read), examples_of(tensors)
    targets = network.targets(("query", "value"), "all")
    factors = random_factors(targets, (3, 0, 2, 1))
    before, f0 = bits(module), network.predict(inputs)
    with updated(network, targets, factors):
        expected = network.predict(inputs)
    with attached(module, targets, factors):
        found = network.predict(inputs)
        assert bits(module) == before
    assert (expected - f0).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(network.predict(inputs), f0)


def test_in_float64_they_agree_to_its_rounding():
    module, tensors, read = NETWORKS["gpt2"]()
    network = fake_network(module.double(), read)
    targets = network.targets(("query", "key", "value"), "all")
    factors = random_factors(targets, (3, 2, 1, 1, 2, 3))
    with updated(network, targets, factors):
        expected = network.predict(examples_of(tensors))
    with attached(module, targets, factors):
        found = network.predict(examples_of(tensors))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_bfloat16_weights_do_not_round_the_update_away():
    layer = nn.Sequential(nn.Linear(8, 8, bias=False)).to(torch.bfloat16)
    layer[0].weight.data.fill_(1.0)
    network = fake_network(layer, lambda tensors: layer(tensors["x"]))
    (target,) = network.targets(("0",), "all")
    signs = torch.tensor([1.0, -1.0] * 4)
    factors = {
        "0": (torch.full((8, 1), 0.02), 0.05 * signs[:, None])
    }  # below half a unit in the last place of W
    x = signs[None].to(torch.bfloat16)
    with updated(network, [target], factors):
        assert torch.equal(layer(x), torch.zeros(1, 8, dtype=torch.bfloat16))
    with attached(layer, [target], factors):
        assert torch.equal(layer(x), torch.full((1, 8), 8 * 0.001).to(torch.bfloat16))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
@pytest.mark.parametrize("kind", ["roberta", "gpt2", "llama"])
def test_outputs_are_those_of_pefts_unmerged_layers(kind, dtype, tolerance):
    names = {"roberta": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[kind]
    theirs, tensors, read_theirs = NETWORKS[kind]()
    model = peft_model(theirs.to(dtype), target_modules=names, r=4, lora_alpha=12, fan_in_fan_out=True)
    expected = read_theirs(tensors)
    ours, _, read = NETWORKS[kind]()
    ours.to(dtype)
    pairs = {
        name: (3 * layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach().T)
        for name, layer in model.get_base_model().named_modules()
        if type(layer).__name__ == "Linear" and "lora_A" in dict(layer.named_children())
    }
    targets = fake_network(ours, read).targets(list(pairs), "all")
    f0 = read(tensors)
    with attached(ours, targets, pairs), torch.no_grad():
        found = read(tensors)
    scale = expected.abs().max()
    assert (expected - f0).abs().max() > 0.1 * scale
    assert (found - expected).abs().max() <= tolerance * scale


def test_gradients_pass_through_activations_and_to_factors():
    module, tensors, read = NETWORKS["gpt2"]()
    network = fake_network(module.double(), read)
    targets = network.targets(("query", "value"), "all")
    factors = {
        name: tuple(w.requires_grad_() for w in pair)
        for name, pair in random_factors(targets, (2,) * 4).items()
    }
    with attached(module, targets, factors):
        read(tensors).square().sum().backward()
    first = targets[0].name
    u, v = factors[first]
    step = 1e-6
    direction = torch.randn_like(u)

    def value(t: float) -> float:
        moved = {name: tuple(w.detach() for w in pair) for name, pair in factors.items()}
        moved[first] = (u.detach() + t * direction, v.detach())
        with attached(module, targets, moved):
            return float(read(tensors).square().sum())

    slope = (value(step) - value(-step)) / (2 * step)
    assert slope == pytest.approx(float((u.grad * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_tangent_is_that_of_the_updated_weights(kind):
    module, tensors, read = NETWORKS[kind]()
    network, inputs = fake_network(module, read), examples_of(tensors)
    targets = network.targets(("query", "value"), "all")
    factors = random_factors(targets, (2, 1, 0, 3))
    pretrained = linearize(network, inputs, targets)
    with updated(network, targets, factors):
        expected = linearize(network, inputs, targets)
    with attached(module, targets, factors):
        found = linearize(network, inputs, targets)
    torch.testing.assert_close(found.f0, expected.f0, rtol=1e-5, atol=1e-5)
    for name, block in expected.jacobian.dense().items():
        torch.testing.assert_close(found.jacobian.dense()[name], block, rtol=1e-3, atol=1e-4)
        assert (block - pretrained.jacobian.dense()[name]).abs().max() > 0.01


def test_hooks_leave_after_an_exception_and_bad_factors_set_none():
    module = tiny_module("bert")
    network = fake_network(module, lambda tensors: tensors["none"])
    targets = network.targets()
    factors = random_factors(targets, (1, 1))
    owner = module.get_submodule(targets[0].module)

    def fail() -> None:
        with attached(module, targets, factors):
            assert len(owner._forward_hooks) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not owner._forward_hooks
    u, v = factors[targets[1].name]
    with (
        pytest.raises(InputError, match="got factors of shapes"),
        attached(module, targets, factors | {targets[1].name: (u[:-1], v)}),
    ):
        pass
    elsewhere = replace(targets[0], module="bert.nowhere")
    with (
        pytest.raises(InputError, match="which has none there"),
        attached(module, [elsewhere], {elsewhere.name: factors[elsewhere.name]}),
    ):
        pass
    assert not owner._forward_hooks
