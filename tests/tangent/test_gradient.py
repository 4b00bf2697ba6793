"""The gradient of the real network's loss against autograd's own gradient of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fake_network import examples_of, fake_network, relative_error
from pairs import (
    TARGETS,
    B,
    D,
    Pair,
    infinite,
    inputs,
    mix,
    network_of,
    never_called,
    not_on_the_way,
    of_infinite_slope,
    on_a_table,
)
from random_factors import random_factors
from tangentlora.blocks import Blocks
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.network import Network
from tangentlora.models.targets import Target
from tangentlora.models.update import updated
from tangentlora.problem.losses import CrossEntropy, Logistic, Loss, Squared
from tangentlora.tangent.gradient import WeightGradients, weight_gradients
from tiny_networks import KINDS, LENGTHS, NETWORKS

Y = torch.tensor([2, 0, 1])


def tiny(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Network, dict[str, Tensor]]:
    module, tensors, read = NETWORKS[kind]()
    module.to(dtype)
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return fake_network(module, read), cast


def reference(
    network: Network, tensors: Mapping[str, Tensor], y: Tensor, targets: Sequence[Target], loss: Loss
) -> Blocks:
    """Return the gradients of the mean loss by autograd, with respect to the weights themselves."""
    stored = {t.module: network.module.get_submodule(t.module).get_parameter("weight") for t in targets}
    for weight in stored.values():
        weight.requires_grad_(True)
    value = loss.value(network.reader.outputs(tensors), y).mean()
    grads = dict(zip(stored, torch.autograd.grad(value, list(stored.values())), strict=True))
    for weight in stored.values():
        weight.requires_grad_(False)
    blocks = {}
    for target in targets:
        block = grads[target.module].T if target.transposed else grads[target.module]
        blocks[target.name] = block if target.rows is None else block[slice(*target.rows)]
    return blocks


def agree(found: WeightGradients, expected: Blocks, tolerance: float = 1e-5) -> None:
    assert list(found.gradients) == list(expected)
    for name, block in expected.items():
        assert found.gradients[name].shape == block.shape
        assert relative_error(found.gradients[name], block) < tolerance, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [32, 1])
def test_every_architecture_agrees_with_autograd(kind: str, batch_size: int) -> None:
    network, tensors = tiny(kind)
    targets = network.targets(("query", "value", "output"), "all")
    loss = CrossEntropy()
    found = weight_gradients(network, examples_of(tensors), Y, targets, loss, batch_size=batch_size)
    agree(found, reference(network, tensors, Y, targets, loss))
    outputs = network.reader.outputs(tensors)
    torch.testing.assert_close(found.outputs, outputs)
    assert found.loss == pytest.approx(float(loss.value(outputs, Y).mean()), rel=1e-5)
    assert all(M.dtype == torch.float32 and M.device.type == "cpu" for M in found.gradients.values())


@pytest.mark.parametrize("modules", [("c_attn",), ("query", "key", "value"), ("value", "output")])
def test_fused_attention_agrees_whole_and_by_ranges_of_rows(modules: Sequence[str]) -> None:
    network, tensors = tiny("gpt2")
    targets = network.targets(modules, "all")
    found = weight_gradients(network, examples_of(tensors), Y, targets, CrossEntropy(), batch_size=2)
    agree(found, reference(network, tensors, Y, targets, CrossEntropy()))


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "vit", "llama"])
def test_coarse_types_agree_loosely_and_are_summed_in_float32(kind: str) -> None:
    network, tensors = tiny(kind)
    targets = network.targets(layers="all")
    expected = reference(network, tensors, Y, targets, CrossEntropy())
    coarse, cast = tiny(kind, torch.bfloat16)
    found = weight_gradients(coarse, examples_of(cast), Y, targets, CrossEntropy())
    assert all(M.dtype == found.outputs.dtype == torch.float32 for M in found.gradients.values())
    # Each bfloat16 number is good to 2⁻⁸; a wrong gradient is off by O(1).
    stacked = [torch.cat([b.flatten() for b in blocks.values()]) for blocks in (found.gradients, expected)]
    assert relative_error(*stacked) < 0.15


def test_many_small_terms_survive_in_float16() -> None:
    """1/N is below float16's least step from 0 to a loss of 1e-8: it must not be in the backward pass."""
    layer = nn.Linear(2, 1, bias=False).half()
    network = fake_network(layer, lambda tensors: layer(tensors["x"]))
    n = 2**14
    x, y = torch.full((n, 2), 2.0**-6).half(), torch.full((n, 1), -(2.0**-10))
    target = Target("", "", (1, 2))
    nn.init.zeros_(layer.weight)
    found = weight_gradients(network, examples_of({"x": x}), y, [target], Squared(), batch_size=2**13)
    torch.testing.assert_close(found.gradients[""], torch.full((1, 2), 2.0**-16), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("kind", ["roberta", "gpt2", "vit", "llama"])
def test_an_update_beside_the_weight_has_the_gradient_of_one_inside_it(kind: str) -> None:
    network, tensors = tiny(kind)
    targets = network.targets(layers="all")
    factors = random_factors(targets, [2] * len(targets))
    with updated(network, targets, factors):
        expected = reference(network, tensors, Y, targets, CrossEntropy())
        agree(weight_gradients(network, examples_of(tensors), Y, targets, CrossEntropy()), expected)
    pretrained = reference(network, tensors, Y, targets, CrossEntropy())
    with attached(network.module, targets, factors):
        found = weight_gradients(network, examples_of(tensors), Y, targets, CrossEntropy())
    agree(found, expected)
    name = targets[0].name
    assert relative_error(found.gradients[name], pretrained[name]) > 0.1


@pytest.mark.parametrize("trainable", [True, False])
def test_live_lora_layers_are_seen_as_part_of_the_weight(trainable: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    network, tensors = tiny("bert")
    targets = network.targets(layers="all")
    factors = random_factors(targets, [2] * len(targets))
    with updated(network, targets, factors):
        expected = reference(network, tensors, Y, targets, CrossEntropy())
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[target.module for target in targets])
    inject_adapter_in_model(config, network.module)
    for target in targets:
        layer: Any = network.module.get_submodule(target.module)
        u, v = (w.float() for w in factors[target.name])
        layer.lora_B["default"].weight.data.copy_(u)
        layer.lora_A["default"].weight.data.copy_(v.T)
    network.module.eval().requires_grad_(trainable)
    agree(weight_gradients(network, examples_of(tensors), Y, targets, CrossEntropy()), expected)
    assert all(p.grad is None and p.requires_grad == trainable for p in network.module.parameters())


def twice(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(input=mix(pair.a(mix(pair.a(x)).relu_()))).mul_(2))


def off_the_way(pair: Pair, x: Tensor) -> Tensor:
    pair.b(x)
    return mix(pair.a(x))


@pytest.mark.parametrize("forward", [twice, on_a_table])
@pytest.mark.parametrize("chunk", [4096, 5])
def test_calls_add_up_whatever_rows_they_are_on(
    forward: Callable[[Pair, Tensor], Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentlora.tangent.gradient._CHUNK", chunk)
    network, tensors, y = network_of(forward), inputs(), torch.tensor([1, 0, 1, 1])
    found = weight_gradients(network, examples_of(tensors), y, TARGETS, CrossEntropy(), batch_size=3)
    expected = reference(network, tensors, y, TARGETS, CrossEntropy())
    agree(found, expected, 1e-12)
    assert found.gradients["a"].dtype == torch.float64


@pytest.mark.parametrize(
    ("loss", "k", "y"),
    [
        (Squared(), 2, torch.randn(B, 2, generator=torch.Generator().manual_seed(0)).double()),
        (Logistic(), 1, torch.tensor([1, -1, -1, 1])),
    ],
)
def test_other_losses_agree_too(loss: Loss, k: int, y: Tensor) -> None:
    network, tensors = network_of(twice, k), inputs()
    found = weight_gradients(network, examples_of(tensors), y, TARGETS, loss, batch_size=3)
    agree(found, reference(network, tensors, y, TARGETS, loss), 1e-12)


def test_labels_follow_their_examples_when_lengths_decide_the_batches() -> None:
    network, tensors = tiny("bert")
    padded = examples_of(tensors)
    ragged = [{n: t[:length] for n, t in e.items()} for e, length in zip(padded, LENGTHS, strict=True)]
    targets = network.targets()
    expected = reference(network, tensors, Y, targets, CrossEntropy())
    back = [2, 0, 1]
    found = weight_gradients(
        network, [ragged[i] for i in back], Y[back], targets, CrossEntropy(), batch_size=2
    )
    agree(found, expected)
    torch.testing.assert_close(found.outputs, network.reader.outputs(tensors)[back])


def test_a_layer_that_no_output_depends_on_has_no_gradient() -> None:
    y = torch.zeros(B, dtype=torch.int64)
    found = weight_gradients(network_of(off_the_way), examples_of(inputs()), y, TARGETS, CrossEntropy())
    assert found.gradients["a"].norm() > 0
    assert torch.equal(found.gradients["b"], torch.zeros(D, D))


def test_the_network_is_left_as_it_was() -> None:
    network = network_of(twice)
    network.module.get_parameter("a.weight").requires_grad_(True)
    before = {name: (p.requires_grad, p.clone()) for name, p in network.module.named_parameters()}
    y = torch.zeros(B, dtype=torch.int64)
    found = weight_gradients(network, examples_of(inputs()), y, TARGETS, CrossEntropy())
    with pytest.raises(InputError):
        weight_gradients(network, examples_of(inputs()), y + 2, TARGETS, CrossEntropy())
    assert not any(w.requires_grad for w in (found.outputs, *found.gradients.values()))
    for name, parameter in network.module.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in network.module.modules())


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (never_called, r"the target 'b', which the network never calls .* --target-modules or --layers"),
        (not_on_the_way, "outputs that do not depend on b, a, expected modules on the way from"),
        (infinite, "got an output that is not finite from 'fake', expected numbers: check the weights"),
        (of_infinite_slope, "got a gradient of 'b' that is not finite from 'fake', expected numbers"),
    ],
)
def test_networks_without_a_gradient_are_refused(
    forward: Callable[[Pair, Tensor], Tensor], message: str
) -> None:
    y = torch.zeros(B, dtype=torch.int64)
    with pytest.raises(InputError, match=message):
        weight_gradients(network_of(forward), examples_of(inputs()), y, TARGETS[::-1], CrossEntropy())


def test_outputs_that_depend_on_other_trainable_weights_only_are_refused() -> None:
    network, y = network_of(not_on_the_way), torch.zeros(B, dtype=torch.int64)
    network.module.requires_grad_(True)
    with pytest.raises(InputError, match="outputs that do not depend on a, b, expected modules"):
        weight_gradients(network, examples_of(inputs()), y, TARGETS, CrossEntropy())


def test_an_input_written_into_after_the_call_is_not_used() -> None:
    def overwritten(pair: Pair, x: Tensor) -> Tensor:
        x = mix(x)
        y = pair.a(x) + pair.b(x)
        x.zero_()
        return y

    y = torch.zeros(B, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        weight_gradients(network_of(overwritten), examples_of(inputs()), y, TARGETS, CrossEntropy())


def test_bad_input_is_refused() -> None:
    network, examples = network_of(twice), examples_of(inputs())
    y = torch.zeros(B, dtype=torch.int64)
    with pytest.raises(InputError, match="got an empty set of examples, expected at least one"):
        weight_gradients(network, [], y[:0], TARGETS, CrossEntropy())
    with pytest.raises(InputError, match="got batch size 0, expected at least 1: change --batch-size"):
        weight_gradients(network, examples, y, TARGETS, CrossEntropy(), batch_size=0)
    with pytest.raises(InputError, match="got no target matrices, expected at least one: name some"):
        weight_gradients(network, examples, y, [], CrossEntropy())
    with pytest.raises(InputError, match=r"got labels of shape \(3,\), expected \(4,\)"):
        weight_gradients(network, examples, y[:3], TARGETS, CrossEntropy())
    with pytest.raises(InputError, match="the label 2 for 2 outputs"):
        weight_gradients(network, examples, y + 2, TARGETS, CrossEntropy())
    network.module.train()
    with pytest.raises(InputError, match="got the network 'fake' in training mode, expected evaluation mode"):
        weight_gradients(network, examples, y, TARGETS, CrossEntropy())


def test_a_range_of_rows_is_a_block_of_the_whole() -> None:
    network, tensors, y = network_of(twice), inputs(), torch.tensor([1, 0, 1, 1])
    whole = weight_gradients(network, examples_of(tensors), y, TARGETS, CrossEntropy()).gradients["a"]
    part = replace(TARGETS[0], name="a:rows", rows=(2, 5), shape=(3, D))
    found = weight_gradients(network, examples_of(tensors), y, [part, TARGETS[0]], CrossEntropy()).gradients
    assert torch.equal(found["a:rows"], found["a"][2:5])
    torch.testing.assert_close(found["a"], whole)
