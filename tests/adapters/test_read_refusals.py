"""Adapters that are not plain LoRA, damaged or out of reach: refused, each by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_adapters import SETTINGS, TENSORS, peft_model, saved_by_peft, with_settings
from tangentlora.adapters import read_adapter
from tangentlora.errors import InputError
from tiny_networks import tiny_module

QUERY = "bert.encoder.layer.1.attention.self.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain adapter of BERT's queries, of rank 4 and alpha 12."""
    return saved_by_peft(
        tiny_module("bert"), tmp_path / "plain", target_modules=["query"], r=4, lora_alpha=12
    )


def test_an_unknown_setting_of_the_training_alone_may_be_removed(folder):
    path = folder / "adapter_config.json"
    plain = path.read_text()
    with pytest.raises(InputError, match=r"with future_rate = 0.1 .*; remove it from adapter_config.json if"):
        read_adapter(with_settings(folder, future_rate=0.1))
    path.write_text(plain)  # the remedy
    assert len(read_adapter(folder).layers) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora = True \(DoRA, .*\), expected plain LoRA, .* peft.save_as_lora"),
        ({"peft_type": "IA3"}, r"peft_type = 'IA3' \(another method than LoRA\)"),
        ({"peft_type": "VERA"}, "peft_type = 'VERA'"),
        ({"peft_type": None}, "peft_type = 'None'"),
        ({"lora_bias": True}, r"lora_bias = True \(a bias in lora_B"),
        ({"kasa_config": {"beta": 0.1}}, "KaSA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"velora_config": {"scale": 1.0}}, "VeLoRA"),
        ({"monteclora_config": {"num_samples": 2}}, "MonteCLoRA"),
        ({"arrow_config": {"top_k": 1}}, "Arrow, which chooses"),
        ({"alora_invocation_tokens": [3]}, "aLoRA"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"target_parameters": ["experts.up"]}, "parameters that no Linear owns"),
        ({"trainable_token_indices": [1]}, "trained rows of the embedding"),
        ({"use_future": 3}, r"use_future = 3 \(a setting that is not known here\)"),
        ({"init_lora_weights": "pissa"}, r"'pissa' \(PiSSA, .* path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, r"'pissa_niter_16' \(PiSSA"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA, which takes"),
        ({"init_lora_weights": "corda"}, "CorDA, which takes"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA, which takes"),
        ({"init_lora_weights": "loftq"}, "LoftQ, which replaces"),
        ({"init_lora_weights": "mica"}, "MiCA, which trains lora_A alone"),
        ({"init_lora_weights": "newest"}, "'newest' .an initialisation that is not known here"),
        ({"r": None}, r"cannot be told .* expected numbers r and lora_alpha"),
        ({"r": 0}, "cannot be told"),
        ({"rank_pattern": ["query"]}, "cannot be told"),
        ({"alpha_pattern": {"(": 2}}, "cannot be told"),
        ({"lora_alpha": -2}, "with the scaling -0.5 at .* expected a positive one; correct lora_alpha"),
        ({"r": math.inf}, r"cannot be told .* r a whole one"),
        ({"r": 4.5}, "cannot be told .* r = 4.5"),
        ({"r": "4"}, "cannot be told .* r = '4'"),
        ({"rank_pattern": {"query": True}}, "cannot be told .* r = True"),
        ({"lora_alpha": "12"}, "cannot be told .* alpha = '12'"),
        ({"target_modules": 5}, "target_modules = 5 .* expected a name or a list of names"),
        ({"target_modules": [1]}, r"target_modules = \[1\] .* expected a name or a list of names"),
        ({"modules_to_save": "pooler"}, "modules_to_save = 'pooler' .* expected a list of names"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5 .* expected a name"),
        ({"r": 8}, "a lora_A of 4 rows at .* and the rank 8 in its adapter_config.json, expected the same"),
    ],
)
def test_other_settings_are_refused_by_name(folder, changes, message):
    with pytest.raises(InputError, match=message) as refusal:
        read_adapter(with_settings(folder, **changes))
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal"])
def test_initialisations_that_leave_the_weights_are_read(folder, start):
    assert read_adapter(with_settings(folder, init_lora_weights=start)).layers


@pytest.mark.parametrize(
    ("start", "leaves"),
    [
        (True, True),
        (False, True),
        ("gaussian", True),
        ("eva", True),
        ("orthogonal", True),
        ("pissa", False),
        ("pissa_niter_4", False),
        ("olora", False),
    ],
)
def test_what_is_refused_is_what_changes_the_weights_in_peft(start, leaves, folder):
    plain = tiny_module("bert")
    model = peft_model(tiny_module("bert"), target_modules=["query"], r=4, init_lora_weights=start)
    found = model.get_base_model().get_submodule(QUERY).get_base_layer().weight
    assert torch.equal(found, plain.get_submodule(QUERY).weight) == leaves
    with_settings(folder, init_lora_weights=start)
    if leaves:
        assert read_adapter(folder).layers
    else:
        with pytest.raises(InputError, match="which takes its start"):
            read_adapter(folder)


A = torch.ones(4, 32)
PREFIXED = f"base_model.model.{QUERY}"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PREFIXED}.lora_magnitude_vector": torch.ones(32)}, "the magnitudes of DoRA"),
        ({"base_model.model.x.lora_embedding_A": A}, "LoRA on an embedding"),
        ({f"{PREFIXED}.lora_B.bias": torch.ones(32)}, "a bias in lora_B"),
        ({"base_model.model.e.token_adapter.trainable_tokens_delta": A}, "trained rows of an embedding"),
        ({f"{PREFIXED}.lora_diag": A}, "lora_diag .of a kind not known here.* train it again as plain LoRA"),
        ({f"{QUERY}.lora_A.weight": A}, "of a kind not known here"),
        ({"lora_unet_mid.alpha": torch.ones(1)}, "of a kind not known here"),
        ({"base_model.model.x.lora_A.weight": A}, "with lora_A alone at x, expected both factors"),
        ({f"{PREFIXED}.lora_B.weight": torch.ones(32, 3)}, r"expected \(r, n\) and \(m, r\)"),
        ({f"{PREFIXED}.lora_A.weight": torch.ones(4, 8, 2, 2)}, "leave layers that are no Linear"),
        ({f"{PREFIXED}.lora_A.weight": A.clone().fill_(math.nan)}, f"entries at {QUERY} that are not finite"),
        (
            {"base_model.model.classifier.weight": A.clone().fill_(math.inf)},
            "entries of classifier.weight that",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(folder, tensors, message):
    save_file(load_file(folder / TENSORS) | tensors, folder / TENSORS)
    with pytest.raises(InputError, match=message):
        read_adapter(folder)


def test_files_that_are_missing_or_damaged_are_refused(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"a folder without adapter_config.json, .*; name .*plain, which is one"
    ):
        read_adapter(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"without adapter_config.json, expected one that PEFT's .*; correct"
    ):
        read_adapter(tmp_path / "empty")
    weights, settings = (folder / TENSORS).read_bytes(), (folder / SETTINGS).read_text()
    (folder / TENSORS).write_bytes(weights[:50])
    with pytest.raises(InputError, match=r"with a damaged adapter_model.safetensors"):
        read_adapter(folder)
    (folder / TENSORS).rename(folder / "adapter_model.bin")
    with pytest.raises(
        InputError, match=r"adapter_model.bin is a pickle and never opened here; .* safe_serial"
    ):
        read_adapter(folder)
    save_file({"base_model.model.classifier.weight": A}, folder / TENSORS)
    with pytest.raises(InputError, match="without a single pair lora_A and lora_B"):
        read_adapter(folder)
    (folder / SETTINGS).write_text("[1]")
    with pytest.raises(InputError, match="is no JSON object"):
        read_adapter(folder)
    (folder / SETTINGS).write_text(settings[:40])
    with pytest.raises(InputError, match="expected the folder of a PEFT adapter"):
        read_adapter(folder)


def test_names_that_are_neither_folders_nor_within_reach_are_refused(folder):
    with pytest.raises(
        InputError, match=r"is no folder here, expected one with adapter_config.json or a hub id"
    ):
        read_adapter(folder / "nowhere")
    with pytest.raises(InputError, match="is no folder here"):
        read_adapter(folder / TENSORS)
    with pytest.raises(InputError, match=r"neither a folder here nor an adapter that the hub gave .*; check"):
        read_adapter("owner/adapter", revision="main")


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["value"]},
        {"target_modules": r".*layer\.0\..*query"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0, "layers_pattern": "layer"},
        {"exclude_modules": [QUERY]},
        {"exclude_modules": r".*layer\.1.*"},
        {"modules_to_save": ["attention"]},
    ],
)
def test_factors_that_peft_would_leave_out_are_refused(folder, changes):
    with pytest.raises(InputError, match=f"factors for .*{QUERY}.* does not adapt .* would leave out"):
        read_adapter(with_settings(folder, **changes))


@pytest.mark.parametrize(
    "targets", ["all-linear", None, r".*\.(query|value)", ["query", "key"], ["attention.self.query"]]
)
def test_configurations_that_adapt_more_or_by_other_names_are_read(folder, targets):
    assert QUERY in read_adapter(with_settings(folder, target_modules=targets)).layers


def test_patterns_that_are_none_are_refused(folder):
    with pytest.raises(InputError, match=r"target_modules = '\(' .* cannot be matched .* regular expression"):
        read_adapter(with_settings(folder, target_modules="("))


def test_settings_that_are_nested_without_end_are_refused(folder):
    (folder / SETTINGS).write_text("[" * 100_000)
    with pytest.raises(InputError, match="expected the folder of a PEFT adapter"):
        read_adapter(folder)


def test_complex_factors_are_refused_and_those_of_eight_bits_read(folder):
    tensors = load_file(folder / TENSORS)
    short = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    save_file(short, folder / TENSORS)
    found = read_adapter(folder).layers[QUERY]
    assert torch.equal(found.A, short[f"{PREFIXED}.lora_A.weight"].float())
    save_file({key: tensor.to(torch.complex64) for key, tensor in tensors.items()}, folder / TENSORS)
    with pytest.raises(InputError, match=r"complex factors at .*, expected real ones"):
        read_adapter(folder)
