"""`tangentlora audit` as the command line runs it: completions, adapters of fit, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Captured, Shell, assert_bad_input, status_of
from peft_adapters import peft_speaking, saved_by_peft
from tangentlora.data import load_splits
from tangentlora.models.completion import Completion
from tangentlora.models.load import load_network
from tangentlora.problem.losses import Likelihood
from tiny_networks import tiny_checkpoint
from trained_adapters import trained

pytestmark = pytest.mark.usefixtures("restored_logging")

DECAY = 0.05


class Pairs:
    """A folder with a tiny GPT-2, prompts with completions, and adapters that PEFT trained on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, tiny_checkpoint(folder / "gpt2", "gpt2-lm")
        self.data = folder / "pairs.csv"
        with self.data.open("w", newline="") as file:
            kinds = (("great", "funny", "good"), ("terrible", "dull", "bad"))
            rows = [("prompt", "completion")]
            rows += [(f"the {noun} was {word}", f" it is {words[0]}") for words in kinds
                     for word in words for noun in ("movie", "plot")]  # fmt: skip
            csv.writer(file).writerows(rows)

    def adapter(self, name: str, *, rank: int, steps: int) -> Path:
        readout = Completion(64)
        network: Any = load_network(str(self.base), readout)
        model = trained(
            network.module,
            network.reader.network.tokens.tokenizer,
            readout,
            load_splits(str(self.data)).train,
            rank=rank,
            weight_decay=DECAY,
            steps=steps,
            targets=("h.1.attn.c_attn",),
            loss=Likelihood(),
            frozen=(network.module.transformer.h[0],),
        )
        with peft_speaking():
            model.save_pretrained(self.folder / name)
        return self.folder / name

    def audit(self, adapter: Path, *options: str) -> list[str]:
        return ["audit", str(adapter), "--data", str(self.data), "--quiet", *options]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which fit wrote an adapter."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    assert status_of(made.fit("--lam", "0.05", "--quiet")) == 0
    return made


def test_completions_from_end_to_end(pairs: Pairs, capsys: Captured) -> None:
    short, rested = pairs.adapter("short", rank=2, steps=2), pairs.adapter("rested", rank=16, steps=400)
    decay = ("--weight-decay", str(DECAY))
    capsys.readouterr()
    assert status_of(pairs.audit(short, *decay)) == 0
    text = capsys.readouterr().out
    assert text.startswith("Undertrained")
    assert "completions" in text
    assert "accuracy" not in text
    assert status_of(pairs.audit(short, *decay, "--strict")) == 1
    capsys.readouterr()
    assert status_of(pairs.audit(rested, *decay, "--strict", "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "WASTEFUL"
    assert said["lam"]["explained"] > 0.99
    assert said["after"]["loss"] < said["before"]["loss"]
    assert said["after"]["accuracy"] is None
    assert "linear in the outputs" in said["local"]["missing"]


def test_an_adapter_of_fit_brings_its_network_its_data_and_its_lam(shell: Shell, capsys: Captured) -> None:
    capsys.readouterr()
    adapter = str(shell.run / "adapter")
    assert status_of(["audit", adapter, "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["lam"]["source"] == "recorded"
    assert set(said["lam"]["by_layer"].values()) == {0.05}
    assert said["n_examples"] == 18  # a quarter of the 24 was held out
    assert status_of(["audit", adapter, "--lam", "0", "--strict", "--no-local", "--quiet"]) == 1
    text = capsys.readouterr().out
    assert "λ = 0, as given" in text
    assert "it was not asked for" in text


def test_what_cannot_be_audited_is_refused_in_one_line(
    pairs: Pairs, shell: Shell, tmp_path: Path, capsys: Captured
) -> None:
    module = load_network(str(pairs.base), Completion(64)).module
    dora = saved_by_peft(
        module, tmp_path / "dora", use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True
    )
    assert_bad_input(pairs.audit(dora), "DoRA", capsys)
    adapter = shell.run / "adapter"
    assert_bad_input(
        ["audit", str(adapter), "--lam", "0.1", "--weight-decay", "0.1", "--quiet"], "both --lam", capsys
    )
    assert_bad_input(["audit", str(adapter), "--lam", "-1", "--quiet"], "λ = -1", capsys)
    assert_bad_input(["audit", str(adapter), "--lam", "nan", "--quiet"], "λ = nan", capsys)
    assert_bad_input(["audit", str(adapter), "--weight-decay", "-1", "--quiet"], "decay w = -1", capsys)
    assert_bad_input(["audit", str(tmp_path / "none"), "--quiet"], "no folder here", capsys)
    assert_bad_input(["audit"], "ADAPTER", capsys)
    plain = saved_by_peft(
        load_network(str(pairs.base), Completion(64)).module, tmp_path / "plain", target_modules=["c_attn"]
    )
    assert_bad_input(["audit", str(plain), "--quiet"], "give --data", capsys)


def classifier(folder: Path, names: tuple[str, ...]) -> tuple[Path, Any]:
    """Return a checkpoint whose head has outputs of these names, and its module."""
    from transformers import AutoModelForSequenceClassification

    base = tiny_checkpoint(folder / "base", "bert")
    module: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(names), ignore_mismatched_sizes=True
    )
    module.config.id2label = dict(enumerate(names))
    with peft_speaking():
        module.save_pretrained(base)
    return base, module


def test_labels_that_do_not_fit_the_head_are_refused(shell: Shell, tmp_path: Path, capsys: Captured) -> None:
    base, module = classifier(tmp_path / "two", ("good", "bad"))
    module.name_or_path = str(base)
    swapped = saved_by_peft(module, tmp_path / "swapped", target_modules=["query", "value"])
    head = ("--readout", "head", "--head-init", "checkpoint", "--quiet")
    arguments = ["audit", str(swapped), "--model", str(base), "--data", str(shell.data), *head]
    capsys.readouterr()
    assert status_of([*arguments, "--no-local", "--json"]) == 0  # its names say which output is which
    assert json.loads(capsys.readouterr().out)["n_examples"] > 0
    base, _ = classifier(tmp_path / "other", ("LABEL_0", "LABEL_1"))
    _, module = classifier(tmp_path / "three", ("a", "b", "c"))
    wide = saved_by_peft(module, tmp_path / "wide", target_modules=["query"], task_type="SEQ_CLS")
    arguments = ["audit", str(wide), "--model", str(base), "--data", str(shell.data), "--quiet"]
    assert_bad_input(arguments, "outputs are LABEL_0, LABEL_1, LABEL_2 in this order, and data whose", capsys)


def test_an_adapter_that_was_never_trained(shell: Shell, tmp_path: Path, capsys: Captured) -> None:
    from peft import LoraConfig, get_peft_model

    base, module = classifier(tmp_path / "two", ("LABEL_0", "LABEL_1"))
    with peft_speaking():
        get_peft_model(module, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "zero")
    arguments = ["audit", str(tmp_path / "zero"), "--model", str(base), "--data", str(shell.data), "--quiet"]
    arguments += ["--readout", "head", "--head-init", "checkpoint", "--lam", "0.01"]
    capsys.readouterr()
    assert status_of([*arguments, "--strict"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("Without effect")
    assert "δ = 0: from W to there is no way" in text
    assert "rests at a strict saddle" in text
    assert "rank 0 suffices" in text
    assert "100.0%" not in text
    assert status_of([*arguments, "--json"]) == 0
    assert "Infinity" not in capsys.readouterr().out
