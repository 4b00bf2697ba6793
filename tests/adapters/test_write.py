"""What stands in an adapter folder, and what stands there when writing fails."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import nn

from random_factors import random_factors
from tangentlora.adapters import write_adapter
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.targets import Target, find_targets
from tiny_networks import tiny_module

FILES = ("adapter_config.json", "adapter_model.safetensors")
LAYER = "bert.encoder.layer.{}.attention.self.{}"


def settings_of(folder: Path) -> dict:
    return json.loads((folder / FILES[0]).read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def bert() -> nn.Module:
    return tiny_module("bert")


@pytest.fixture(scope="module")
def targets(bert) -> list[Target]:
    return find_targets(bert, ("query", "value"), "all")


@pytest.fixture
def write(bert, targets, tmp_path):
    def written(factors: Factors, name: str = "adapter") -> Path | None:
        return write_adapter(factors, targets, tmp_path / name, module=bert, base_model="who/what")

    return written


def test_the_file_holds_v_transposed_as_a_and_u_as_b_of_the_layers_of_positive_rank(write, targets):
    factors = random_factors(targets, (2, 0, 9, 1))
    tensors = load_file(write(factors) / FILES[1])
    adapted = [LAYER.format(0, "query"), LAYER.format(1, "query"), LAYER.format(1, "value")]
    assert set(tensors) == {f"base_model.model.{name}.lora_{X}.weight" for name in adapted for X in "AB"}
    for name in adapted:
        u, v = factors[name]
        for letter, expected in (("A", v.T), ("B", u)):
            tensor = tensors[f"base_model.model.{name}.lora_{letter}.weight"]
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor.double(), expected)


def test_the_configuration_gives_every_layer_its_rank_and_a_scaling_of_one(write, targets):
    settings = settings_of(write(random_factors(targets, (2, 0, 9, 1))))
    assert settings["peft_type"] == "LORA"
    assert settings["task_type"] is None
    assert settings["base_model_name_or_path"] == "who/what"
    assert settings["auto_mapping"]["base_model_class"] == "BertForSequenceClassification"
    assert settings["target_modules"] == [
        LAYER.format(0, "query"),
        LAYER.format(1, "query"),
        LAYER.format(1, "value"),
    ]
    assert settings["exclude_modules"] is None
    assert settings["fan_in_fan_out"] is False
    assert settings["inference_mode"] is True
    assert settings["r"] == settings["lora_alpha"] == 9
    assert settings["rank_pattern"] == settings["alpha_pattern"]
    assert settings["rank_pattern"] == {
        r"^bert\.encoder\.layer\.0\.attention\.self\.query": 2,
        r"^bert\.encoder\.layer\.1\.attention\.self\.value": 1,
    }


def test_the_revision_is_passed_on(bert, targets, tmp_path):
    factors = random_factors(targets, (1, 1, 1, 1))
    folder = write_adapter(factors, targets, tmp_path, module=bert, base_model="who/what", revision="abc")
    assert settings_of(folder)["revision"] == "abc"
    assert settings_of(folder)["rank_pattern"] == {}


def test_parts_of_a_fused_weight_share_an_adapter(tmp_path):
    module = tiny_module("gpt2")
    targets = find_targets(module, ("query", "value"), "all")
    factors = random_factors(targets, (2, 3, 0, 4))
    folder = write_adapter(factors, targets, tmp_path, module=module, base_model="gpt2")
    tensors, settings = load_file(folder / FILES[1]), settings_of(folder)
    assert settings["fan_in_fan_out"] is True
    assert settings["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert settings["r"] == 5
    assert settings["rank_pattern"] == {r"^transformer\.h\.1\.attn\.c_attn": 4}
    (u_q, v_q), (u_v, v_v) = (factors[f"transformer.h.0.attn.c_attn:{part}"] for part in ("query", "value"))
    A, B = (tensors[f"base_model.model.transformer.h.0.attn.c_attn.lora_{X}.weight"].double() for X in "AB")
    assert torch.equal(A, torch.cat([v_q.T, v_v.T]))
    expected = torch.block_diag(u_q, torch.zeros(32, 0), u_v)
    assert B.shape == (96, 5)
    assert torch.equal(B, expected)


def test_modules_whose_names_end_like_a_target_are_excluded(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    targets = find_targets(module, ("0",), "all")[:1]
    assert targets[0].name == "0"
    factors = random_factors(targets, (1,))
    folder = write_adapter(factors, targets, tmp_path, module=module, base_model="toy")
    assert settings_of(folder)["exclude_modules"] == ["1.0"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    config = tf.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=8
    )
    module = tf.BertModel(config)
    targets = find_targets(module, ("query", "value"), "all")
    for name in ("one", "two"):
        factors = random_factors(targets, range(1, 25))
        write_adapter(factors, targets, tmp_path / name, module=module, base_model="who/what")
        torch.rand(7)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # The order is the network's, not that of a set, which would differ from process to process.
    assert settings_of(tmp_path / "one")["target_modules"] == [target.name for target in targets]


def test_an_answer_of_rank_zero_writes_nothing(write, targets, tmp_path):
    assert write(random_factors(targets, (0, 0, 0, 0))) is None
    assert list(tmp_path.iterdir()) == []


def test_an_answer_of_rank_zero_removes_an_earlier_adapter_alone(write, targets):
    folder = write(random_factors(targets, (1, 1, 1, 1)))
    (folder / "README.md").write_text("kept")
    assert write(random_factors(targets, (0, 0, 0, 0))) is None
    assert contents(folder) == {"README.md": b"kept"}


def test_an_earlier_adapter_is_replaced_and_other_files_stay(write, targets, tmp_path):
    folder = write(random_factors(targets, (1, 1, 1, 1)))
    (folder / "README.md").write_text("kept")
    write(random_factors(targets, (3, 1, 2, 4)))
    fresh = write(random_factors(targets, (3, 1, 2, 4)), "fresh")
    assert contents(folder) == contents(fresh) | {"README.md": b"kept"}
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "fresh"}


def test_a_write_that_fails_leaves_the_earlier_adapter(write, targets, tmp_path, monkeypatch):
    folder = write(random_factors(targets, (1, 1, 1, 1)))
    before = contents(folder)

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write(random_factors(targets, (3, 1, 2, 4)))
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("moves", [0, 1])
def test_a_run_that_is_killed_leaves_no_mixture_of_two_adapters(write, targets, monkeypatch, moves):
    folder = write(random_factors(targets, (1, 1, 1, 1)))
    done: list[Path] = []

    def killed(source, destination):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(Path(destination).write_bytes(Path(source).read_bytes()))

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(random_factors(targets, (3, 1, 2, 4)))
    assert FILES[0] not in contents(folder)


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1e39])
def test_entries_that_float32_cannot_hold_are_refused(write, targets, tmp_path, entry):
    factors = random_factors(targets, (1, 1, 1, 1))
    factors[targets[2].name][1][3, 0] = entry
    with pytest.raises(
        InputError, match=f"got factors of {targets[2].name} with entries that are not finite"
    ):
        write(factors)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folder_s_place_is_refused(write, targets, tmp_path):
    (tmp_path / "adapter").write_text("mine")
    for ranks in ((1, 1, 1, 1), (0, 0, 0, 0)):
        with pytest.raises(InputError, match="which is a file, expected a folder; choose another path"):
            write(random_factors(targets, ranks))
    assert (tmp_path / "adapter").read_text() == "mine"


def test_factors_that_do_not_fit_are_refused(write, targets, tmp_path):
    with pytest.raises(InputError, match="do not match the targets"):
        write(random_factors(targets[:2], (1, 1)))
    assert list(tmp_path.iterdir()) == []
