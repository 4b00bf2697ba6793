"""Frozen embeddings against transformers called directly, one example at a time and so without padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from fake_network import fake_network
from tangentlora.errors import InputError
from tangentlora.models import ClassificationHead, MaskPrompt, Prototypes, network_from_module
from tangentlora.models.embeddings import embeddings
from tangentlora.models.network import Network
from tiny_networks import NETWORKS, K, tiny_module, tiny_processor

TEXTS = ["a bright and funny film", "dull", "the story was not very good and slow of plot"]
PAIRS = [("who is this", "a great actor"), ("is it good", "no"), ("how", "in the movie of the great plot")]
PROTOTYPES = Prototypes(("it was terrible", "it was okay", "it was great"))
PROMPT = MaskPrompt("{text} It was {mask}.", ("terrible", "great", "okay"))


def network(kind, readout, body=False):
    processor = tiny_processor(kind)
    module = tiny_module(kind, len(processor) if hasattr(processor, "get_vocab") else 64)
    return network_from_module(module.base_model if body else module, processor, readout, name=kind)


def directly(body, processor, texts):
    """Return the mean of the last hidden states of each text on its own."""
    rows = []
    for text in texts:
        tokens = processor(*((text,) if isinstance(text, str) else text), return_tensors="pt")
        with torch.no_grad():
            rows.append(body(**tokens).last_hidden_state[0].mean(dim=0))
    return torch.stack(rows).double()


def agree(found, expected):
    assert found.dtype is torch.float64
    assert expected.std(dim=0).max() > 1e-2  # they tell the examples apart
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_bert_with_prototypes_and_with_a_head(texts):
    expected = directly(tiny_module("bert", len(tiny_processor("bert"))).bert, tiny_processor("bert"), texts)
    for net in (network("bert", PROTOTYPES, body=True), network("bert", ClassificationHead(K))):
        for batch_size in (1, 2, 32):
            agree(embeddings(net, texts, batch_size), expected)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
def test_a_masked_language_model_reads_the_plain_text_without_the_prompt(kind, texts):
    module = tiny_module(kind, len(tiny_processor(kind)))
    body = module.bert if kind == "bert-mlm" else module.roberta
    agree(embeddings(network(kind, PROMPT), texts, 2), directly(body, tiny_processor(kind), texts))


@pytest.mark.parametrize("kind", ["distilbert", "gpt2", "llama"])
def test_other_families(kind):
    expected = directly(tiny_module(kind, len(tiny_processor(kind))).base_model, tiny_processor(kind), TEXTS)
    agree(embeddings(network(kind, ClassificationHead(K)), TEXTS, 2), expected)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_images(kind):
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    module, processor = tiny_module(kind), tiny_processor(kind)
    body = module.vit if kind == "vit" else module.vision_model
    with torch.no_grad():
        states = body(processor(images=images, return_tensors="pt")["pixel_values"]).last_hidden_state
    net = network(kind, ClassificationHead(K, modality="image"))
    agree(embeddings(net, images, 2), states.mean(dim=1).double())


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_sounds_of_different_lengths(kind):
    draw = np.random.default_rng(0)
    waves = [draw.standard_normal(n).astype(np.float32) for n in (900, 500, 640)]
    module, processor = tiny_module(kind), tiny_processor(kind)
    body, rows = module.wav2vec2 if kind == "wav2vec2" else module.encoder, []
    for wave in waves:
        heard = processor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            rows.append(body(heard[processor.model_input_names[0]]).last_hidden_state[0].mean(dim=0))
    net = network(kind, ClassificationHead(K, modality="audio"))
    agree(embeddings(net, waves, 3), torch.stack(rows).double())


def test_a_network_in_half_precision_is_averaged_in_double():
    processor = tiny_processor("bert")
    module = tiny_module("bert", len(processor)).bfloat16()
    net = network_from_module(module, processor, ClassificationHead(K), name="bert")
    with torch.no_grad():
        states = module.bert(**processor(TEXTS[0], return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(embeddings(net, TEXTS[:1])[0], states[0].double().mean(dim=0))


def test_readers_and_networks_without_a_known_body_are_refused():
    module, _, read = NETWORKS["bert"]()
    with pytest.raises(InputError, match="got the reader PaddingReader, expected one of a mask prompt"):
        embeddings(fake_network(module, read), TEXTS)
    config = tf.BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.num_labels = K
    head = tf.BertForSequenceClassification(config)
    whole = network_from_module(head, tiny_processor("bert"), ClassificationHead(K), name="whole")
    module = tf.BertModel(config)
    bare = Network("bare", module, replace(whole.reader, module=module), whole.fingerprint)
    with pytest.raises(InputError, match="got the architecture BertModel, expected a pretrained body"):
        embeddings(bare, TEXTS)
