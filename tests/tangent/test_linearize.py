"""Tangents of tiny transformers against torch.func.jacrev, and the networks that the probe refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fake_network import (
    PaddingReader,
    examples_of,
    fake_network,
    jacrev_blocks,
    relative_error,
)
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.tangent.linearize import linearize
from tangentlora.tangent.tangent import Tangent
from tiny_networks import KINDS, LENGTHS, NETWORKS


def tiny(kind: str) -> tuple[Network, dict[str, Tensor]]:
    module, tensors, read = NETWORKS[kind]()
    return fake_network(module, read), tensors


def agree(tangent: Tangent, network: Network, tensors: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(tangent.f0, network.reader.outputs(tensors))
    expected = jacrev_blocks(network, tensors, tangent.targets)
    found = tangent.jacobian.dense()
    assert list(found) == list(expected) == [target.name for target in tangent.targets]
    for target in tangent.targets:
        assert found[target.name].shape[2:] == target.shape
        assert relative_error(found[target.name], expected[target.name]) < 1e-5, target.name


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "deberta-v2"])
def test_query_and_value_agree_with_jacrev(kind: str, layers: str) -> None:
    network, tensors = tiny(kind)
    agree(linearize(network, examples_of(tensors), network.targets(layers=layers)), network, tensors)


@pytest.mark.parametrize("modules", [("key", "output"), ("c_attn",), ("query", "key", "value")])
def test_fused_attention_agrees_whole_and_by_ranges_of_rows(modules: Sequence[str]) -> None:
    network, tensors = tiny("gpt2")
    tangent = linearize(network, examples_of(tensors), network.targets(modules, "all"), batch_size=2)
    agree(tangent, network, tensors)


def test_positions_shared_by_all_examples_are_refused_in_a_batch_and_right_alone() -> None:
    network, tensors = tiny("deberta-v2")
    examples, targets = examples_of(tensors), network.targets(layers="all")
    message = r"query_proj' called with an input of shape \(1, 16, 32\) for a batch of 3, .* --batch-size 1"
    with pytest.raises(InputError, match=message):
        linearize(network, examples, targets)
    agree(linearize(network, examples, targets, batch_size=1), network, tensors)
    value = network.targets(("value",), "all")
    agree(linearize(network, examples, value), network, tensors)


def test_examples_keep_their_order_when_lengths_decide_the_batches() -> None:
    network, tensors = tiny("bert")
    padded = examples_of(tensors)
    ragged = [{name: t[:length] for name, t in e.items()} for e, length in zip(padded, LENGTHS, strict=True)]
    order = [2, 0, 1]
    tangent = linearize(network, [ragged[i] for i in order], batch_size=2)
    agree(tangent, network, {name: tensor[order] for name, tensor in tensors.items()})


def test_the_default_is_query_and_value_of_the_last_layer() -> None:
    network, tensors = tiny("bert")
    tangent = linearize(network, examples_of(tensors))
    assert [target.name.split(".")[-3:] for target in tangent.targets] == [
        ["attention", "self", "query"],
        ["attention", "self", "value"],
    ]
    assert all(".layer.1." in target.name for target in tangent.targets)
    # the readout sees the first token alone: one row for the query, one per head for the value
    assert [rows.counts.tolist() for rows in tangent.jacobian.layers.values()] == [[1, 1, 1], [4, 4, 4]]
    assert tangent.f0.dtype == tangent.jacobian.dtype == torch.float32
    assert tangent.source is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "got an empty set of examples, expected at least one: check the data file"),
        ({"targets": ()}, "got no target matrices, expected at least one: name some with --target-modules"),
        ({"batch_size": 0}, "got batch size 0, expected at least 1: change --batch-size"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    network, tensors = tiny("bert")
    arguments: dict[str, object] = {"inputs": examples_of(tensors), "targets": None} | changes
    with pytest.raises(InputError, match=message):
        linearize(network, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "wav2vec2"])
def test_a_network_left_in_training_mode_is_refused(kind: str) -> None:
    network, tensors = tiny(kind)
    network.module.train()
    with pytest.raises(
        InputError, match=r"'fake' in training mode, expected evaluation mode, .* call \.eval\(\)"
    ):
        linearize(network, examples_of(tensors))


Inner = Callable[[Tensor], Tensor]


def classifier(inner: Inner) -> tuple[Network, list[dict[str, Tensor]]]:
    """Return a network with one layer after `inner`, and five examples."""
    module = nn.ModuleDict({"query": nn.Linear(4, 6), "head": nn.Linear(6, 2)})
    network = fake_network(module, lambda t: module["head"](torch.tanh(module["query"](inner(t["x"])))))
    return network, [{"x": torch.randn(4)} for _ in range(5)]


def batch_statistics(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True) if len(x) > 1 else x


@pytest.mark.parametrize(
    "inner", [lambda x: functional.dropout(x, 0.3, training=True), batch_statistics, lambda x: x - x.mean(0)]
)
def test_random_outputs_and_examples_that_mix_are_refused(inner: Inner) -> None:
    network, examples = classifier(inner)
    message = r"outputs that differ by .* between two runs on one example, expected a network that is det"
    with pytest.raises(InputError, match=message):
        linearize(network, examples, network.targets(("query",)))


def test_a_weight_that_is_used_elsewhere_too_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    module = nn.ModuleDict({"query": nn.Linear(4, 2)})
    network = fake_network(module, lambda t: module["query"](t["x"]) * module["query"].weight.sum())
    with pytest.raises(InputError, match="Jacobian of 'query' whose error against autograd's is"):
        linearize(network, [{"x": torch.ones(4)}], network.targets(("query",)), store=tmp_path)
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_finite_for_one_example_alone_are_refused() -> None:
    network, examples = classifier(lambda x: x if len(x) > 1 else x / 0)
    with pytest.raises(InputError, match="outputs that are not finite from 'fake'"):
        linearize(network, examples, network.targets(("query",)))


def test_a_sound_network_of_the_same_kind_is_accepted() -> None:
    network, examples = classifier(lambda x: x)
    assert isinstance(network.reader, PaddingReader)
    tangent = linearize(network, examples, network.targets(("query",)), batch_size=2)
    agree(tangent, network, network.reader.collate(examples))


def test_half_precision_gives_a_tangent_in_float32() -> None:
    network, examples = classifier(lambda x: x.to(torch.bfloat16))
    network.module.to(torch.bfloat16)
    tangent = linearize(network, examples, network.targets(("query",)))
    assert tangent.f0.dtype == tangent.jacobian.dtype == torch.float32
    exact = jacrev_blocks(network, network.reader.collate(examples), tangent.targets)["query"]
    assert relative_error(tangent.jacobian.dense()["query"], exact.float()) < 2e-2


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    network, examples = classifier(lambda x: x)
    linearize(network, examples, network.targets(("query",)), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "linearising" in shown.err
    assert "5/5" in shown.err
