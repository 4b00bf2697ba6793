"""Captured inputs and gradients against jacrev, on made-up networks that are awkward on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fake_network import jacrev_blocks, relative_error, whole_batch
from pairs import (
    TARGETS,
    D,
    Forward,
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
from tangentlora.errors import InputError
from tangentlora.tangent.capture import Capture, capture


def blocks_of(found: Capture) -> dict[str, Tensor]:
    return {name: torch.einsum("bklm,bln->bkmn", found.g[name], found.x[name]) for name in found.x}


def twice(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(mix(pair.a(mix(pair.a(x))))))


def by_keyword(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(input=mix(pair.a(input=x))))


def written_into(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(mix(pair.a(x).relu_())).mul_(2))


def of_different_lengths(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(mix(pair.a(x)))) + pair.a(x[:, :1])


def used_elsewhere(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(x)) + functional.linear(x, pair.b.weight) + pair.a(x)


def shared_tokens(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(mix(pair.a(x)))) - pair.b(x).mean(dim=0)


def cancelling(pair: Pair, x: Tensor) -> Tensor:
    """The Jacobian of a is zero, as that of the query where there is one token; float32 leaves some noise."""
    y = pair.a(x)
    return pair.b(x) + 0.1 * y + 0.2 * y - 0.3 * y


@pytest.mark.parametrize("forward", [twice, by_keyword, written_into, of_different_lengths])
def test_jacobians_agree_with_jacrev(forward: Forward) -> None:
    network, tensors = network_of(forward), inputs()
    found = capture(network, whole_batch(network, tensors), TARGETS, prove=True)
    torch.testing.assert_close(found.outputs, network.reader.outputs(tensors))
    for name, block in jacrev_blocks(network, tensors, TARGETS).items():
        assert relative_error(blocks_of(found)[name], block) < 1e-12


def test_a_range_of_rows_and_a_transposed_weight_are_blocks_of_the_whole() -> None:
    network, tensors = network_of(twice), inputs()
    whole = blocks_of(capture(network, whole_batch(network, tensors), TARGETS))["a"]
    rows = replace(TARGETS[0], name="a:rows", rows=(2, 5), shape=(3, D))
    found = capture(network, whole_batch(network, tensors), (rows, TARGETS[1]), prove=True)
    torch.testing.assert_close(blocks_of(found)["a:rows"], whole[:, :, 2:5])
    wrong = replace(TARGETS[0], transposed=True)
    with pytest.raises(InputError, match="whose error against autograd's is"):
        capture(network, whole_batch(network, tensors), (wrong,), prove=True)


def test_a_layer_on_rows_of_no_example_is_refused_in_a_batch_and_right_alone() -> None:
    network = network_of(on_a_table)
    message = (
        r"'a' called with an input of shape \(5, 6\) for a batch of 4, .* --batch-size 1, which is exact"
    )
    with pytest.raises(InputError, match=message):
        capture(network, whole_batch(network, inputs()), TARGETS)
    tensors = inputs(batch=1)
    found = capture(network, whole_batch(network, tensors), TARGETS, prove=True)
    for name, block in jacrev_blocks(network, tensors, TARGETS).items():
        assert relative_error(blocks_of(found)[name], block) < 1e-12


def test_rows_of_no_example_are_refused_when_they_are_as_many_as_the_examples() -> None:
    network = network_of(on_a_table)
    with pytest.raises(InputError, match="Jacobian of 'a' whose error against autograd's"):
        capture(network, whole_batch(network, inputs(batch=5)), TARGETS, prove=True)


@pytest.mark.parametrize("forward", [used_elsewhere, shared_tokens])
def test_a_weight_used_elsewhere_and_mixed_examples_are_refused_by_the_proof(forward: Forward) -> None:
    network = network_of(forward)
    message = (
        "Jacobian of '.' whose error .* expected agreement: its weight is used elsewhere too or .* mixes"
    )
    with pytest.raises(InputError, match=message):
        capture(network, whole_batch(network, inputs()), TARGETS, prove=True)


def test_a_layer_that_is_never_called_is_refused() -> None:
    network = network_of(never_called)
    with pytest.raises(
        InputError, match=r"the target 'b', which the network never calls .* --target-modules"
    ):
        capture(network, whole_batch(network, inputs()), TARGETS)


def test_layers_that_no_output_depends_on_are_refused() -> None:
    network = network_of(not_on_the_way)
    with pytest.raises(InputError, match="outputs that do not depend on a, b, expected modules on the way"):
        capture(network, whole_batch(network, inputs()), TARGETS)


def test_numbers_that_are_not_finite_are_refused() -> None:
    network = network_of(infinite)
    with pytest.raises(InputError, match="outputs that are not finite from 'fake', expected numbers: check"):
        capture(network, whole_batch(network, inputs()), TARGETS)
    network = network_of(of_infinite_slope)
    with pytest.raises(InputError, match="inputs or gradients that are not finite at 'b', expected numbers"):
        capture(network, whole_batch(network, inputs()), TARGETS)


def test_a_jacobian_that_is_zero_but_for_rounding_passes_the_proof() -> None:
    network = network_of(cancelling)
    network.module.float()
    tensors = {"x": inputs()["x"].float()}
    found = blocks_of(capture(network, whole_batch(network, tensors), TARGETS, prove=True))
    assert 0 < found["a"].norm() <= 1e-6 * found["b"].norm()


@pytest.mark.parametrize("forward", [twice, used_elsewhere])
def test_the_network_is_left_as_it_was(forward: Forward) -> None:
    network = network_of(forward)
    network.module.get_parameter("a.weight").requires_grad_(True)
    before = {name: (p.requires_grad, p.clone()) for name, p in network.module.named_parameters()}
    for prove in (False, True):
        try:
            found = capture(network, whole_batch(network, inputs()), TARGETS, prove=prove)
        except InputError:
            assert (forward, prove) == (used_elsewhere, True)
        else:
            assert not any(tensor.requires_grad for tensor in (found.outputs, *found.x.values()))
    for name, parameter in network.module.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in network.module.modules())
