"""Adapters compressed from their folders: written, loaded by PEFT, with what else they brought along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_adapters import loaded_by_peft, peft_model, saved_by_peft
from small_runs import LABELS, checkpoint, write_images, write_sentences
from tangentlora.adapters import read_adapter
from tangentlora.data import load_splits
from tangentlora.errors import InputError
from tangentlora.models.completion import Completion
from tangentlora.studies import compress_adapter as under_test
from tangentlora.studies.compress_adapter import compress, compress_adapter
from tangentlora.studies.opened import open_adapter
from tiny_networks import tiny_processor

HEAD = {"readout": "head", "head_init": "random"}


def module_of(folder: Path) -> Any:
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

    kind = AutoModelForImageClassification if folder.name == "vit" else AutoModelForSequenceClassification
    return kind.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True)


def adapter_on(folder: Path, kind: str, rank: int = 8, **settings: Any) -> Path:
    """Save an adapter with a trained head, on the tiny network `kind` with two labels."""
    modules = {"bert": ["query", "value"], "gpt2": ["c_attn"], "vit": ["q_proj", "v_proj"]}[kind]
    head = "score" if kind == "gpt2" else "classifier"
    given = {
        "target_modules": modules,
        "r": rank,
        "lora_alpha": 2 * rank,
        "modules_to_save": [head],
    } | settings
    module = module_of(checkpoint(folder, kind))
    return saved_by_peft(module, folder / f"{kind}-{rank}", **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compressed")
    write_sentences(made / "data.csv", 16)
    write_images(made / "images", LABELS)
    return made


def settings_for(folder: Path, kind: str) -> dict[str, Any]:
    data = folder / ("images" if kind == "vit" else "data.csv")
    return {"data": str(data), "model": str(folder / kind), **HEAD}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "vit"])
def test_the_written_adapter_is_smaller_and_says_in_peft_what_is_claimed(folder: Path, kind: str) -> None:
    adapter = adapter_on(folder, kind)
    output = folder / f"less-{kind}"
    with open_adapter(adapter, settings_for(folder, kind)) as opened:
        before = {name: w.clone() for name, w in opened.network.module.state_dict().items()}
        found, written = compress_adapter(opened, output)
        after = opened.network.module.state_dict()
        assert all(torch.equal(w, after[name]) for name, w in before.items())
        inputs, reader = opened.splits.train.inputs, opened.network.reader
        pad = getattr(getattr(reader, "encoder", None), "pad_id", None)  # what `collate` fills up with
    assert written is not None
    assert written.error <= written.tolerance == 1e-6
    assert "(tolerance 1.0e-6: met)" in written.message
    assert found.theorem_count <= found.constraints
    polished, peers = found.chosen, found.rows[-2:]
    assert polished.train.largest_change < min(peer.train.largest_change for peer in peers)
    config = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"]
    # the same in a process of the user's: a fresh base, PEFT's own loading, the original adapter's outputs
    tensors = reader.collate(reader.encode(inputs))
    fresh = {
        where: loaded_by_peft(module_of(folder / kind), where) for where in (adapter, output / "adapter")
    }
    for model in fresh.values():
        model.get_base_model().config.pad_token_id = pad
    with torch.no_grad():
        given, now = (model(**tensors).logits.double() for model in fresh.values())
    change = (now - given) - (now - given).mean(1, keepdim=True)
    assert float(change.abs().max()) == pytest.approx(polished.train.largest_change, abs=5e-6)
    kept, was = read_adapter(output / "adapter").saved, read_adapter(adapter).saved
    assert kept.keys() == was.keys() != set()
    assert all(torch.equal(kept[name], was[name]) for name in was)


def test_the_record_holds_the_rows_and_the_load_in_peft(folder: Path) -> None:
    record = json.loads((folder / "less-bert" / "compression.json").read_text())
    assert record["carried"] == ["classifier.bias", "classifier.weight"]
    assert 0 <= record["written"]["error"] <= record["written"]["tolerance"]
    assert record["asked"] == {"rank": None, "tolerance": None, "polish": True}
    assert [row["name"] for row in record["rows"]][:2] == ["no adapter", "given"]
    assert record["loss"] == "cross_entropy"


def test_an_adapter_that_lost_its_head_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = under_test.write_adapter
    monkeypatch.setattr(under_test, "write_adapter", lambda *a, **k: whole(*a, **(k | {"saved": {}})))
    said = pytest.raises(InputError, match=r"of the largest after loading .* with PEFT, expected those of")
    with open_adapter(adapter_on(folder, "bert"), settings_for(folder, "bert")) as opened, said:
        compress_adapter(opened, folder / "lost")


def test_the_table_is_narrow_and_says_what_was_carried(folder: Path) -> None:
    adapter, given = adapter_on(folder, "bert"), settings_for(folder, "bert")
    found = compress(adapter, given.pop("data"), rank=1, **given)
    text = found.table()
    assert max(map(len, text.splitlines())) <= 100
    # this adapter was drawn at random and makes the network worse, which is told first
    first, table = text.split("\n\n", 1)
    assert " ".join(first.split()) == found.headline
    assert first.startswith("The given adapter does not hold on the real network: its training loss rises")
    lines = table.splitlines()
    assert lines[0].split() == ["train", "(12)", "test", "(4)"] or lines[0].lstrip().startswith("train (")
    assert [line.split("  ")[0] for line in lines[3:9]] == [row.name for row in found.rows]
    assert set(found.chosen.ranks.values()) == {1}


def test_completions_are_compressed_by_their_likelihood(folder: Path) -> None:
    data = folder / "pairs.csv"
    rows = [f"the movie is, {word}" for word in ("good", "bad", "dull", "great", "funny", "slow")]
    data.write_text("prompt,completion\n" + "\n".join(rows) + "\n")
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(checkpoint(folder, "gpt2-lm"))
    adapter = saved_by_peft(module, folder / "lm", target_modules=["c_attn"], r=8, lora_alpha=8)
    found = compress(adapter, str(data), folder / "less-lm", model=str(folder / "gpt2-lm"))
    assert found.theorem_count <= found.constraints <= 6
    assert found.chosen.train.accuracy is None
    assert found.row("given").train.loss > 0
    assert found.chosen.train.largest_change < min(r.train.largest_change for r in found.rows[-2:])
    assert " – " in found.table()
    assert (folder / "less-lm" / "adapter" / "adapter_config.json").is_file()


def test_a_live_model_is_compressed_and_stays_as_it_is(folder: Path) -> None:
    module = module_of(checkpoint(folder, "bert"))
    model = peft_model(module, target_modules=["query", "value"], r=6, lora_alpha=6)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    splits = load_splits(str(folder / "data.csv"), None, seed=13, shots=None, test_limit=100)
    found = compress(model, splits, folder / "live", processor=tiny_processor("bert"))
    assert found.theorem_count <= found.constraints
    assert (folder / "live" / "adapter" / "adapter_model.safetensors").is_file()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(w, after[name]) for name, w in before.items())
    with pytest.raises(InputError, match="got a live PeftModel without its processor or"):
        compress(model, splits)


def test_what_cannot_be_carried_or_does_not_go_together_is_refused_before_the_work(folder: Path) -> None:
    biased = adapter_on(folder, "bert", 3, bias="all")
    said = pytest.raises(InputError, match=r"only part of .*train it with bias='none'")
    with open_adapter(biased, settings_for(folder, "bert")) as opened, said:
        compress_adapter(opened, folder / "never")
    assert not (folder / "never").exists()
    with pytest.raises(InputError, match="a readout object for the adapter folder"):
        compress(biased, str(folder / "data.csv"), readout=Completion())
    (folder / "file").write_text("kept")
    said = pytest.raises(InputError, match="is a file, expected a folder")
    with open_adapter(adapter_on(folder, "bert"), settings_for(folder, "bert")) as opened, said:
        compress_adapter(opened, folder / "file")
