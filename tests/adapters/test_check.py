"""Adapters read back by PEFT: the same outputs as W + δ, and a network that is as it was."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import nn

from fake_network import examples_of, fake_network
from random_factors import random_factors
from tangentlora.adapters import loaded, loaded_outputs, write_adapter
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.update import updated
from tiny_networks import NETWORKS


def network_of(kind: str, dtype: torch.dtype = torch.float64):
    module, tensors, read = NETWORKS[kind]()
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    return fake_network(module.to(dtype), read), examples_of(cast)


def deep_bert():
    """Twelve layers, so that the name of layer 1 is the beginning of those of layers 10 and 11."""
    config = tf.BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.3,
        num_labels=3,
    )
    module = tf.BertForSequenceClassification(config).double()
    tokens = [{"input_ids": row} for row in torch.randint(16, (3, 5))]
    return fake_network(module, lambda tensors: module(**tensors).logits), tokens


def write(network: Network, targets, factors, folder: Path) -> Path:
    written = write_adapter(factors, targets, folder, module=network.module, base_model="tiny")
    assert written == folder
    return folder


def agrees(network: Network, inputs, targets, ranks, folder: Path, atol: float = 1e-10) -> None:
    factors = random_factors(targets, ranks)
    f0 = network.predict(inputs)
    with updated(network, targets, factors):
        expected = network.predict(inputs)
    found = loaded_outputs(network, write(network, targets, factors, folder), inputs, batch_size=2)
    assert (expected - f0).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", NETWORKS)
def test_peft_gives_the_outputs_of_the_updated_network(kind, tmp_path, capfd):
    network, inputs = network_of(kind)
    targets = network.targets(("query", "value"), "all")
    agrees(network, inputs, targets, (3, 0, 9, 1), tmp_path)
    assert capfd.readouterr() == ("", "")


def test_in_float32_they_agree_to_rounding(tmp_path):
    network, inputs = network_of("bert", torch.float32)
    agrees(network, inputs, network.targets(), (2, 3), tmp_path, atol=1e-5)


@pytest.mark.parametrize("spared", [1, 11])
def test_layers_are_told_apart_by_their_full_names(spared, tmp_path):
    network, inputs = deep_bert()
    targets = network.targets(("query", "value"), "all")
    ranks = [0 if f".layer.{spared}." in target.name else 1 + i % 5 for i, target in enumerate(targets)]
    agrees(network, inputs, targets, ranks, tmp_path)


def test_a_lone_first_layer_is_not_the_eleventh(tmp_path):
    network, inputs = deep_bert()
    agrees(network, inputs, network.targets(("query", "value"), "1"), (2, 3), tmp_path)


@pytest.mark.parametrize("selection", ["query", "value", "query,key,value", "c_attn", "attn.c_proj"])
def test_every_choice_of_parts_of_a_fused_weight(selection, tmp_path):
    network, inputs = network_of("gpt2")
    targets = network.targets(selection.split(","), "all")
    agrees(network, inputs, targets, [2 + i for i in range(len(targets))], tmp_path)


def test_linear_and_conv1d_in_one_adapter(tmp_path):
    network, inputs = network_of("gpt2")
    agrees(network, inputs, network.targets(("query", "c_fc", "score")), (2, 3, 1), tmp_path)


@pytest.mark.parametrize("ranks", [(2, 0), (2, 5), (5, 2), (0, 2)])
def test_modules_whose_names_end_alike(ranks, tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))).double()
    network = fake_network(module, lambda tensors: module(tensors["x"]))
    inputs = [{"x": row} for row in torch.randn(3, 4, dtype=torch.float64)]
    targets = network.targets(("0",), "all")
    assert [target.name for target in targets] == ["0", "1.0"]
    agrees(network, inputs, targets, ranks, tmp_path)


def state(module: nn.Module) -> dict[str, object]:
    return {
        "modules": [(name, id(child), child.training) for name, child in module.named_modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in module.named_parameters()],
        "bits": {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()},
        "attributes": sorted(vars(module)),
        "hooks": [len(child._forward_hooks | child._forward_pre_hooks) for child in module.modules()],
        "configuration": module.config.to_dict(),
        "random": torch.get_rng_state().tolist(),
    }


def test_the_network_is_as_before(tmp_path):
    network, inputs = network_of("bert", torch.float32)
    network.module.classifier.requires_grad_(True)
    network.module.bert.pooler.train()
    targets = network.targets()
    folder = write(network, targets, random_factors(targets, (2, 3)), tmp_path)
    before, f0 = state(network.module), network.predict(inputs)
    with loaded(network, folder):
        assert not torch.equal(network.predict(inputs), f0)
    assert state(network.module) == before
    assert torch.equal(network.predict(inputs), f0)
    with pytest.raises(KeyboardInterrupt), loaded(network, folder):
        raise KeyboardInterrupt
    assert state(network.module) == before


@pytest.fixture
def bert():
    network, inputs = network_of("bert")
    return network, inputs, network.targets(("query", "value"), "all")


def test_an_adapter_that_was_altered_gives_other_outputs(bert, tmp_path):
    network, inputs, targets = bert
    factors = random_factors(targets, (1, 1, 1, 1))
    folder = write(network, targets, factors, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"base_model.model.{targets[0].name}.lora_B.weight"][0, 0] += 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    with updated(network, targets, factors):
        expected = network.predict(inputs)
    assert (loaded_outputs(network, folder, inputs) - expected).abs().max() > 1e-6


def test_a_wrong_scaling_gives_other_outputs(bert, tmp_path):
    network, inputs, targets = bert
    factors = random_factors(targets, (1, 2, 1, 1))
    folder = write(network, targets, factors, tmp_path)
    edit(folder, alpha_pattern={})
    with updated(network, targets, factors):
        expected = network.predict(inputs)
    assert (loaded_outputs(network, folder, inputs) - expected).abs().max() > 1e-3


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuses(network: Network, folder: Path, message: str) -> None:
    before = state(network.module)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(InputError, match=message):
            loaded_outputs(network, folder, [])
    assert state(network.module) == before


def test_folders_without_a_whole_adapter_are_refused(bert, tmp_path):
    network, _, targets = bert
    refuses(
        network, tmp_path / "nowhere", "expected a PEFT adapter with adapter_config.json and adapter_model"
    )
    for name, damage in (
        ("adapter_config.json", "{"),
        ("adapter_config.json", "[1]"),
        ("adapter_model.safetensors", "half"),
    ):
        folder = write(network, targets, random_factors(targets, (1, 1, 1, 1)), tmp_path)
        (folder / name).write_text(damage)
        refuses(network, folder, "expected a PEFT adapter with adapter_config.json and adapter_model")
    (folder / "adapter_model.safetensors").unlink()
    refuses(network, folder, "expected a PEFT adapter with adapter_config.json and adapter_model")


def test_tensors_without_a_layer_and_layers_without_tensors_are_refused(bert, tmp_path):
    network, _, targets = bert
    deep, _ = deep_bert()
    deeper = deep.targets(("query",), "all")
    folder = write(deep, deeper, random_factors(deeper, [1] * 12), tmp_path / "deep")
    refuses(network, folder, "does not fit fake .*size mismatch")
    folder = write(network, targets, random_factors(targets, (1, 1, 1, 1)), tmp_path / "two")
    tensors = load_file(folder / "adapter_model.safetensors")
    fewer = {name: tensor for name, tensor in tensors.items() if targets[0].name not in name}
    save_file(fewer, folder / "adapter_model.safetensors")
    refuses(network, folder, "does not fit fake .*missing adapter keys.*expected an adapter of this network")
    more = {name.replace("layer.1.", "layer.7."): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more, folder / "adapter_model.safetensors")
    refuses(network, folder, "only 8 of its 12 tensors have a place")
    edit(folder, target_modules=["nowhere"])
    refuses(network, folder, "does not fit fake .*not found in the base model")


def test_a_reader_that_kept_hold_of_an_adapted_layer_is_refused(tmp_path):
    module, tensors, _ = NETWORKS["bert"]()
    classifier = module.classifier
    network = fake_network(module, lambda inputs: classifier(module.bert(**inputs).pooler_output))
    targets = network.targets(("classifier",))
    folder = write(network, targets, random_factors(targets, (1,)), tmp_path)
    before = state(module)
    with pytest.raises(
        InputError, match="a readout of fake that calls classifier without its adapter, expected"
    ):
        loaded_outputs(network, folder, examples_of(tensors))
    assert state(module) == before


def test_patterns_that_match_nothing_are_refused(bert, tmp_path):
    network, _, targets = bert
    folder = write(network, targets, random_factors(targets, (1, 1, 1, 1)), tmp_path)
    edit(folder, rank_pattern={"^nowhere": 4})
    refuses(network, folder, "does not fit fake .*rank_pattern keys did not match")


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"kasa_config": {"beta": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_adapters_that_would_change_the_network_itself_are_refused(bert, tmp_path, change):
    network, _, targets = bert
    folder = write(network, targets, random_factors(targets, (1, 1, 1, 1)), tmp_path)
    edit(folder, **change)
    refuses(
        network, folder, f"with {next(iter(change))} = .* expected LoRA that leaves the network's own weights"
    )
