"""Completions: the log-likelihood of a continuation, against cross-entropy on the full model's logits."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import Completion, network_from_module
from tangentlora.models.attach import attached
from tangentlora.models.update import updated
from tangentlora.problem.losses import Likelihood
from tangentlora.tangent.capture import capture
from tangentlora.tangent.gradient import weight_gradients
from tangentlora.tangent.linearize import linearize

KINDS = ["gpt2-lm", "llama-lm"]
PAIRS = [("the movie", " was great and very funny"), ("it is a", " story"), ("who", " is the actor of it?")]


def network(kind="gpt2-lm", max_length=64, per_token=True, dtype=torch.float32, tokenizer=None):
    processor = tokenizer or tiny_networks.tiny_processor(kind)
    module = tiny_networks.tiny_module(kind, len(processor)).to(dtype)
    return network_from_module(module, processor, Completion(max_length, per_token), name=kind)


def parts(net, pair):
    """Return the tokens of what is kept of a prompt, and of its completion."""
    (features,) = net.reader.encode([pair])
    tokens = net.reader.network.tokens.tokenizer.convert_ids_to_tokens(features["input_ids"])
    n = int(features["completion"].sum())
    assert features["completion"].tolist() == [0] * (len(tokens) - n) + [1] * n
    return tokens[:-n], tokens[-n:]


def full_loss(net, pair, reduction) -> Tensor:
    """Return F.cross_entropy on the logits of every position, the prompt's tokens ignored."""
    tokenizer = tiny_networks.gpt2_tokenizer()
    prompt, both = (tokenizer(text)["input_ids"] for text in (pair[0], "".join(pair)))
    labels = torch.tensor([-100] * (len(prompt) - 1) + both[len(prompt) :])
    logits = net.module(torch.tensor([both])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_full_models_log_likelihoods(kind, per_token):
    net = network(kind, per_token=per_token, dtype=torch.float64)
    expected = torch.stack([-full_loss(net, pair, "mean" if per_token else "sum") for pair in PAIRS])
    found = net.predict(PAIRS, batch_size=2)
    assert found.shape == (3, 1)
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_that_transformers_computes_weighs_examples_by_their_tokens(kind):
    net = network(kind, dtype=torch.float64)
    (batch,) = net.batches(net.reader.encode(PAIRS))
    scored = batch.tensors["completion"].bool()
    inputs = {name: batch.tensors[name] for name in ("input_ids", "attention_mask")}
    labels = inputs["input_ids"].masked_fill(~scored, -100)
    n = scored.sum(dim=1)
    ours = -(n * net.outputs(batch)[:, 0]).sum() / n.sum()
    torch.testing.assert_close(ours, net.module(**inputs, labels=labels).loss.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_sees_as_many_positions_as_the_longest_completion_has(kind):
    net, shapes = network(kind), []
    net.module.lm_head.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape))
    net.predict(PAIRS)
    longest = max(len(parts(net, pair)[1]) for pair in PAIRS)
    assert shapes == [(3, longest, 32)]


def test_half_precision_is_summed_in_full():
    half = network(dtype=torch.bfloat16).predict(PAIRS)
    assert half.dtype is torch.float32
    torch.testing.assert_close(half, network().predict(PAIRS), rtol=0.05, atol=0.05)
    assert not torch.equal(half, half.bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_is_autograds(kind):
    net = network(kind)
    targets = net.targets()
    tangent = linearize(net, PAIRS, targets, batch_size=2)
    assert tangent.f0.shape == (3, 1)
    dense = tangent.jacobian.dense()
    for i, pair in enumerate(PAIRS):
        (batch,) = net.batches(net.reader.encode([pair]))
        for target in targets:
            weight = net.module.get_submodule(target.module).weight.requires_grad_(True)
            (whole,) = torch.autograd.grad(net.outputs(batch)[0, 0], weight)
            weight.requires_grad_(False)
            expected = whole.T if target.transposed else whole
            expected = expected if target.rows is None else expected[slice(*target.rows)]
            error = (dense[target.name][i, 0] - expected).norm() / expected.norm()
            assert error < 1e-4, target.name


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_one_pass_is_that_of_the_full_models_loss(kind):
    net = network(kind)
    targets = net.targets(layers="all")
    update = {
        target.name: tuple(0.1 * torch.randn(side, 2, dtype=torch.float64) for side in target.shape)
        for target in targets
    }
    with attached(net.module, targets, update):
        found = weight_gradients(net, PAIRS, torch.zeros(3).long(), targets, Likelihood(), batch_size=2)
        before = found.outputs
    assert (before - net.predict(PAIRS)).abs().max() > 1e-3  # the update counts
    with updated(net, targets, update):
        weights = [net.module.get_submodule(target.module).weight.requires_grad_(True) for target in targets]
        loss = torch.stack([full_loss(net, pair, "mean") for pair in PAIRS]).mean()
        gradients = torch.autograd.grad(loss, weights)
        for weight in weights:
            weight.requires_grad_(False)
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for target, whole in zip(targets, gradients, strict=True):
        expected = whole.T if target.transposed else whole
        expected = expected if target.rows is None else expected[slice(*target.rows)]
        error = (found.gradients[target.name] - expected).norm() / expected.norm()
        assert error < 1e-4, target.name


@pytest.mark.parametrize("kind", KINDS)
def test_live_lora_layers_count_those_on_the_head_too(kind):
    from peft import LoraConfig, inject_adapter_in_model

    net = network(kind)
    before = net.predict(PAIRS)
    names = ["c_attn" if kind == "gpt2-lm" else "q_proj", "lm_head"]
    config = LoraConfig(target_modules=names, r=2, fan_in_fan_out=False, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a head that shares its weight with the embeddings
        inject_adapter_in_model(config, net.module)
    net.module.eval()
    found = net.predict(PAIRS)
    assert (found - before).abs().max() > 1e-3
    expected = torch.stack([-full_loss(net, pair, "mean") for pair in PAIRS])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_one_pass_captures_the_head_as_well():
    net = network("llama-lm")
    (batch,) = net.batches(net.reader.encode(PAIRS))
    captured = capture(net, batch, net.targets(["lm_head"]), prove=True)
    assert captured.x["lm_head"].shape[0] == 3


def test_texts_are_joined_as_they_stand():
    net = network()
    assert parts(net, ("it is", " great")) == (["i", "t", "Ġis"], ["Ġgreat"])
    assert parts(net, ("it is ", "great")) == (["i", "t", "Ġis"], ["Ġgreat"])  # one token holds both
    assert parts(net, ("it is", "great")) == (["i", "t", "Ġis"], ["g", "r", "e", "a", "t"])
    assert parts(net, ("it", " <|endoftext|>")) == (["i", "t"], ["Ġ", "<|endoftext|>"])


def test_special_tokens_of_the_tokenizer():
    net = network(tokenizer=tiny_networks.marking_tokenizer())
    assert parts(net, ("it is", " great")) == (["<unused0>", "i", "t", "Ġis"], ["Ġgreat"])
    assert parts(net, ("", " great"))[0] == ["<unused0>"]
    short = network(max_length=3, tokenizer=tiny_networks.marking_tokenizer())
    assert parts(short, ("it is", " great")) == (["<unused0>", "Ġis"], ["Ġgreat"])
    assert parts(short, ("it is", " great and")) == (["<unused0>"], ["Ġgreat", "Ġand"])


def test_a_long_prompt_loses_its_beginning_and_a_completion_nothing():
    net = network(max_length=4)
    assert parts(net, ("it was the film", " of the")) == (["Ġthe", "Ġfilm"], ["Ġof", "Ġthe"])
    assert parts(net, ("it was the film", " of the story")) == (["Ġfilm"], ["Ġof", "Ġthe", "Ġstory"])
    with pytest.raises(InputError, match="got example 1 whose completion takes 4 tokens, expected at most 3"):
        net.reader.encode([PAIRS[1], ("it was", " of the story and")])
    prompt, completion = parts(network(max_length=None), ("great " * 200, "great"))
    assert len(prompt) + len(completion) == 64  # the position embeddings' number


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["one"], "got one text in example 0, expected a prompt and its completion"),
        ([PAIRS[0], ("", " great")], "got example 1 with 1 tokens in the completion and 0 before it"),
        ([("great", "")], "got example 0 with 0 tokens in the completion and 5 before it"),
        ([(1, "x")], r"got example 0 of type tuple, .* pass str or \(str, str\)"),
    ],
)
def test_what_is_no_completion(inputs, message):
    with pytest.raises(InputError, match=message):
        network().reader.encode(inputs)


def test_other_networks_and_lengths():
    with pytest.raises(InputError, match="got max_length=1, expected at least 2"):
        Completion(1)
    module = tiny_networks.tiny_module("bert-mlm", 371)
    with pytest.raises(InputError, match="got the architecture BertForMaskedLM, expected a causal language"):
        network_from_module(module, tiny_networks.gpt2_tokenizer(), Completion(), name="bert")


def test_description_tells_readouts_apart():
    assert network().reader.describe() != network(per_token=False).reader.describe()
