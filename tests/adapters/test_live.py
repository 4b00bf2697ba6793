"""Adapters in live PeftModels: the same as from their files, on the very module, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fake_network import examples_of, fake_network
from peft_adapters import peft_model, peft_speaking, saved_by_peft
from tangentlora.adapters import adapter_of, bare, fitted, loaded_outputs, read_adapter, with_saved
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tiny_networks import NETWORKS, tiny_module

SETTINGS = {
    "roberta": {"target_modules": ["query", "value"], "task_type": "SEQ_CLS", "rank_pattern": {"query": 2}},
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True},
    "bert": {"target_modules": ["query"], "bias": "all"},
    "vit": {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]},
}


def state_of(model: nn.Module):
    """Everything that the block must leave alone: modules, modes, flags, marks and bits."""
    modules = [(name, id(child), child.training) for name, child in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()]
    return modules, parameters, vars(model.get_base_model()).get("peft_config")


def same(before, after) -> bool:
    flags = [row[:3] for row in before[1]] == [row[:3] for row in after[1]]
    bits = all(torch.equal(a[3], b[3]) for a, b in zip(before[1], after[1], strict=True))
    return before[0] == after[0] and flags and bits and before[2] is after[2]


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_live_adapter_is_the_one_that_it_would_save(kind, tmp_path):
    model = peft_model(tiny_module(kind), **SETTINGS[kind])
    before = state_of(model)
    live = adapter_of(model)
    assert same(before, state_of(model))
    with peft_speaking():
        model.save_pretrained(tmp_path)
    filed = read_adapter(tmp_path)
    assert list(live.layers) == sorted(filed.layers)
    for name, layer in filed.layers.items():
        assert torch.equal(live.layers[name].A, layer.A)
        assert torch.equal(live.layers[name].B, layer.B)
        assert live.layers[name].scaling == layer.scaling
    assert (live.rslora, live.task_type, live.target_modules) == (
        filed.rslora,
        filed.task_type,
        filed.target_modules,
    )
    if kind == "bert":
        assert not live.saved  # trained in place: they are in the network
    else:
        assert {name: t.tolist() for name, t in live.saved.items()} == {
            name: t.tolist() for name, t in filed.saved.items()
        }


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_bare_network_with_the_adapter_says_what_the_model_says(kind):
    module, tensors, read = NETWORKS[kind]()
    pretrained = read(tensors)
    model = peft_model(module, **SETTINGS[kind])
    model.train()
    model.requires_grad_(True)
    before = state_of(model)
    adapter = adapter_of(model)
    with bare(model) as base:
        assert base is module
        assert not [name for name, _ in base.named_modules() if "lora" in name or "original_module" in name]
        network = fake_network(base, read)
        inputs = examples_of(tensors)
        if kind != "bert":
            torch.testing.assert_close(network.predict(inputs), pretrained, rtol=1e-5, atol=1e-5)
        fit = fitted(adapter, base)
        with with_saved(network, fit.adapter), attached(base, fit.targets, fit.factors):
            found = network.predict(inputs)
    assert same(before, state_of(model))
    model.eval()
    torch.testing.assert_close(found, read(tensors).detach(), rtol=1e-5, atol=1e-5)
    assert (found - pretrained).abs().max() > 0.01


def test_other_adapters_can_be_loaded_on_the_bare_network(tmp_path):
    folder = saved_by_peft(tiny_module("bert"), tmp_path, target_modules=["value"])
    module, tensors, read = NETWORKS["bert"]()
    model = peft_model(module, target_modules=["query"])
    before = state_of(model)
    with bare(model) as base:
        network = fake_network(base, read)
        assert loaded_outputs(network, folder, examples_of(tensors)).shape == (3, 3)
    assert same(before, state_of(model))


def test_everything_is_restored_after_an_exception():
    model = peft_model(tiny_module("roberta"), **SETTINGS["roberta"])
    before = state_of(model)

    def fail() -> None:
        with bare(model) as base:
            base.eval().requires_grad_(False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert same(before, state_of(model))


def test_the_scaling_is_the_one_in_the_layers_now():
    model = peft_model(tiny_module("bert"), target_modules=["query"], r=4, lora_alpha=8)
    for layer in model.get_base_model().modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("default", 0.5)
    assert {layer.scaling for layer in adapter_of(model).layers.values()} == {1.0}
    assert set(adapter_of(model).alphas.values()) == {4.0}


def test_an_adapter_among_several_is_named():
    from peft import LoraConfig

    model = peft_model(tiny_module("bert"), target_modules=["query"], r=4)
    model.add_adapter("second", LoraConfig(target_modules=["value"], r=2))
    assert set(adapter_of(model).ranks.values()) == {4}
    assert set(adapter_of(model, "second").ranks.values()) == {2}
    message = "for a PeftModel with the adapters default, second, of which {} are active, expected one"
    with pytest.raises(InputError, match="got the adapter name 'third' " + message.format("default")):
        adapter_of(model, "third")
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(InputError, match="got no name " + message.format("default, second")):
        adapter_of(model)


def test_merged_adapters_and_other_models_are_refused():
    model = peft_model(tiny_module("bert"), target_modules=["query"])
    model.merge_adapter()
    before = state_of(model)
    with pytest.raises(InputError, match=r"default merged into bert.*query, expected .* unmerge_adapter\(\)"):
        adapter_of(model)
    with pytest.raises(InputError, match="default merged into"), bare(model):
        pass
    assert same(before, state_of(model))
    with pytest.raises(InputError, match="got a BertForSequenceClassification, expected a PeftModel; wrap"):
        adapter_of(tiny_module("bert"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "got the adapter 'default' of PeftModel with use_dora = True"),
        ({"init_lora_weights": "pissa"}, "PiSSA, which takes its start"),
        ({"init_lora_weights": "mica"}, "MiCA"),
        ({"lora_bias": True}, "a bias in lora_B"),
        (
            {"target_modules": ["word_embeddings"]},
            "a layer Embedding at bert.embeddings.word_embeddings that is",
        ),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(settings, message):
    model = peft_model(tiny_module("bert"), **{"target_modules": ["query"]} | settings)
    with pytest.raises(InputError, match=message):
        adapter_of(model)


def test_another_method_is_refused_by_name():
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["query"], feedforward_modules=[])
    with peft_speaking():
        model = get_peft_model(tiny_module("bert"), config)
    with pytest.raises(InputError, match="peft_type = 'IA3'"):
        adapter_of(model)
    with bare(model) as base:
        assert type(base.get_submodule("bert.encoder.layer.0.attention.self.query")) is nn.Linear
