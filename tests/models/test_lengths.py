"""How long a text may be: the network's own limit, told where it cuts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import ClassificationHead, Completion, network_from_module
from tangentlora.models.lengths import UNLIMITED, Encoded, cut_of, length_limit, positions
from tangentlora.models.media import AudioEncoder
from tangentlora.models.text import TextEncoder

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1}
XLNET = {"d_model": 8, "n_layer": 1, "n_head": 1, "d_inner": 8}


def modules():
    roberta = tf.RobertaConfig(vocab_size=64, max_position_embeddings=42, pad_token_id=1, **SMALL)
    return {
        "bert": (tf.BertModel(tf.BertConfig(vocab_size=64, max_position_embeddings=40, **SMALL)), 40),
        "roberta": (tf.RobertaModel(roberta), 40),
        "gpt2": (
            tf.GPT2Model(tf.GPT2Config(vocab_size=64, n_positions=40, n_embd=8, n_layer=1, n_head=1)),
            40,
        ),
        "llama": (tf.LlamaModel(tf.LlamaConfig(vocab_size=64, max_position_embeddings=40, **SMALL)), 40),
        "opt": (
            tf.OPTModel(
                tf.OPTConfig(
                    vocab_size=64,
                    max_position_embeddings=40,
                    hidden_size=8,
                    ffn_dim=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    word_embed_proj_dim=8,
                )
            ),
            40,
        ),
        "t5": (tf.T5EncoderModel(tf.T5Config(vocab_size=64, n_positions=512, **T5)), None),
        "xlnet": (tf.XLNetModel(tf.XLNetConfig(vocab_size=64, **XLNET)), None),
        "bloom": (tf.BloomModel(tf.BloomConfig(vocab_size=64, hidden_size=8, n_layer=1, n_head=1)), None),
    }


def test_positions_are_those_of_the_configuration_and_the_tables():
    assert {name: positions(module) for name, (module, _) in modules().items()} == {
        name: expected for name, (_, expected) in modules().items()
    }


@pytest.mark.parametrize(("own", "limit"), [(10**30, UNLIMITED), (None, UNLIMITED), (300, 300)])
def test_without_positions_the_tokenizer_or_a_default_decides(own, limit):
    module, _ = modules()["t5"]
    tokenizer = tiny_networks.wordpiece_tokenizer()
    tokenizer.model_max_length = own
    assert length_limit(module, tokenizer, None) == limit
    assert length_limit(module, tokenizer, 5000) == 5000


def test_a_length_beyond_the_tokenizers_is_taken_where_the_network_has_positions():
    module, _ = modules()["bert"]
    tokenizer = tiny_networks.wordpiece_tokenizer()
    tokenizer.model_max_length = 20
    assert length_limit(module, tokenizer, None) == 20
    assert length_limit(module, tokenizer, 40) == 40
    with pytest.raises(InputError, match="got max_length=41 for BertModel, expected 1 to 40"):
        length_limit(module, tokenizer, 41)


@pytest.mark.parametrize(("length", "cut", "lost"), [(None, 0, 0), (10, 2, 12)])
def test_what_is_cut_is_counted(length, cut, lost):
    module = tf.BertModel(tf.BertConfig(vocab_size=200, max_position_embeddings=40, **SMALL))
    texts = TextEncoder.for_module(module, tiny_networks.wordpiece_tokenizer(), length)
    encoded = texts.encode(["film " * 16, ("plot " * 5, "story " * 6), "dull"])
    assert [len(example["input_ids"]) for example in encoded] == ([18, 14, 3] if cut == 0 else [10, 10, 3])
    found = cut_of(encoded)
    assert found is not None
    assert (found.examples, found.cut, found.lost, found.most) == (3, cut, lost, 8 if cut else 0)
    assert found.describe()["limit"] == (length or 40)
    if cut:
        assert found.sentence("train") == (
            "train: 2 of 3 examples are longer than 10 tokens and lost the end of the text (of the longer "
            "one of a pair): 12 tokens in all, at most 8 of one"
        )


def test_completions_tell_what_their_prompts_lost():
    tokenizer = tiny_networks.gpt2_tokenizer()
    module = tiny_networks.tiny_module("gpt2-lm", len(tokenizer))
    net = network_from_module(module, tokenizer, Completion(), name="gpt2")
    encoded = net.reader.encode([("the" + " film" * 99, " great"), ("the", " film")])
    assert isinstance(encoded, Encoded)
    assert len(encoded[0]["input_ids"]) == 64
    whole = len(tokenizer("the" + " film" * 99 + " great")["input_ids"])
    assert (encoded.cut.cut, encoded.cut.lost) == (1, whole - 64)
    assert encoded.cut.part == "the beginning of the prompt"


def test_recordings_tell_how_many_seconds_they_lost():
    extractor = tiny_networks.tiny_processor("wav2vec2")
    encoder = AudioEncoder(extractor, frozenset({"input_values", "attention_mask"}), 8_000)
    waves = [np.ones(n, dtype=np.float32) for n in (8_000, 12_000, 24_000)]
    found = cut_of(encoder.encode(waves))
    assert found is not None
    assert (found.cut, found.lost, found.most, found.limit) == (2, 1.25, 1.0, 0.5)


def test_a_short_text_is_not_padded_to_the_limit():
    tokenizer = tiny_networks.wordpiece_tokenizer()
    module = tiny_networks.tiny_module("bert", len(tokenizer))
    net = network_from_module(module, tokenizer, ClassificationHead(3), name="bert")
    widths = [
        b.tensors["input_ids"].shape[1] for b in net.batches(net.reader.encode(["dull", "film " * 90]), 1)
    ]
    assert sorted(widths) == [3, 64]


def test_a_token_without_embedding_is_refused():
    tokenizer = tiny_networks.wordpiece_tokenizer()
    module = tiny_networks.tiny_module("bert", len(tokenizer))
    tokenizer.add_tokens(["zebra"])
    net = network_from_module(module, tokenizer, ClassificationHead(3), name="bert")
    assert net.predict(["dull"]).isfinite().all()
    with pytest.raises(InputError, match=r"got example 1 with the token 'zebra', number .* for a network of"):
        net.predict(["dull", "a zebra"])


def test_a_network_that_reads_the_last_token_is_padded_on_the_left():
    tokenizer = tiny_networks.wordpiece_tokenizer()
    config = tf.XLNetConfig(vocab_size=len(tokenizer), num_labels=3, initializer_range=0.3, **XLNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = tf.XLNetForSequenceClassification(config)
    net = network_from_module(module, tokenizer, ClassificationHead(3), name="xlnet")
    texts = ["dull", "the film was great and bright"]
    alone = torch.cat([net.predict([text]) for text in texts])
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3
    torch.testing.assert_close(net.predict(texts), alone, rtol=1e-4, atol=1e-5)
