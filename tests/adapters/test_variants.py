"""Every setting of PEFT's LoraConfig: the outputs that PEFT gives, in float64, or a refusal by name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_network import examples_of, fake_network
from peft_adapters import loaded_by_peft, saved_by_peft
from tangentlora.adapters import fitted, read_adapter, with_saved
from tangentlora.adapters.config import KNOWN
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tiny_networks import NETWORKS, tiny_module

Q, V = "query", "value"
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("bert", {"target_modules": [Q, V], "r": 4, "lora_alpha": 7}),
    "all-linear": ("bert", {"target_modules": "all-linear"}),
    "regular expression": ("bert", {"target_modules": r".*\.layer\.1\..*(query|value)"}),
    "layers": ("bert", {"target_modules": [Q], "layers_to_transform": [1], "layers_pattern": "layer"}),
    "exclude": ("bert", {"target_modules": [Q, V], "exclude_modules": ["layer.0.attention.self.value"]}),
    "exclude by expression": ("bert", {"target_modules": [Q, V], "exclude_modules": r".*\.0\..*value"}),
    "rslora": ("bert", {"target_modules": [Q], "r": 5, "lora_alpha": 3, "use_rslora": True}),
    # the first pattern that matches decides, and a pattern matches the end of a name
    "patterns": (
        "bert",
        {
            "target_modules": [Q, V],
            # PEFT sorts what it saves
            "rank_pattern": {"layer.1.attention.self.query": 6, r"layer\.1\..*": 3, "query": 2},
            "alpha_pattern": {r".*\.0\.attention.*": 9, "^bert.encoder.layer.1.*": 11, "self.query": 5},
        },
    ),
    "anchored patterns": (
        "bert",
        {
            "target_modules": [Q, V],
            "rank_pattern": {"^encoder.layer.0.attention.self.query": 2, "^bert.*value": 3},
            "use_rslora": True,
        },
    ),
    "lora_only": ("bert", {"target_modules": [Q], "bias": "lora_only"}),
    "all biases": ("bert", {"target_modules": [Q], "bias": "all", "modules_to_save": ["classifier"]}),
    "classifier": ("roberta", {"target_modules": [Q], "task_type": "SEQ_CLS"}),
    "fan_in_fan_out": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "orthogonal": ("bert", {"target_modules": [Q], "r": 4, "init_lora_weights": "orthogonal"}),
    "gaussian": ("bert", {"target_modules": [Q], "init_lora_weights": "gaussian"}),
    "dropout": ("bert", {"target_modules": [Q], "lora_dropout": 0.5}),
}

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dora": ("bert", {"target_modules": [Q], "use_dora": True}, "DoRA"),
    "lora_bias": ("bert", {"target_modules": [Q], "lora_bias": True}, "a bias in lora_B"),
    "pissa": ("bert", {"target_modules": [Q], "init_lora_weights": "pissa"}, "PiSSA"),
    "olora": ("bert", {"target_modules": [Q], "init_lora_weights": "olora"}, "OLoRA"),
    "mica": ("bert", {"target_modules": [Q], "init_lora_weights": "mica"}, "MiCA"),
    "embedding": ("bert", {"target_modules": ["word_embeddings"]}, "LoRA on an embedding"),
    "tokens": (
        "bert",
        {"target_modules": [Q], "trainable_token_indices": {"word_embeddings": [1, 3]}},
        "trained rows of the embedding",
    ),
    "tied": ("llama-lm", {"target_modules": ["embed_tokens"]}, "LoRA on an embedding"),
    "parameters": ("bert", {"target_parameters": ["query.weight"], "target_modules": []}, "no Linear owns"),
}


def read_as_given(folder: Path, module: Any, read: Any, tensors: Any) -> torch.Tensor:
    fit = fitted(read_adapter(folder), module)
    with (
        with_saved(fake_network(module, read), fit.adapter) as base,
        attached(module, fit.targets, fit.factors),
    ):
        return base.predict(examples_of(tensors))


@pytest.mark.parametrize("name", READ)
def test_what_is_read_says_what_peft_says(name: str, tmp_path: Path) -> None:
    kind, settings = READ[name]
    saved_by_peft(tiny_module(kind), tmp_path, **settings)
    module, tensors, read = NETWORKS[kind]()
    theirs, _, read_theirs = NETWORKS[kind]()
    without = read_theirs(tensors).detach()
    expected_module = loaded_by_peft(theirs, tmp_path)
    module.double(), expected_module.double()
    found, expected = read_as_given(tmp_path, module, read, tensors), read_theirs(tensors).detach()
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (expected - without).abs().max() > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, settings, meaning = REFUSED[name]
    saved_by_peft(tiny_module(kind), tmp_path, **settings)
    with pytest.raises(InputError, match=meaning):
        read_adapter(tmp_path)


def test_every_setting_of_the_installed_peft_is_known() -> None:
    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} <= KNOWN
