"""What neither the base's files nor the adapter hold is refused; what the adapter brings along is used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from peft_adapters import TENSORS, loaded_by_peft, peft_speaking, saved_by_peft, with_settings
from small_runs import write_images, write_sentences, write_sounds
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.load import load_network
from tangentlora.models.prompt import MaskPrompt
from tangentlora.studies.opened import open_adapter
from tiny_networks import tiny_checkpoint, tiny_processor

CONFIGURATION = "config.json"


def base_of(folder: Path, kind: str) -> Path:
    return folder / kind if (folder / kind).exists() else tiny_checkpoint(folder / kind, kind)


def data_for(folder: Path, kind: str) -> Path:
    """Two classes of sentences, images or sounds."""
    made = folder / f"data-{kind}"
    if kind in ("vit", "clip"):
        return made if made.exists() else write_images(made)
    if kind == "wav2vec2":
        return made if made.exists() else write_sounds(made)
    return write_sentences(folder / "data.csv")


def adapter_for(base: Path, auto: Any, **settings: Any) -> Path:
    """An adapter on a classifier of two labels made from these files; what they lack is drawn from a seed."""
    torch.manual_seed(5)
    module = auto.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True)
    return saved_by_peft(module, base.parent / f"{base.name}-adapter", **settings)


TEXT, SOUND = tf.AutoModelForSequenceClassification, tf.AutoModelForAudioClassification


@pytest.mark.parametrize(
    ("kind", "auto", "lost"),
    [
        ("bert-mlm", TEXT, "bert.pooler.dense.bias, bert.pooler.dense.weight"),
        ("wav2vec2", SOUND, "projector.bias, projector.weight"),
    ],
)
def test_weights_that_nobody_has_are_refused_by_name(tmp_path: Path, kind: str, auto: Any, lost: str) -> None:
    base = base_of(tmp_path, kind)
    if kind == "wav2vec2":
        weights = load_file(base / "model.safetensors")
        kept = {name: t for name, t in weights.items() if not name.startswith(("projector", "classifier"))}
        save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    targets = ["q_proj"] if kind == "wav2vec2" else ["query"]
    settings = {"target_modules": targets, "modules_to_save": ["classifier"]}
    adapter = adapter_for(base, auto, **settings)
    given = {"model": str(base), "data": str(data_for(tmp_path, kind)), "readout": "head"}
    said = pytest.raises(InputError, match=rf"{lost}, expected .* the adapter does not hold them either")
    with said, open_adapter(adapter, given):
        pass
    module = lost.split(".dense")[0].split(".")[0 if kind == "wav2vec2" else 1]
    whole = adapter_for(base, auto, **settings | {"modules_to_save": ["classifier", module]})
    with open_adapter(whole, given) as opened:
        assert lost.split(", ")[0] in opened.adapter.saved
        expected = loaded_by_peft(auto.from_pretrained(base, num_labels=2), whole)
        inputs, reader = opened.splits.train.inputs, opened.network.reader
        with attached(opened.network.module, opened.targets, opened.factors):
            found = opened.network.predict(inputs)
        for i, features in enumerate(reader.encode(inputs)):
            with torch.no_grad():
                alone = expected(**reader.collate([features])).logits[0]
            torch.testing.assert_close(found[i], alone, rtol=1e-4, atol=1e-4)


def test_weights_on_which_no_output_depends_may_be_missing(tmp_path: Path) -> None:
    base = base_of(tmp_path, "wav2vec2")
    weights = load_file(base / "model.safetensors")
    assert weights.pop("wav2vec2.masked_spec_embed") is not None  # read in training alone
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    network = load_network(str(base), ClassificationHead(3, modality="audio", max_seconds=0.05))
    assert network.predict(tuple(torch.randn(2, 800).numpy())).shape == (2, 3)


def test_rows_of_a_head_that_a_prompt_copies_may_not_be_missing(tmp_path: Path) -> None:
    base = base_of(tmp_path, "roberta-mlm")
    weights = load_file(base / "model.safetensors")
    assert weights.pop("lm_head.bias") is not None
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"without weights of the right shape for lm_head.bias, lm_head.decoder.bias"
    ):
        load_network(str(base), MaskPrompt("{text} It was {mask}.", ("terrible", "great")))


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"modules_to_save": ["classifier"]}, "classifier.weight"),
        (
            {"bias": "all", "modules_to_save": ["classifier"]},
            "bert.encoder.layer.1.attention.self.query.bias",
        ),
        ({"bias": "lora_only", "modules_to_save": ["classifier"]}, "layer.0.attention.self.query.bias"),
    ],
)
def test_what_the_configuration_promises_must_be_in_the_file(
    tmp_path: Path, settings: dict[str, Any], lost: str
) -> None:
    base = base_of(tmp_path, "bert")
    TEXT.from_pretrained(base, num_labels=2, ignore_mismatched_sizes=True).save_pretrained(base)
    adapter = adapter_for(base, TEXT, target_modules=["query"], **settings)
    given = {"model": str(base), "data": str(data_for(tmp_path, "bert")), "readout": "head"}
    with open_adapter(adapter, given) as opened:
        assert [name for name in opened.adapter.saved if name.endswith(lost)]
    tensors = load_file(adapter / TENSORS)
    kept = {name: t for name, t in tensors.items() if not name.replace(".base_layer", "").endswith(lost)}
    assert len(kept) == len(tensors) - 1
    save_file(kept, adapter / TENSORS)
    with pytest.raises(InputError, match=lost), open_adapter(adapter, given):
        pass


def causal(tmp_path: Path, rows: int, **settings: Any) -> tuple[Path, Path, Any]:
    """A Llama of 64 rows, an adapter trained with a tokenizer of two tokens more, and that tokenizer."""
    base, tokenizer = base_of(tmp_path, "llama-lm"), tiny_processor("llama-lm")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    module: Any = tf.AutoModelForCausalLM.from_pretrained(base)
    if rows > module.config.vocab_size:
        with peft_speaking():
            module.resize_token_embeddings(rows)
    adapter = saved_by_peft(module, tmp_path / "adapter", target_modules=["q_proj"], **settings)
    tokenizer.save_pretrained(adapter)
    (tmp_path / "pairs.csv").write_text(
        "prompt,completion\n" + "".join(f"<|user|>the movie is, {word}<|end|>\n" for word in ("good", "bad"))
    )
    return base, adapter, tokenizer


def test_a_vocabulary_that_grew_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    rows = len(tiny_processor("llama-lm")) + 2
    base, adapter, tokenizer = causal(tmp_path, rows, modules_to_save=["embed_tokens", "lm_head"])
    given = {"model": str(base), "data": str(tmp_path / "pairs.csv")}
    fresh: Any = tf.AutoModelForCausalLM.from_pretrained(base)
    fresh.resize_token_embeddings(rows)
    expected = loaded_by_peft(fresh, adapter)
    with open_adapter(adapter, given) as opened:
        reader = opened.network.reader
        features = reader.encode(opened.splits.train.inputs)
        with attached(opened.network.module, opened.targets, opened.factors):
            found = opened.network.predict(opened.splits.train.inputs)
        assert [note for note in opened.notes if "tokenizer is the one beside the adapter" in note]
        assert tokenizer.convert_tokens_to_ids("<|end|>") == int(features[0]["input_ids"][-1])
        for i, one in enumerate(features):
            n = int(one["completion"].sum())
            with torch.no_grad():
                log_p = expected(one["input_ids"].unsqueeze(0)).logits[0].log_softmax(-1)
            own = log_p[:-1].gather(1, one["input_ids"][1:].unsqueeze(1))[-n:]
            torch.testing.assert_close(found[i], own.mean(0), rtol=1e-4, atol=1e-4)


def test_a_vocabulary_that_grew_without_its_rows_is_refused(tmp_path: Path) -> None:
    base, adapter, _ = causal(tmp_path, 0)
    given = {"model": str(base), "data": str(tmp_path / "pairs.csv")}
    with open_adapter(adapter, given) as opened, pytest.raises(InputError, match=r"with the token '<\|"):
        opened.cut()
    rows = len(tiny_processor("llama-lm")) + 2
    shutil.rmtree(adapter)
    _, adapter, _ = causal(tmp_path, rows, modules_to_save=["embed_tokens"])
    tensors = load_file(adapter / TENSORS)
    save_file({k: t for k, t in tensors.items() if "lm_head" not in k}, adapter / TENSORS)
    with pytest.raises(InputError, match=r"lm_head.weight, expected"), open_adapter(adapter, given):
        pass


def test_the_same_tokenizer_is_not_spoken_of(tmp_path: Path) -> None:
    base = base_of(tmp_path, "bert")
    adapter = adapter_for(base, TEXT, target_modules=["query"], modules_to_save=["classifier"])
    given = {"model": str(base), "data": str(data_for(tmp_path, "bert"))}
    tiny_processor("bert").save_pretrained(adapter)
    with open_adapter(adapter, given) as opened:
        assert opened.notes == ()
    lower = tiny_processor("bert")
    lower.chat_template = "{{ messages[0]['content'] }}"
    lower.save_pretrained(adapter)
    with open_adapter(adapter, given) as opened:
        assert opened.notes == (
            "The tokenizer is the one beside the adapter, which differs from the base model's in its chat "
            "template.",
        )
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="files of a tokenizer or processor that cannot be loaded"):  # noqa: SIM117
        with open_adapter(adapter, given):
            pass


def test_an_image_processor_beside_the_adapter_is_used(tmp_path: Path) -> None:
    base = base_of(tmp_path, "vit")
    adapter = adapter_for(
        base, tf.AutoModelForImageClassification, target_modules=["q_proj"], modules_to_save=["classifier"]
    )
    processor = tiny_processor("vit")
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(adapter)
    given = {"model": str(base), "data": str(data_for(tmp_path, "vit"))}
    with open_adapter(adapter, given) as opened:
        (note,) = opened.notes
        assert note == (
            "The processor is the one beside the adapter, which differs from the base model's in its "
            "settings."
        )
        encoder: Any = opened.network.reader
        assert list(encoder.encoder.processor.image_mean) == [0.1, 0.2, 0.3]


def test_base_and_adapter_in_one_folder_are_read_each_for_itself(tmp_path: Path) -> None:
    base = base_of(tmp_path, "bert")
    adapter = adapter_for(base, TEXT, target_modules=["query"], modules_to_save=["classifier"])
    given = {"data": str(data_for(tmp_path, "bert"))}
    with open_adapter(adapter, given | {"model": str(base)}) as opened:
        apart = opened.network.predict(opened.splits.train.inputs)
        fingerprint = opened.network.fingerprint
    for path in adapter.iterdir():
        shutil.copyfile(path, base / path.name)
    with_settings(base, base_model_name_or_path=str(base))
    with open_adapter(base, given) as opened:
        assert opened.network.fingerprint == fingerprint
        assert torch.equal(opened.network.predict(opened.splits.train.inputs), apart)
        assert opened.notes == ()
    with_settings(base, base_model_name_or_path="/gone/base")
    with open_adapter(base, given) as opened:
        assert opened.network.fingerprint == fingerprint
        assert opened.notes == (
            "The base model that the adapter names, /gone/base, is not here; it is the one beside it.",
        )
