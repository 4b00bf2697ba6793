"""The real network at W + δ: the right sum, and the pretrained weights back bit for bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fake_network import examples_of, fake_network
from random_factors import random_factors
from tangentlora.errors import InputError
from tangentlora.models.targets import find_targets
from tangentlora.models.update import updated
from tiny_networks import NETWORKS, tiny_module


def tiny(kind: str, dtype: torch.dtype = torch.float64):
    """A tiny network of which only the weights are needed."""
    return fake_network(tiny_module(kind).to(dtype), lambda tensors: tensors["none"])


def bits(module: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for name, tensor in module.state_dict().items()
    }


def test_linear_weights_gain_u_v_transposed():
    network = tiny("bert")
    targets = network.targets(("query", "value"), "all")
    factors = random_factors(targets, (2, 0, 5, 1))
    by_hand = copy.deepcopy(network.module)
    for name, (u, v) in factors.items():
        by_hand.get_submodule(name).weight += torch.einsum("mr,nr->mn", u, v)
    with updated(network, targets, factors):
        changed = network.module.state_dict()
        for name, tensor in by_hand.state_dict().items():
            torch.testing.assert_close(changed[name], tensor, rtol=0, atol=1e-14)


def test_fused_conv1d_gains_each_part_in_its_own_columns():
    network = tiny("gpt2")
    targets = network.targets(("query", "value"), "last")
    factors = random_factors(targets, (2, 3))
    name = "transformer.h.1.attn.c_attn"
    expected = network.module.get_submodule(name).weight.clone()
    for part, columns in (("query", slice(0, 32)), ("value", slice(64, 96))):
        u, v = factors[f"{name}:{part}"]
        expected[:, columns] += torch.einsum("nr,mr->nm", v, u)
    with updated(network, targets, factors):
        torch.testing.assert_close(network.module.get_submodule(name).weight, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_is_rounded_once(dtype):
    network = tiny("bert", dtype)
    (target,) = targets = network.targets(("query",))
    factors = random_factors(targets, (4,))
    u, v = factors[target.name]
    weight = network.module.get_submodule(target.module).weight
    expected = (weight.double() + u @ v.T).to(dtype)
    with updated(network, targets, factors):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_weights_and_outputs_return_bit_for_bit(kind):
    module, tensors, read = NETWORKS[kind]()
    network, inputs = fake_network(module, read), examples_of(tensors)
    before, f0 = bits(module), network.predict(inputs)
    targets = network.targets(("query", "value"), "all")
    with updated(network, targets, random_factors(targets, (3, 1, 2, 4))):
        assert (network.predict(inputs) - f0).abs().max() > 0.1
    assert bits(module) == before
    assert torch.equal(network.predict(inputs), f0)


def test_weights_return_after_an_exception():
    network = tiny("bert", torch.float32)
    before = bits(network.module)
    targets = network.targets()

    def evaluate() -> None:
        with updated(network, targets, random_factors(targets, (3, 3))):
            assert bits(network.module) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert bits(network.module) == before


def test_trainable_parameters_stay_trainable_leaves():
    network = tiny("bert")
    network.module.requires_grad_(True)
    targets = network.targets()
    with updated(network, targets, random_factors(targets, (1, 1))):
        weight = network.module.get_submodule(targets[0].module).weight
        assert weight.is_leaf
        assert weight.requires_grad
        weight.square().sum().backward()
        assert weight.grad is not None


def refuses(network, targets, factors, message: str) -> None:
    before = bits(network.module)
    with pytest.raises(InputError, match=message), updated(network, targets, factors):
        pass
    assert bits(network.module) == before


def test_factors_that_do_not_fit_are_refused():
    network = tiny("bert")
    first, second = targets = network.targets()
    factors = random_factors(targets, (2, 2))
    u, v = factors[second.name]
    shapes = r"got factors of shapes .* expected \(32, r\) and \(32, r\); give u one row per output"
    refuses(network, targets, factors | {second.name: (u[:-1], v)}, shapes)
    refuses(network, targets, factors | {second.name: (u, v[:-1])}, shapes)
    refuses(network, targets, factors | {second.name: (u, v[:, :1])}, shapes)
    refuses(network, targets, factors | {second.name: (u.T, v.T)}, shapes)
    unmatched = "do not match the targets at {}, expected one pair for every target and no other; use"
    refuses(network, targets, {first.name: factors[first.name]}, unmatched.format(second.name))
    refuses(network, targets[:1], factors, unmatched.format(second.name))
    refuses(network, [*targets, first], factors, unmatched.format(first.name))


def test_targets_of_another_network_are_refused():
    network = tiny("bert")
    (target,) = find_targets(network.module, ("query",))
    elsewhere = replace(target, module="bert.encoder.layer.7.attention.self.query")
    refuses(network, [elsewhere], random_factors([elsewhere], (1,)), "which has none there; use the network")
    larger = replace(target, shape=(32, 48))
    refuses(network, [larger], random_factors([larger], (1,)), r"which has \(32, 32\) there; use the network")
