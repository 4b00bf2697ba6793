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
        readout = Completion(128)
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
    module = load_network(str(pairs.base), Completion(128)).module
    dora = saved_by_peft(
        module, tmp_path / "dora", use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True
    )
    assert_bad_input(pairs.audit(dora), "DoRA", capsys)
    adapter = shell.run / "adapter"
    assert_bad_input(
        ["audit", str(adapter), "--lam", "0.1", "--weight-decay", "0.1", "--quiet"], "both --lam", capsys
    )
    assert_bad_input(["audit", str(adapter), "--lam", "-1", "--quiet"], "λ = -1", capsys)
    assert_bad_input(["audit", str(tmp_path / "none"), "--quiet"], "no folder here", capsys)
    assert_bad_input(["audit"], "ADAPTER", capsys)
    plain = saved_by_peft(
        load_network(str(pairs.base), Completion(128)).module, tmp_path / "plain", target_modules=["c_attn"]
    )
    assert_bad_input(["audit", str(plain), "--quiet"], "give --data", capsys)
