"""The linear probe: the optimum of logistic regression on the head's features, in all three modalities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import (
    ClassificationHead,
    Prototypes,
    fit_linear_probe,
    network_from_module,
)

K, N = 3, 12
LABELS = [i % K for i in range(N)]
KINDS = ["bert", "roberta", "distilbert", "electra", "deberta-v2", "gpt2", "llama", "vit", "clip"]
KINDS += ["wav2vec2", "whisper"]
MODALITY = {"vit": "image", "clip": "image", "wav2vec2": "audio", "whisper": "audio"}


def inputs(kind):
    generator = np.random.default_rng(0)
    if MODALITY.get(kind) == "image":
        pixels = generator.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
        return [Image.fromarray(p) for p in pixels]
    if MODALITY.get(kind) == "audio":
        lengths = generator.integers(1000, 3000, N)
        return [generator.standard_normal(n).astype(np.float32) for n in lengths]
    words = np.array(tiny_networks.WORDS)
    return [" ".join(generator.choice(words, size)) for size in generator.integers(2, 12, N)]


def network(kind):
    processor = tiny_networks.tiny_processor(kind)
    rows = 64 if kind in MODALITY else len(processor)
    readout = ClassificationHead(K, "probe", MODALITY.get(kind, "text"), max_seconds=0.5)
    return network_from_module(tiny_networks.tiny_module(kind, rows), processor, readout, name=kind)


def last_layer(net):
    named = {name: layer for name, layer in net.module.named_modules() if isinstance(layer, nn.Linear)}
    return list(named.values())[-1]


def features(net, examples):
    """The features by finite changes of W: with W = e_j in every row, every output is φ_j + b."""
    net = network(net.name)
    layer = last_layer(net)
    rows = []
    with torch.no_grad():
        layer.weight.zero_()
        base = net.predict(examples)[:, 0]
        for j in range(layer.in_features):
            layer.weight.zero_()
            layer.weight[:, j] = 1
            rows.append(net.predict(examples)[:, 0] - base)
    return torch.stack(rows, dim=1).double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_is_the_optimum_on_the_heads_features(kind):
    l2 = 1e-2
    net = network(kind)
    examples = inputs(kind)
    fitted = fit_linear_probe(net, examples, LABELS, l2=l2, batch_size=5)
    phi = features(net, examples)
    layer = last_layer(fitted)
    W = layer.weight.double().numpy()
    logits = phi @ W.T + (0 if layer.bias is None else layer.bias.double().numpy())
    np.testing.assert_allclose(fitted.predict(examples).numpy(), logits, atol=1e-3, rtol=1e-3)
    # First-order optimality, in the scaled coordinates of the penalty.
    centred = phi - phi.mean(axis=0) if layer.bias is not None else phi
    scale2 = (centred**2).sum(axis=1).mean()
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    a = (p / p.sum(axis=1, keepdims=True) - np.eye(K)[LABELS]) / N
    stationarity = a.T @ centred / np.sqrt(scale2) + l2 * W * np.sqrt(scale2)
    assert np.abs(stationarity).max() < 1e-4
    if layer.bias is not None:
        assert np.abs(a.sum(axis=0)).max() < 1e-4


def test_the_probe_is_a_new_network_and_deterministic():
    net = network("bert")
    before, state = net.predict(inputs("bert")), torch.random.get_rng_state()
    first = fit_linear_probe(net, inputs("bert"), LABELS)
    second = fit_linear_probe(net, inputs("bert"), LABELS)
    assert first.fingerprint == second.fingerprint != net.fingerprint
    assert first.name == net.name
    assert torch.equal(net.predict(inputs("bert")), before)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(p.requires_grad for p in first.module.parameters())
    accuracy = (first.predict(inputs("bert")).argmax(dim=1) == torch.tensor(LABELS)).float().mean()
    assert accuracy == 1
    changed = [
        name
        for name, tensor in first.module.state_dict().items()
        if not torch.equal(tensor, net.module.state_dict()[name])
    ]
    assert changed == ["classifier.weight", "classifier.bias"]


def test_stronger_penalty_gives_smaller_weights():
    net = network("vit")
    norms = [
        last_layer(fit_linear_probe(net, inputs("vit"), LABELS, l2=l2)).weight.norm() for l2 in (1e-3, 1e-1)
    ]
    assert norms[0] > 2 * norms[1]


@pytest.mark.parametrize("labels", [[0, 1], [0] * 11 + [3], [-1] * 12])
def test_labels(labels):
    with pytest.raises(InputError, match=r"labels for 12 examples and 3 outputs, expected one index below 3"):
        fit_linear_probe(network("bert"), inputs("bert"), labels)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_without_a_minimum_is_refused(l2):
    with pytest.raises(InputError, match=r"got l2=.*, expected a positive number"):
        fit_linear_probe(network("bert"), inputs("bert"), LABELS, l2=l2)


def test_other_readouts():
    tokenizer = tiny_networks.tiny_processor("bert")
    module = tiny_networks.tiny_module("bert", len(tokenizer)).base_model
    net = network_from_module(module, tokenizer, Prototypes(("bad", "good")), name="bert")
    with pytest.raises(InputError, match="got the readout PrototypeReader, expected a classification head"):
        fit_linear_probe(net, inputs("bert"), LABELS)


def test_heads_that_are_not_linear():
    net = network("bert")
    net.module.classifier = nn.Sequential(net.module.classifier, nn.Softmax(dim=-1))
    with pytest.raises(InputError, match="outputs are not linear in its last linear layer"):
        fit_linear_probe(net, inputs("bert"), LABELS)
    net.module.classifier = nn.Sequential(nn.Linear(32, 4), nn.AvgPool1d(2, 1))
    with pytest.raises(InputError, match="expected a head that ends in a linear layer of 3 outputs"):
        fit_linear_probe(net, inputs("bert"), LABELS)
