"""The proof on one example: it accepts what is right, and finds each way in which a Jacobian can be wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fake_network import whole_batch
from pairs import TARGETS, Forward, Pair, inputs, mix, network_of, on_a_table
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.tangent.capture import Capture, capture
from tangentlora.tangent.proof import prove


def sound(pair: Pair, x: Tensor) -> Tensor:
    return mix(pair.b(mix(pair.a(x))))


def leaning(pair: Pair, x: Tensor) -> Tensor:
    """Every example but the first one takes from the one before: outputs of the first do not show it."""
    y = sound(pair, x)
    return y + torch.cat([torch.zeros_like(y[:1]), y[:-1]])


def fed_by_others(pair: Pair, x: Tensor) -> Tensor:
    """The inputs of b are mixed, by so little that no output shows it."""
    return pair.a(x) + 1e-6 * pair.b(mix(x) * len(x))


def used_elsewhere(pair: Pair, x: Tensor) -> Tensor:
    return sound(pair, x) + functional.linear(x, pair.b.weight)


def mixed(pair: Pair, x: Tensor) -> Tensor:
    return sound(pair, x - x.mean(dim=0))


def proved(network: Network, batch_size: int = 4) -> None:
    batch = whole_batch(network, inputs(batch_size))
    prove(network, batch, capture(network, batch, TARGETS), TARGETS)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_sound_network_passes_in_every_precision(batch_size: int) -> None:
    proved(network_of(sound), batch_size)
    for dtype in (torch.float32, torch.bfloat16):
        network = network_of(sound)
        network.module.to(dtype)
        batch = whole_batch(network, {"x": inputs(batch_size)["x"].to(dtype)})
        prove(network, batch, capture(network, batch, TARGETS), TARGETS)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (mixed, r"outputs that differ by .* between two runs on one example, expected a network that is det"),
        (leaning, r"gradients of 'a' that differ by .* between one example alone and among others, .* separ"),
        (
            fed_by_others,
            r"inputs of 'b' that differ by .* expected a network that treats examples sep",
        ),
        (used_elsewhere, r"Jacobian of 'b' whose error against autograd's is .* used elsewhere too"),
    ],
)
def test_what_is_wrong_is_refused(forward: Forward, message: str) -> None:
    with pytest.raises(InputError, match=message):
        proved(network_of(forward))


def test_mixing_is_allowed_where_every_example_is_alone() -> None:
    for forward in (leaning, fed_by_others):
        proved(network_of(forward), batch_size=1)


def test_rows_of_no_example_are_found_when_they_are_as_many_as_the_examples() -> None:
    with pytest.raises(InputError, match="inputs of 'a' that differ by inf between one example alone and"):
        proved(network_of(on_a_table), batch_size=5)


@pytest.mark.parametrize("part", ["x", "g"])
@pytest.mark.parametrize(("change", "refused"), [(1e-2, True), (1e-5, False)])
def test_a_change_is_refused_from_the_tolerance_on(part: str, change: float, refused: bool) -> None:
    network = network_of(sound)
    batch = whole_batch(network, inputs())
    captured = capture(network, batch, TARGETS)
    name = TARGETS[1].name
    held = dict(getattr(captured, part))
    held[name] = held[name] * (1 + change)
    changed: Capture = replace(captured, **{part: held})
    if not refused:
        prove(network, batch, changed, TARGETS)
        return
    with pytest.raises(InputError, match=f"of '{name}' that differ by"):
        prove(network, batch, changed, TARGETS)
