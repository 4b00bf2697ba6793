"""Classification heads over text, images and sound: the model's own logits, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import ClassificationHead, load_network, network_from_module

TEXTS = ["a bright and funny film", "dull", "the story was not very good and slow of plot"]
TEXT_KINDS = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2", "llama"]
IMAGE_KINDS = ["vit", "clip"]
AUDIO_KINDS = ["wav2vec2", "whisper"]


def modality(kind):
    return "image" if kind in IMAGE_KINDS else "audio" if kind in AUDIO_KINDS else "text"


def inputs(kind):
    generator = np.random.default_rng(0)
    if kind in IMAGE_KINDS:
        pixels = generator.integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
        return [Image.fromarray(p) for p in pixels]
    if kind in AUDIO_KINDS:
        return [generator.standard_normal(n).astype(np.float32) for n in (3000, 1000, 2000)]
    return TEXTS


def network(kind, **options):
    processor = tiny_networks.tiny_processor(kind)
    rows = len(processor) if modality(kind) == "text" else 64
    readout = ClassificationHead(3, modality=modality(kind), **options)
    return network_from_module(tiny_networks.tiny_module(kind, rows), processor, readout, name=kind)


@pytest.mark.parametrize("kind", TEXT_KINDS + IMAGE_KINDS + AUDIO_KINDS)
def test_outputs_do_not_depend_on_the_batch(kind):
    net = network(kind, max_seconds=0.5)
    together = net.predict(inputs(kind))
    assert together.shape == (3, 3)
    assert torch.equal(together, net.predict(inputs(kind)))
    alone = torch.cat([net.predict([example]) for example in inputs(kind)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not net.module.training
    assert not any(p.requires_grad for p in net.module.parameters())


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_logits_are_the_models(kind):
    net = network(kind)
    tokenizer = tiny_networks.tiny_processor(kind)
    for text, z in zip(TEXTS, net.predict(TEXTS), strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        if kind == "distilbert":
            tokens.pop("token_type_ids")
        torch.testing.assert_close(net.module(**tokens).logits[0], z, rtol=1e-4, atol=1e-5)


def test_pairs_are_the_tokenizers_pairs():
    net = network("bert")
    (features,) = net.reader.encode([("how", "the film")])
    words = tiny_networks.wordpiece_tokenizer().convert_ids_to_tokens(features["input_ids"])
    assert words == ["[CLS]", "how", "[SEP]", "the", "film", "[SEP]"]
    assert features["token_type_ids"].tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("pad", [None, -1])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_without_padding_token_reads_the_last_token_of_every_text(kind, pad, eos):
    """Also of a text that ends with the token which others are filled up with."""
    tokenizer = tiny_networks.gpt2_tokenizer()
    assert tokenizer.pad_token is None
    module = tiny_networks.tiny_module(kind, len(tokenizer))
    module.config.pad_token_id = pad
    if not eos:
        tokenizer.eos_token = None
    net = network_from_module(module, tokenizer, ClassificationHead(3), name=kind)
    texts = ["the film was great<|endoftext|>", "dull", "!", "the plot!!"]
    alone = [module(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    torch.testing.assert_close(net.predict(texts), torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert module.config.pad_token_id == pad


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_image_logits_are_the_models(kind):
    net = network(kind)
    processor = tiny_networks.tiny_processor(kind)
    pixels = processor(images=inputs(kind), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(net.module(pixel_values=pixels).logits, net.predict(inputs(kind)))


def test_grey_images_become_rgb():
    net = network("vit")
    grey = inputs("vit")[0].convert("L")
    torch.testing.assert_close(net.predict([grey]), net.predict([grey.convert("RGB")]))


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_audio_logits_are_the_models(kind):
    net = network(kind, max_seconds=0.5)
    extractor = tiny_networks.tiny_processor(kind)
    for wave, z in zip(inputs(kind), net.predict(inputs(kind)), strict=True):
        features = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        torch.testing.assert_close(net.module(**features).logits[0], z, rtol=1e-4, atol=1e-5)


def test_unmasked_speech_is_padded_to_one_length():
    """With normalisation over time and no attention mask, padding to the batch would change every output."""
    config = tiny_networks.tiny_module("wav2vec2").config
    config.feat_extract_norm = "group"
    module = transformers.Wav2Vec2ForSequenceClassification(config)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
    readout = ClassificationHead(3, modality="audio", max_seconds=0.25)
    net = network_from_module(module, extractor, readout, name="group")
    waves = inputs("wav2vec2")
    batch = net.reader.collate(net.reader.encode(waves))
    assert set(batch) == {"input_values"}
    assert batch["input_values"].shape == (3, 4000)
    alone = torch.cat([net.predict([wave]) for wave in waves])
    torch.testing.assert_close(net.predict(waves), alone, rtol=1e-4, atol=1e-5)
    shorter = network_from_module(
        module, extractor, ClassificationHead(3, "random", "audio", None, 0.2), name=""
    )
    assert (shorter.predict(waves) - alone).abs().max() > 1e-3
    assert shorter.reader.describe() != net.reader.describe()


def test_long_recordings_are_cut():
    (features,) = network("wav2vec2", max_seconds=0.1).reader.encode(inputs("wav2vec2")[:1])
    assert len(features["input_values"]) == len(features["attention_mask"]) == 1600


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        ("bert", 5, "expected a text or a pair"),
        ("gpt2", "", "without a single token"),
        ("vit", np.zeros((4, 4, 3), np.uint8), "expected a Pillow image"),
        ("wav2vec2", np.zeros((2, 5000), np.float32), "expected a finite one-dimensional waveform"),
        ("wav2vec2", np.zeros(5000, np.int16), "int16, expected a finite one-dimensional waveform"),
        ("wav2vec2", np.full(5000, np.nan, np.float32), "expected a finite"),
        (
            "wav2vec2",
            np.zeros(100, np.float32),
            "got 100 samples in example 1, expected at least 400 at 16000",
        ),
        ("whisper", "text", "expected a finite one-dimensional waveform"),
    ],
)
def test_bad_inputs(kind, bad, message):
    with pytest.raises(InputError, match=message):
        network(kind).reader.encode([inputs(kind)[0], bad])


def test_number_of_labels():
    module, processor = tiny_networks.tiny_module("bert"), tiny_networks.tiny_processor("bert")
    with pytest.raises(InputError, match="got a network with 3 labels, expected 2"):
        network_from_module(module, processor, ClassificationHead(2), name="bert")
    for options in (
        {"num_labels": 0},
        {"num_labels": 2, "max_length": 0},
        {"num_labels": 2, "max_seconds": -1},
    ):
        with pytest.raises(InputError, match="expected positive numbers"):
            ClassificationHead(**options)


@pytest.mark.parametrize("kind", TEXT_KINDS + IMAGE_KINDS + AUDIO_KINDS)
def test_a_new_head_of_another_size(kind, tmp_path):
    folder = str(tiny_networks.tiny_checkpoint(tmp_path, kind))
    loaded = load_network(folder, ClassificationHead(3, modality=modality(kind), max_seconds=0.5))
    if modality(kind) == "image":
        expected = network(kind).predict(inputs(kind))
        torch.testing.assert_close(loaded.predict(inputs(kind)), expected)
    with pytest.raises(InputError, match=r"without weights of the right shape for .*use --head-init probe"):
        load_network(folder, ClassificationHead(5, modality=modality(kind)))
    state = torch.random.get_rng_state()
    new = [
        load_network(folder, ClassificationHead(5, "random", modality(kind), max_seconds=0.5, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(state, torch.random.get_rng_state())
    assert new[0].fingerprint == new[1].fingerprint != new[2].fingerprint
    assert new[0].predict(inputs(kind)).shape == (3, 5)


@pytest.mark.parametrize("other", ["image", "audio"])
def test_a_number_of_tokens_is_for_texts_alone(other):
    with pytest.raises(InputError, match=f"got max_length=9 for the modality {other}, expected it for text"):
        ClassificationHead(3, modality=other, max_length=9)


@pytest.mark.parametrize("init", ["random", "probe"])
@pytest.mark.parametrize("kind", TEXT_KINDS + IMAGE_KINDS + AUDIO_KINDS)
def test_a_new_head_is_drawn_where_the_checkpoint_has_one_of_its_size(kind, init, tmp_path):
    """Every matrix of the head depends on the seed alone, and the pretrained part is the checkpoint's."""
    folder = str(tiny_networks.tiny_checkpoint(tmp_path, kind))
    own, first, same, other = (
        load_network(folder, ClassificationHead(3, init, modality(kind), max_seconds=0.5, seed=seed)).module
        for init, seed in (("checkpoint", 0), (init, 0), (init, 0), (init, 1))
    )
    heads = [n for n, c in own.named_children() if not isinstance(c, transformers.PreTrainedModel)]
    drawn = 0
    for name, weight in own.named_parameters():
        again = [module.get_parameter(name) for module in (first, same, other)]
        assert torch.equal(again[0], again[1])
        if name.split(".")[0] not in heads:
            assert torch.equal(weight, again[0])
        elif weight.dim() > 1:
            drawn += 1
            assert not torch.equal(weight, again[0])
            assert not torch.equal(again[0], again[2])
    assert drawn


def test_a_language_model_gets_a_new_head_only_if_asked(tmp_path):
    folder = str(tiny_networks.tiny_checkpoint(tmp_path, "bert-mlm"))
    with pytest.raises(InputError, match=r"bert.pooler.dense.bias, .*classifier.bias"):
        load_network(folder, ClassificationHead(2))
    assert load_network(folder, ClassificationHead(2, "probe")).predict(TEXTS).shape == (3, 2)
