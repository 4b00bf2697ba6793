"""Networks made for another task are refused by name where they would be read as classifiers of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import ClassificationHead, Prototypes, load_network, network_from_module
from tangentlora.models.native import native_readout

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
OTHERS = [
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForMaskedLM",
    "BertForPreTraining",
    "BertLMHeadModel",
    "BertModel",
]


def bert(name: str, **config: Any) -> Any:
    """Return a network of two labels, which is what configurations say without being asked."""
    rows = len(tiny_networks.wordpiece_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(tf, name)(tf.BertConfig(vocab_size=rows, **SMALL, **config))


def saved(folder: Path, module: Any) -> str:
    module.save_pretrained(folder)
    tiny_networks.wordpiece_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", OTHERS)
def test_live_networks_without_a_head_over_whole_texts(name: str) -> None:
    tokenizer = tiny_networks.wordpiece_tokenizer()
    with pytest.raises(InputError, match=f"got the architecture {name}, expected one with a head over whole"):
        network_from_module(bert(name), tokenizer, ClassificationHead(2), name="net")


@pytest.mark.parametrize("name", OTHERS)
def test_live_networks_with_another_head_are_read_by_their_encoder(name: str) -> None:
    tokenizer, module = tiny_networks.wordpiece_tokenizer(), bert(name)
    readout = Prototypes(("it was great", "it was dull"))
    net = network_from_module(module, tokenizer, readout, name="net")
    encoder = network_from_module(module.base_model, tokenizer, readout, name="encoder")
    assert torch.equal(net.predict(["the film"]), encoder.predict(["the film"]))


@pytest.mark.parametrize("init", ["checkpoint", "random"])
@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMultipleChoice"])
def test_the_head_of_another_task_is_not_taken(tmp_path: Path, name: str, init: Any) -> None:
    """Its weights may have the names and shapes of the head that is asked for."""
    folder = saved(tmp_path, bert(name))
    with pytest.raises(InputError, match=f"got a checkpoint of {name}, whose head is not one over whole"):
        load_network(folder, ClassificationHead(2, init=init))
    assert load_network(folder, ClassificationHead(2, init="probe")).predict(["dull"]).shape == (1, 2)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_outputs_that_are_no_logits_of_one_label(tmp_path: Path, problem: str) -> None:
    module = bert("BertForSequenceClassification", problem_type=problem)
    folder = saved(tmp_path, module)
    for refused in (
        lambda: load_network(folder, ClassificationHead(2)),
        lambda: network_from_module(
            module, tiny_networks.wordpiece_tokenizer(), ClassificationHead(2), name="net"
        ),
    ):
        with pytest.raises(InputError, match=f"got a network of the problem type {problem}"):
            refused()
    assert load_network(folder, ClassificationHead(2, init="probe")).predict(["dull"]).shape == (1, 2)


def test_one_output_is_no_classifier(tmp_path: Path) -> None:
    """As of a reward model."""
    folder = saved(tmp_path, bert("BertForSequenceClassification", num_labels=1))
    with pytest.raises(InputError, match="without weights of the right shape for classifier"):
        load_network(folder, ClassificationHead(2))


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForQuestionAnswering"])
def test_no_readout_is_chosen_for_another_task(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path, bert(name))
    with pytest.raises(InputError, match=f"a checkpoint of {name}, expected one that classifies or embeds"):
        native_readout(folder)


def test_no_readout_is_chosen_for_a_network_that_writes_texts(tmp_path: Path) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 64}
    module = tf.T5ForConditionalGeneration(tf.T5Config(**sizes))
    with pytest.raises(InputError, match="a checkpoint of T5ForConditionalGeneration, expected one that"):
        native_readout(saved(tmp_path, module))


def test_a_network_that_cannot_read_what_the_tokenizer_gives() -> None:
    """T5 looks for the token that ends every text, which a tokenizer of another network does not write."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 200}
    module = tf.T5ForSequenceClassification(tf.T5Config(num_labels=2, decoder_start_token_id=0, **sizes))
    with pytest.raises(InputError, match="got T5ForSequenceClassification, which cannot read a text as the"):
        network_from_module(module, tiny_networks.wordpiece_tokenizer(), ClassificationHead(2), name="t5")
