"""What compress writes: for every readout, of live models all that their base's files lack, or nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from peft_adapters import loaded_by_peft, peft_model, peft_speaking, saved_by_peft
from small_runs import write_sentences
from tangentlora.errors import InputError
from tangentlora.studies import compress_adapter as under_test
from tangentlora.studies.audit import audit
from tangentlora.studies.compress_adapter import compress
from tiny_networks import tiny_checkpoint, tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("written")
    write_sentences(made / "data.csv", 12)
    for kind in ("bert", "bert-mlm", "roberta-mlm", "llama-lm"):
        tiny_checkpoint(made / kind, kind)
    return made


READERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "prototypes": (
        "bert",
        tf.AutoModel,
        {"readout": "prototypes", "prototypes": ("It was bad.", "It was good.")},
    ),
    "prompt": (
        "roberta-mlm",
        tf.AutoModelForMaskedLM,
        {"readout": "prompt", "template": "{text} It was {mask}.", "label_words": ("terrible", "great")},
    ),
}  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("reader", READERS)
def test_readers_that_keep_numbers_of_their_own_are_checked_too(folder: Path, reader: str) -> None:
    kind, auto, settings = READERS[reader]
    module = auto.from_pretrained(folder / kind)
    adapter = saved_by_peft(module, folder / f"{reader}-adapter", target_modules=["query", "value"], r=6)
    given = settings | {"model": str(folder / kind)}
    compress(adapter, str(folder / "data.csv"), folder / reader, **given)
    record = json.loads((folder / reader / "compression.json").read_text())
    assert 0 <= record["written"]["error"] <= record["written"]["tolerance"] == 1e-6
    assert sorted(path.name for path in (folder / reader).iterdir()) == ["adapter", "compression.json"]


def test_what_was_there_stays_until_all_checks_have_passed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, auto, settings = READERS["prototypes"]
    module = auto.from_pretrained(folder / "bert")
    adapter = saved_by_peft(module, folder / "kept-adapter", target_modules=["query"], r=4)
    given = settings | {"model": str(folder / "bert")}
    compress(adapter, str(folder / "data.csv"), folder / "kept", **given)
    before = files_of(folder / "kept")
    monkeypatch.setattr(under_test, "_difference", lambda *_: float("nan"))
    with pytest.raises(InputError, match="so that nothing was written"):
        compress(adapter, str(folder / "data.csv"), folder / "kept", rank=1, **given)
    assert files_of(folder / "kept") == before


def classifier(folder: Path, kind: str = "bert-mlm", **settings: Any) -> Any:
    """PEFT's model of a classifier of two labels, with whatever the files of the network lack drawn."""
    torch.manual_seed(3)
    module = tf.AutoModelForSequenceClassification.from_pretrained(
        folder / kind, num_labels=2, ignore_mismatched_sizes=True
    )
    return peft_model(module, **({"target_modules": ["query", "value"], "r": 4} | settings))


def log_probabilities(model: Any) -> torch.Tensor:
    batch = tiny_processor("bert")(["it was great", "the movie is dull"], padding=True, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**batch).logits.log_softmax(-1)
    return found


def test_weights_that_the_base_lacks_are_written_with_a_live_model(folder: Path) -> None:
    model = classifier(folder)
    data = folder / "asked.csv"
    data.write_text("text,label\nit was great,good\nthe movie is dull,bad\n")
    compress(model, str(data), folder / "pooled", processor=tiny_processor("bert"))
    record = json.loads((folder / "pooled" / "compression.json").read_text())
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= set(record["carried"])
    assert record["written"]["note"] == f"Checked on {folder / 'bert-mlm'}, loaded anew."
    torch.manual_seed(4)  # another draw of what the files lack
    fresh = tf.AutoModelForSequenceClassification.from_pretrained(folder / "bert-mlm", num_labels=2)
    again = loaded_by_peft(fresh, folder / "pooled" / "adapter")
    torch.testing.assert_close(log_probabilities(again), log_probabilities(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_trained_in_place_are_refused_by_name(folder: Path, bias: str) -> None:
    model = classifier(folder, bias=bias)
    with pytest.raises(InputError, match=r"own for .*query.bias.*, which are only part of .*bias='none'"):
        compress(model, str(folder / "data.csv"), folder / "biased", processor=tiny_processor("bert"))
    assert not (folder / "biased").exists()


def test_a_layer_that_was_trained_whole_without_a_word_is_written(folder: Path) -> None:
    model = classifier(folder, "bert", modules_to_save=["classifier"])
    with torch.no_grad():
        norm = model.get_base_model().bert.embeddings.LayerNorm
        norm.weight.mul_(1.5)
    data = folder / "data.csv"
    compress(model, str(data), folder / "normed", processor=tiny_processor("bert"))
    record = json.loads((folder / "normed" / "compression.json").read_text())
    assert [n for n in record["carried"] if "LayerNorm" in n] == [
        "bert.embeddings.LayerNorm.bias",
        "bert.embeddings.LayerNorm.weight",
    ]


def test_a_base_that_cannot_be_loaded_anew_is_said_and_what_it_trains_refused(folder: Path) -> None:
    model = classifier(folder, "bert", modules_to_save=["classifier"])
    model.peft_config["default"].base_model_name_or_path = "/gone/base"
    data, given = str(folder / "data.csv"), {"processor": tiny_processor("bert")}
    compress(model, data, folder / "unchecked", **given)
    note = json.loads((folder / "unchecked" / "compression.json").read_text())["written"]["note"]
    assert note.startswith("what was written was checked on the live network only, since its base cannot")
    model.get_base_model().bert.encoder.layer[0].attention.self.query.base_layer.bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"own for bert.encoder.layer.0.attention.self.query.bias"):
        compress(model, data, folder / "never", **given)


def test_a_grown_vocabulary_is_written_with_a_live_model(folder: Path) -> None:
    tokenizer = tiny_processor("llama-lm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>"]})
    module: Any = tf.AutoModelForCausalLM.from_pretrained(folder / "llama-lm")
    with peft_speaking():
        module.resize_token_embeddings(len(tokenizer))
    model = peft_model(module, target_modules=["q_proj"], r=2)
    pairs = folder / "pairs.csv"
    pairs.write_text("prompt,completion\n<|a|>it was, great\n<|a|>it was, bad\n<|a|>the movie, is dull\n")
    compress(model, str(pairs), folder / "grown", processor=tokenizer)
    record = json.loads((folder / "grown" / "compression.json").read_text())
    assert record["carried"] == ["lm_head.weight", "model.embed_tokens.weight"]


def state_of(model: Any) -> dict[str, Any]:
    """All of a live model that a visit could leave changed."""
    modules = dict(model.named_modules())
    return {
        "modules": {name: (id(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks))
                    for name, m in modules.items()},
        "parameters": {name: (id(p), p.requires_grad, p.dtype, p.grad is None)
                       for name, p in model.named_parameters()},
        "buffers": {name: (id(b), b.dtype) for name, b in model.named_buffers()},
        "config": copy.deepcopy(vars(model.config)),
        "peft": {name: copy.deepcopy(c.to_dict()) for name, c in model.peft_config.items()},
        "active": list(model.active_adapters),
    }  # fmt: skip


@pytest.mark.parametrize("verb", ["audit", "compress"])
def test_a_live_model_is_afterwards_exactly_as_before(folder: Path, verb: str) -> None:
    from peft import LoraConfig

    module: Any = tf.AutoModelForCausalLM.from_pretrained(folder / "llama-lm")
    module.config.pad_token_id = None
    module.model.register_buffer(
        "halves", torch.ones(2, dtype=torch.bfloat16), persistent=False
    )  # mixed types
    model = peft_model(module, target_modules=["q_proj"], r=2)
    with peft_speaking():
        model.add_adapter("other", LoraConfig(target_modules=["v_proj"], r=2))
    model.set_adapter("default")
    model.train()
    before, weights = state_of(model), {n: w.clone() for n, w in model.state_dict().items()}
    random = torch.random.get_rng_state()
    pairs = folder / "few.csv"
    pairs.write_text("prompt,completion\nit was, great\nit was, bad\nthe movie, is dull\n")
    if verb == "audit":
        audit(model, str(pairs), processor=tiny_processor("llama-lm"))
    else:
        compress(model, str(pairs), folder / "asbefore", processor=tiny_processor("llama-lm"))
    assert state_of(model) == before
    assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
