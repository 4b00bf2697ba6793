"""README.md: front matter that a parser reads, numbers, limits, and nothing of the machine it was made on."""

from __future__ import annotations

from pathlib import Path

import yaml

from report import run_folders as made
from tangentlora.report.card import write_card
from tangentlora.report.loading import public_name


def card(path: Path, values: dict, proof: dict | None = None) -> tuple[dict, str]:
    text = write_card(made.write(path, values, proof)).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_holds_the_front_matter_results_and_limits(tmp_path: Path) -> None:
    made.write(tmp_path, made.demo()).write_json("adapter/adapter_config.json", {"r": 3})
    front, body = card(tmp_path, made.demo(), made.certificate())
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["library_name"] == "peft"
    assert "lora" in front["tags"]
    assert "| objective | 0.7312465000 |" in body
    assert "| relative gap | 3.1e-10 |" in body
    assert "| before training | 1.180 | 0.580 | 1.200 | 0.560 |" in body
    assert "| real, with the update | 0.410 | 0.900 | 0.950 | 0.699 |" in body
    assert "encoder.layer.5.attention.self.value: 3" in body
    assert "PeftModel.from_pretrained" in body
    assert "It proves nothing about the real one" in body


def test_tables_are_not_broken_by_blank_lines(tmp_path: Path) -> None:
    _, body = card(tmp_path, made.demo(), made.certificate())
    lines = body.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(rules) == 2
    assert all(lines[i - 1].startswith("|") and lines[i + 1].startswith("|") for i in rules)


def test_hostile_text_is_neither_html_nor_markdown(tmp_path: Path) -> None:
    values = made.demo()
    values["data"] |= {"label_names": ["<script>alert(1)</script>", "a|b", "[x](y)\n# top"], "task": "`rm`"}
    values["configuration"]["model"] = 'x"\nlicense: "evil'
    front, body = card(tmp_path, values)
    assert front["base_model"] == 'x"\nlicense: "evil'
    assert "license" not in front
    assert "<script" not in body
    assert "&lt;script&gt;" in body
    assert "a\\|b" in body
    assert "\\[x\\]\\(y\\) # top" in body
    assert "\n# top" not in body
    assert "\\`rm\\`" in body


def test_a_local_folder_is_named_by_its_last_part_only(tmp_path: Path) -> None:
    values = made.demo()
    values["configuration"]["model"] = "/home/someone/models/roberta"
    front, body = card(tmp_path, values)
    assert front["base_model"] == "roberta"
    assert "someone" not in body
    assert public_name("C:\\models\\roberta") == "roberta"
    assert public_name("owner/roberta") == "owner/roberta"


def test_without_adapter_certificate_or_test_set(tmp_path: Path) -> None:
    values = made.run([made.answer("LoRA r=8", None, rank=8, ranks={})], test_set=False)
    _, body = card(tmp_path, values)
    assert "No adapter comes with this run." in body
    assert "There is no certificate" in body
    assert "No held-out rows: the accuracies are on the training rows." in body
    assert "held-out accuracy" not in body
    assert "from_pretrained" not in body
