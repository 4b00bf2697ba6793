"""Layers that are Linear by inheritance, and on a tied head: what PEFT computes there is what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_adapters import peft_model, peft_speaking, saved_by_peft
from tangentlora.adapters import adapter_of, bare, fitted, read_adapter
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.linear import is_plain
from tangentlora.models.targets import find_targets
from tiny_networks import tiny_module

IDS = torch.tensor([[3, 7, 11, 2, 5], [9, 4, 8, 6, 1]])


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 1.01


class Written(nn.Linear):
    """As Falcon's: another spelling of the same matrix."""

    def forward(self, input):
        return input @ self.weight.T + self.bias


class Called(nn.Linear):
    def forward(self, input, scale):
        return super().forward(input) * scale


class Columns(Conv1D):
    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (nn.Linear(5, 3), True),
        (Written(200, 3), True),
        (Conv1D(3, 5), True),
        (Columns(3, 200), True),
        (Scaled(200, 30), False),
        (Called(5, 3), False),
        (nn.Embedding(5, 3), False),
        (nn.Conv1d(5, 3, 1), False),
    ],
)
def test_a_layer_is_plain_if_it_computes_a_matrix(layer: nn.Module, plain: bool, dtype: torch.dtype) -> None:
    assert is_plain(layer.to(dtype)) == plain


def test_weights_that_stand_for_others_are_not_plain() -> None:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_plain(layer)


def falcon() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    return tf.FalconForCausalLM(tf.FalconConfig(vocab_size=64, new_decoder_architecture=False, **sizes))


def llama(tied: bool) -> Any:
    module: Any = tiny_module("llama-lm")
    if tied:
        module.config.tie_word_embeddings = True
        module.lm_head.weight = module.model.embed_tokens.weight
    return module


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (falcon, ["query_key_value", "dense_h_to_4h"]),
        (lambda: llama(tied=True), ["q_proj", "lm_head"]),
        (lambda: llama(tied=False), ["lm_head"]),
        (lambda: tiny_module("gpt2-lm"), ["lm_head"]),
    ],
)
def test_the_network_with_the_adapter_says_what_peft_says(make: Any, targets: list[str]) -> None:
    module = make().double().eval()
    without = module(IDS).logits.detach()
    model = peft_model(module, target_modules=targets, r=3, lora_alpha=5)
    expected = model(IDS).logits.detach()
    adapter = adapter_of(model)
    with bare(model) as base:
        fit = fitted(adapter, base)
        with attached(base, fit.targets, fit.factors), torch.no_grad():
            found = base(IDS).logits
    # the factors are in float32 or finer; PEFT's own are float32 where it makes them so
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=1e-6)
    assert (expected - without).abs().max() > 0.01


def test_a_saved_weight_of_an_adapted_head_that_is_the_networks_own_is_left_out(tmp_path: Path) -> None:
    base = tmp_path / "base"
    llama(tied=True).save_pretrained(base)
    module = tf.LlamaForCausalLM.from_pretrained(base)
    with peft_speaking():
        folder = saved_by_peft(module, tmp_path / "adapter", target_modules=["lm_head"], r=2)
    adapter = read_adapter(folder)
    assert list(adapter.saved) == ["lm_head.weight"]
    network = tf.LlamaForCausalLM.from_pretrained(base)
    assert not fitted(adapter, network).adapter.saved
    with torch.no_grad():
        network.lm_head.weight[3, 3] += 1
    with pytest.raises(InputError, match=r"weight of its own for lm_head.weight, which this network shares"):
        fitted(adapter, network)


def test_training_on_a_tied_head_is_refused_where_weights_would_change() -> None:
    with pytest.raises(InputError, match="got lm_head, whose weight is shared"):
        find_targets(llama(tied=True), ["lm_head"])
    assert find_targets(llama(tied=True), ["lm_head"], shared=True)[0].shape == (64, 32)
