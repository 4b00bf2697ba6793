"""Adapters made by PEFT, read without it: the same outputs, updates and settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fake_network import examples_of, fake_network
from peft_adapters import TENSORS, loaded_by_peft, peft_model, saved_by_peft, with_settings
from tangentlora.adapters import LoraLayer, fitted, loaded_outputs, read_adapter, with_saved
from tangentlora.blocks import multiply
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tiny_networks import NETWORKS, tiny_module

QUERY = "bert.encoder.layer.1.attention.self.query"
KEY = f"base_model.model.{QUERY}.lora_A.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain adapter of BERT's queries, of rank 4 and alpha 12."""
    return saved_by_peft(
        tiny_module("bert"), tmp_path / "plain", target_modules=["query"], r=4, lora_alpha=12
    )


CASES = {
    "plain": ("bert", {"target_modules": ["query", "value"]}),
    "rslora": ("bert", {"target_modules": ["query"], "use_rslora": True, "r": 5, "lora_alpha": 7}),
    "patterns": (
        "bert",
        {
            "target_modules": ["query", "value", "dense"],
            "rank_pattern": {"query": 2, r"layer\.1\.attention\.self\.value": 5},
            "alpha_pattern": {r"layer\.0\.attention\.self\.value": 3, "query": 9},
        },
    ),
    "head": ("roberta", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "one module to save": ("bert", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "biases of the layers": ("bert", {"target_modules": ["query"], "bias": "lora_only"}),
    "all biases": ("bert", {"target_modules": ["query", "dense"], "bias": "all"}),
    "all biases, tied": ("bert-mlm", {"target_modules": ["query"], "bias": "all"}),
    "fused": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "SEQ_CLS"}),
    "Conv1D and Linear": ("gpt2", {"target_modules": ["c_attn", "c_proj", "score"], "fan_in_fan_out": True}),
    "grouped queries": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "embedding to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "images": ("vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}),
    "sound": ("wav2vec2", {"target_modules": ["q_proj"], "modules_to_save": ["classifier", "projector"]}),
    "gaussian": ("bert", {"target_modules": ["query"], "init_lora_weights": "gaussian"}),
    "orthogonal": ("bert", {"target_modules": ["query"], "init_lora_weights": "orthogonal"}),
    "random": ("bert", {"target_modules": ["query"], "init_lora_weights": False}),
    "some layers": ("bert", {"target_modules": ["query"], "layers_to_transform": [1]}),
    "all linear": ("bert", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
}


def in_float64(kind: str):
    """Return the module, its inputs and its reader; in float64, where only the factors' rounding is left."""
    module, tensors, read = NETWORKS[kind]()
    cast = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    return module.double(), cast, read


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_that_peft_gives(case, tmp_path):
    kind, settings = CASES[case]
    saved_by_peft(tiny_module(kind), tmp_path, **{"r": 4, "lora_alpha": 6} | settings)
    theirs, tensors, read_theirs = in_float64(kind)
    loaded_by_peft(theirs, tmp_path)
    expected = read_theirs(tensors).detach()
    module, _, read = in_float64(kind)
    network, inputs = fake_network(module, read), examples_of(tensors)
    f0 = network.predict(inputs)
    fit = fitted(read_adapter(tmp_path), module)
    with with_saved(network, fit.adapter) as base, attached(module, fit.targets, fit.factors):
        found = base.predict(inputs)
        assert (base is network) == (not fit.adapter.saved)
    scale = expected.abs().max()
    assert (expected - f0).abs().max() > 0.01 * scale
    assert (found - expected).abs().max() <= 1e-6 * scale
    assert torch.equal(network.predict(inputs), f0)


def test_outputs_are_those_of_the_projects_own_check(folder):
    module, tensors, read = in_float64("bert")
    network, inputs = fake_network(module, read), examples_of(tensors)
    expected = loaded_outputs(network, folder, inputs)
    fit = fitted(read_adapter(folder), module)
    with attached(module, fit.targets, fit.factors):
        found = network.predict(inputs)
    assert expected.dtype == torch.float64
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_updates_are_those_that_peft_merges(tmp_path):
    kind, settings = CASES["patterns"]
    model = peft_model(tiny_module(kind), **settings, use_rslora=True)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    deltas = multiply(adapter.factors)
    for name, delta in deltas.items():
        layer = model.get_base_model().get_submodule(name)
        merged = layer.get_delta_weight("default").double()
        torch.testing.assert_close(delta, merged, rtol=1e-6, atol=1e-6)
        assert adapter.layers[name].scaling == layer.scaling["default"]
        assert adapter.ranks[name] == layer.r["default"]
        assert adapter.alphas[name] == pytest.approx(layer.lora_alpha["default"])
        assert adapter.layers[name].shape == tuple(delta.shape)
    assert len(set(adapter.ranks.values())) == 3


def test_what_the_configuration_says_is_kept(tmp_path):
    saved_by_peft(tiny_module("roberta"), tmp_path, target_modules=["value", "query"], task_type="SEQ_CLS")
    with_settings(tmp_path, base_model_name_or_path="owner/base", revision="v2")
    adapter = read_adapter(str(tmp_path))
    assert (adapter.base_model, adapter.revision, adapter.task_type) == ("owner/base", "v2", "SEQ_CLS")
    assert adapter.target_modules == ("query", "value")
    assert not adapter.rslora
    assert adapter.name == str(tmp_path)
    assert sorted(adapter.saved) == [
        f"classifier.{part}.{kind}" for part in ("dense", "out_proj") for kind in ("bias", "weight")
    ]
    with_settings(
        tmp_path, target_modules=".*(query|value)", base_model_name_or_path="", revision=None, task_type=None
    )
    bare = read_adapter(tmp_path)
    assert (bare.base_model, bare.revision, bare.task_type) == (None, None, None)
    assert bare.target_modules == ".*(query|value)"


def test_lam_makes_the_penalty_on_the_factors_that_on_a_and_b(tmp_path):
    saved_by_peft(
        tiny_module("bert"), tmp_path, target_modules=["query"], r=4, alpha_pattern={r"layer\.0.*": 2}
    )
    adapter = read_adapter(tmp_path)
    lam = adapter.lam_of(0.3)
    assert sorted(lam.values()) == pytest.approx([0.3 * 4 / 8, 0.3 * 4 / 2])
    for name, (u, v) in adapter.factors.items():
        layer = adapter.layers[name]
        theirs = 0.15 * (layer.A.square().sum() + layer.B.square().sum())
        ours = lam[name] / 2 * (u.square().sum() + v.square().sum())
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(InputError, match=r"got a weight decay of .* give the one that"):
            adapter.lam_of(wrong)


def test_half_precision_files_are_read_in_float32(folder):
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    layer = read_adapter(folder).layers[QUERY]
    assert layer.A.dtype == torch.float32
    assert torch.equal(layer.A, tensors[KEY].float())


def test_hub_ids_are_read_from_the_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    stored = tmp_path / "cache" / "models--owner--adapter"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "v1").write_text("0" * 40)
    (stored / "snapshots").mkdir()
    folder.rename(stored / "snapshots" / ("0" * 40))
    adapter = read_adapter("owner/adapter", revision="v1")
    assert (adapter.name, list(adapter.ranks.values())) == ("owner/adapter", [4, 4])
    with pytest.raises(InputError, match="expected a PEFT adapter within reach"):
        read_adapter("owner/adapter", revision="v2")


def test_adapters_in_folders_of_a_hub_repository_are_named(folder, tmp_path, monkeypatch):
    """A longer name is no hub id, so that the remedy is a download; it is followed here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    stored = tmp_path / "cache" / "models--owner--several"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    snapshot = stored / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    folder.rename(snapshot / "second")
    with pytest.raises(InputError, match=r"in second and not itself, .*; download .* give the folder second"):
        read_adapter("owner/several")
    with pytest.raises(
        InputError, match=r"download that \(hf download owner/several\) and give the folder in"
    ):
        read_adapter("owner/several/second")
    assert read_adapter(snapshot / "second").layers
    with pytest.raises(InputError, match=r"; name .*second, which is one"):
        read_adapter(snapshot)


def test_a_layer_knows_its_update():
    layer = LoraLayer(torch.randn(3, 5), torch.randn(4, 3), 2.5)
    u, v = layer.factors()
    torch.testing.assert_close(u @ v.T, 2.5 * layer.B.double() @ layer.A.double())
    assert (layer.rank, layer.shape) == (3, (4, 5))
