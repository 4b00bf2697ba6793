"""Adapters on networks: names, shapes and saved weights, and every way in which they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fake_network import examples_of, fake_network
from peft_adapters import TENSORS, loaded_by_peft, saved_by_peft, with_settings
from tangentlora.adapters import Adapter, LoraLayer, fitted, read_adapter, with_saved
from tangentlora.errors import InputError
from tangentlora.models import MaskPrompt, Prototypes, network_from_module
from tangentlora.models.attach import attached
from tangentlora.models.load import fingerprint
from tangentlora.models.targets import Target
from tiny_networks import NETWORKS, tiny_module, tiny_processor

QUERY = "bert.encoder.layer.1.attention.self.query"


def adapter_on(*names: str, shape: tuple[int, int] = (32, 32), saved: dict | None = None) -> Adapter:
    """An adapter of rank 2 on these modules."""
    m, n = shape
    layers = {name: LoraLayer(torch.randn(2, n), torch.randn(m, 2), 1.5) for name in names}
    return Adapter("mine", layers, saved or {}, rslora=False, base_model="owner/base")


def test_targets_are_whole_weights_in_the_networks_order():
    module = tiny_module("gpt2")
    first, second = "transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"
    adapter = adapter_on(second, first, shape=(96, 32))
    fit = fitted(adapter, module)
    assert fit.targets == tuple(Target(name, name, (96, 32), None, True) for name in (first, second))
    assert list(fit.factors) == [first, second]
    torch.testing.assert_close(fit.factors[second][0], 1.5**0.5 * adapter.layers[second].B.double())


def test_a_name_that_ends_as_another_adapts_its_own_module_only():
    module = nn.ModuleDict({"q": nn.Linear(4, 4), "inner": nn.ModuleDict({"q": nn.Linear(4, 4)})})
    fit = fitted(adapter_on("q", shape=(4, 4)), module)
    assert [target.name for target in fit.targets] == ["q"]


LEGACY = (
    (".layers.", ".encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def test_names_of_earlier_releases_are_translated(tmp_path):
    settings = {"target_modules": ["q_proj", "v_proj", "fc1", "fc2"], "modules_to_save": ["classifier"]}
    saved_by_peft(tiny_module("vit"), tmp_path, **settings)
    theirs, tensors, read_theirs = NETWORKS["vit"]()
    loaded_by_peft(theirs, tmp_path)
    old = {}
    for key, tensor in load_file(tmp_path / TENSORS).items():
        for now, then in LEGACY:
            key = key.replace(now, then)
        old[key] = tensor
    assert "base_model.model.vit.encoder.layer.1.attention.attention.query.lora_A.weight" in old
    save_file(old, tmp_path / TENSORS)
    with_settings(tmp_path, target_modules=["query", "value", "intermediate.dense", "output.dense"])
    module, _, read = NETWORKS["vit"]()
    network = fake_network(module, read)
    fit = fitted(read_adapter(tmp_path), module)
    assert "vit.layers.1.attention.q_proj" in fit.adapter.layers
    with with_saved(network, fit.adapter) as base, attached(module, fit.targets, fit.factors):
        found = base.predict(examples_of(tensors))
    torch.testing.assert_close(found, read_theirs(tensors).detach(), rtol=1e-5, atol=1e-5)


def test_saved_biases_of_earlier_releases_are_translated():
    old = "vit.encoder.layer.0.attention.attention.query.bias"
    adapter = adapter_on("vit.layers.0.attention.q_proj", saved={old: torch.ones(32)})
    assert list(fitted(adapter, tiny_module("vit")).adapter.saved) == ["vit.layers.0.attention.q_proj.bias"]


def test_modules_that_the_network_lacks_are_refused_with_its_own_names():
    names = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2, 7)]
    with pytest.raises(InputError, match=r"for bert.encoder.layer.2.*layer.4.* and 2 more, which") as refusal:
        fitted(adapter_on(*names), tiny_module("bert"))
    assert f"expected weights such as bert.encoder.layer.0.attention.self.query.weight, {QUERY}" in str(
        refusal.value
    )
    assert str(refusal.value).endswith("load the network that the adapter was trained on, owner/base.")
    with pytest.raises(
        InputError, match=r"\(GPT2ForSequenceClassification\) does not have, expected .*c_proj"
    ):
        fitted(adapter_on(QUERY), tiny_module("gpt2"))
    with pytest.raises(InputError, match=r"for score.weight, which"):
        fitted(adapter_on(QUERY, saved={"score.weight": torch.ones(3, 32)}), tiny_module("bert"))
    with pytest.raises(InputError, match=r"for gone.weight, which this network \(Sequential\)"):
        fitted(adapter_on("gone"), nn.Sequential(nn.Linear(3, 3)))


def test_layers_of_single_experts_that_the_network_joins_are_refused_with_a_remedy():
    module = nn.Module()
    module.experts = nn.ParameterDict({"gate_up_proj": torch.ones(2, 3, 4)})
    module.router = nn.Linear(4, 2)
    with pytest.raises(
        InputError, match=r"for experts.0.up.weight, layers of single experts, .* joins to one"
    ):
        fitted(adapter_on("experts.0.up", "router"), module)
    found = fitted(adapter_on("router", shape=(2, 4)), module)  # the remedy: the same without experts
    assert [target.name for target in found.targets] == ["router"]


def test_two_names_for_one_weight_are_refused():
    both = ("vit.layers.0.attention.q_proj", "vit.encoder.layer.0.attention.attention.query")
    with pytest.raises(InputError, match="two names for one weight"):
        fitted(adapter_on(*both), tiny_module("vit"))


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match=rf"with the shape \(32, 48\) for {QUERY}, expected \(32, 32\)"):
        fitted(adapter_on(QUERY, shape=(32, 48)), tiny_module("bert"))
    saved = {"classifier.weight": torch.ones(5, 32)}
    with pytest.raises(
        InputError, match=r"\(5, 32\) for classifier.weight, expected \(3, 32\).*as many labels"
    ):
        fitted(adapter_on(QUERY, saved=saved), tiny_module("bert"))


class Quantised(nn.Linear):
    """Stands for the layers of quantisation libraries, which are Linear by inheritance only."""

    def forward(self, input):
        return super().forward(input).round()


def test_quantised_modules_are_refused():
    module = tiny_module("bert")
    module.set_submodule(QUERY, Quantised(32, 32))
    with pytest.raises(InputError, match=r"of type Quantised, expected .* without quantisation"):
        fitted(adapter_on(QUERY), module)
    packed = nn.Linear(32, 32)
    packed.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    module.set_submodule(QUERY, packed)
    with pytest.raises(InputError, match="expected a floating-point Linear or Conv1D"):
        fitted(adapter_on(QUERY), module)
    with pytest.raises(InputError, match="of type Embedding"):
        fitted(adapter_on("bert.embeddings.word_embeddings", shape=(64, 32)), module)


def test_saved_weights_that_two_modules_share_are_refused():
    module = tiny_module("bert-mlm")
    assert module.cls.predictions.decoder.weight is module.bert.embeddings.word_embeddings.weight
    tied = {
        "bert.embeddings.word_embeddings.weight": torch.ones(64, 32),
        "cls.predictions.decoder.weight": torch.ones(64, 32),
    }
    assert fitted(adapter_on(QUERY, saved=tied), module).adapter.saved.keys() == tied.keys()
    alone = {"bert.embeddings.word_embeddings.weight": torch.ones(64, 32)}
    with pytest.raises(InputError, match=r"which this network shares \(.* = .*\), expected one weight"):
        fitted(adapter_on(QUERY, saved=alone), module)
    differing = tied | {"cls.predictions.decoder.weight": torch.zeros(64, 32)}
    with pytest.raises(InputError, match="expected one weight for both; untie"):
        fitted(adapter_on(QUERY, saved=differing), module)


def test_the_base_has_its_own_fingerprint_and_comes_back_bit_for_bit(tmp_path: Path):
    module = tiny_module("bert").to(torch.bfloat16)
    network = replace(fake_network(module, lambda tensors: tensors["none"]), fingerprint=fingerprint(module))
    adapter = adapter_on(QUERY, saved={"classifier.bias": torch.tensor([1.0, 2.0, 1 / 3])})
    with with_saved(network, adapter) as base:
        assert base.fingerprint == fingerprint(module) != network.fingerprint
        assert torch.equal(module.classifier.bias, adapter.saved["classifier.bias"].to(torch.bfloat16))
    assert fingerprint(module) == network.fingerprint

    def fail() -> None:
        with with_saved(network, adapter):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert fingerprint(module) == network.fingerprint


def test_readouts_that_remember_replaced_weights_are_refused():
    processor = tiny_processor("bert")
    module = tiny_module("bert-mlm", len(processor))
    prompt = MaskPrompt("{text} It was {mask}.", ("great", "terrible"))
    network = network_from_module(module, processor, prompt, name="tiny")
    name = "bert.encoder.layer.1.attention.self.query"
    with with_saved(network, adapter_on(name, saved={f"{name}.bias": torch.ones(32)})) as base:
        assert base.reader is network.reader
    before = fingerprint(module)
    bias = torch.ones(len(processor))
    saved = {"cls.predictions.bias": bias, "cls.predictions.decoder.bias": bias}
    with (
        pytest.raises(InputError, match=r"replaces cls.predictions.bias, .* keeps numbers from before"),
        with_saved(network, adapter_on(name, saved=saved)),
    ):
        pass
    assert fingerprint(module) == before
    prototypes = Prototypes(("It was great.", "It was terrible."))
    network = network_from_module(module.bert, processor, prototypes, name="tiny")
    with (
        pytest.raises(InputError, match="use a classification head"),
        with_saved(network, adapter_on("x", saved={"encoder.layer.0.output.dense.bias": torch.ones(32)})),
    ):
        pass
