"""The prompt of a causal language model: the full model's logits, and what cannot be asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import CausalPrompt, load_network, network_from_module
from tangentlora.models.causal_network import CausalNetwork
from tangentlora.tangent.linearize import linearize

WORDS = ("terrible", "great", "okay")
SINGLE, PAIR = "{text} It was {mask}.", "{text}? {text2:lower_first} {mask}"
TEXTS = ["a bright and funny film", "dull", "the story was not very good and slow of plot"]
KINDS = ["gpt2-lm", "llama-lm"]


def network(
    kind="gpt2-lm", template=SINGLE, words=WORDS, max_length=None, dtype=torch.float32, tokenizer=None
):
    processor = tokenizer or tiny_networks.tiny_processor(kind)
    module = tiny_networks.tiny_module(kind, len(processor)).to(dtype)
    return network_from_module(module, processor, CausalPrompt(template, words, max_length), name=kind)


def tokens(net, text):
    (features,) = net.reader.encode([text])
    return net.reader.network.tokens.tokenizer.convert_ids_to_tokens(features["input_ids"])


@pytest.mark.parametrize("template", [SINGLE, PAIR])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_full_models_next_token_logits(kind, template):
    net = network(kind, template, dtype=torch.float64)  # in float64 only a wrong formula can differ by 1e-10
    inputs = [(text, "It is good") for text in TEXTS] if template == PAIR else TEXTS
    tokenizer = tiny_networks.gpt2_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["Ġ" + word for word in WORDS])
    found = net.predict(inputs, batch_size=2)
    for row, given in zip(found, inputs, strict=True):
        prompt = f"{given} It was" if template == SINGLE else f"{given[0]}? it is good"
        alone = torch.tensor([tokenizer(prompt)["input_ids"]])
        torch.testing.assert_close(row, net.module(alone).logits[0, -1, ids], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_sees_one_position_of_each_example(kind):
    net, shapes = network(kind), []
    net.module.lm_head.register_forward_hook(lambda _, args, __: shapes.append(args[0].shape))
    net.predict(TEXTS)
    assert shapes == [(3, 1, 32)]
    assert not net.module.lm_head._forward_pre_hooks  # and afterwards it is as it was


@pytest.mark.parametrize("kind", KINDS)
def test_the_jacobian_is_autograds(kind):
    net = network(kind)
    targets = net.targets(layers="all")
    tangent = linearize(net, TEXTS, targets, batch_size=2)
    assert tangent.f0.shape == (3, 3)
    dense = tangent.jacobian.dense()
    for i, text in enumerate(TEXTS):
        (batch,) = net.batches(net.reader.encode([text]))
        for target in targets:
            weight = net.module.get_submodule(target.module).weight.requires_grad_(True)
            for k in range(3):
                (whole,) = torch.autograd.grad(net.outputs(batch)[0, k], weight)
                expected = whole.T if target.transposed else whole
                expected = expected if target.rows is None else expected[slice(*target.rows)]
                torch.testing.assert_close(
                    dense[target.name][i, k], expected.float(), rtol=1e-4, atol=1e-5 * float(expected.norm())
                )
            weight.requires_grad_(False)


def test_the_head_itself_can_be_a_target():
    net = network("llama-lm")
    tangent = linearize(net, TEXTS, net.targets(["lm_head"]))
    assert tangent.jacobian.shapes == {"lm_head": (371, 32)}


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_nearly_the_same_and_can_be_linearised(kind):
    full, half = network(kind), network(kind, dtype=torch.bfloat16)
    z = half.predict(TEXTS)
    assert z.dtype is torch.bfloat16
    assert (z - full.predict(TEXTS)).abs().max() < 0.05 * full.predict(TEXTS).abs().max()
    assert linearize(half, TEXTS).f0.dtype is torch.float32


def test_the_prompt_ends_where_the_word_would_begin():
    assert tokens(network(), "the movie was slow")[3:] == ["Ġmovie", "Ġwas", "Ġslow", "Ġ", "I", "t", "Ġwas"]
    assert tokens(network(template="{text} {mask}"), "a plot.") == ["a", "Ġplot", "."]


def test_special_tokens_that_a_tokenizer_appends_are_left_out():
    net = network(tokenizer=tiny_networks.marking_tokenizer())
    assert tokens(net, "a plot") == ["<unused0>", "a", "Ġplot", "Ġ", "I", "t", "Ġwas"]


def test_long_texts_are_cut_and_the_template_is_not():
    net = network(max_length=12)
    assert tokens(net, "a film and " * 30) == (
        ["a", "Ġfilm", "Ġand", "Ġa", "Ġfilm", "Ġand", "Ġa", "Ġfilm", "Ġ", "I", "t", "Ġwas"]
    )
    with pytest.raises(InputError, match="alone takes more than 3 tokens, expected room for a text"):
        network(max_length=3).reader.encode(TEXTS)
    assert len(tokens(network(), "great " * 200)) == 64  # the position embeddings' number


def test_words_are_told_by_the_first_token_that_differs():
    tokenizer = tiny_networks.gpt2_tokenizer()

    def named(*words):
        reader = network(words=words).reader
        return [tokenizer.convert_ids_to_tokens(list(ids)) for ids in (reader.shared, reader.words)]

    assert named("terrible", " great ") == [[], ["Ġterrible", "Ġgreat"]]
    assert named("terrible", "greatest") == [[], ["Ġterrible", "Ġgreat"]]
    assert named("zinc", "zeal", "zone") == [["Ġ", "z"], ["i", "e", "o"]]
    net = network(words=("zinc", "zeal"), dtype=torch.float64)
    ids = torch.tensor([tokenizer("dull It was z")["input_ids"]])
    expected = net.module(ids).logits[0, -1, list(net.reader.words)]
    torch.testing.assert_close(net.predict(["dull"])[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("zip", "zipper"), r"'zip', \['Ġ', 'z', 'i', 'p'\] .* token 5 does not tell it from 'zipper'"),
        (("zinc", "zip", "zeal"), r"'zip', .* token 3 does not tell it from 'zinc', expected words that all"),
        (("great", "great"), "'great', .* token 2 does not tell it from 'great'"),
        (("great", " "), r"got the label word ' ', which is \['Ġ'\] to the tokenizer after ' It was'"),
    ],
)
def test_words_that_one_token_cannot_tell_apart(words, message):
    with pytest.raises(InputError, match=message):
        network(words=words)


def test_a_word_outside_the_vocabulary():
    module = tiny_networks.tiny_module("gpt2-lm", 200)
    with pytest.raises(InputError, match=r"'☃', which is \['\[UNK\]'\] .*choose another word"):
        network_from_module(
            module, tiny_networks.wordpiece_tokenizer(), CausalPrompt(SINGLE, ("great", "☃")), name="x"
        )


@pytest.mark.parametrize("template", ["{mask}: {text}", "{text}? {mask}, {text2}", "{text} a {mask} film."])
def test_the_mask_must_be_at_the_end(template):
    with pytest.raises(InputError, match=r"expected one that ends with \{mask\} .* write for example"):
        CausalPrompt(template, WORDS)


def test_too_few_words_and_malformed_templates_are_told_at_once():
    with pytest.raises(InputError, match="got 1 label words, expected at least two"):
        CausalPrompt(SINGLE, ("great",))
    with pytest.raises(InputError, match=r"expected \{mask\} and \{text\} once"):
        CausalPrompt("{text} was fine", WORDS)


def test_inputs_that_cannot_be_read():
    with pytest.raises(InputError, match="got example 1 of type int"):
        network().reader.encode(["fine", 3])
    with pytest.raises(InputError, match="got 2 text"):
        network().reader.encode([("a", "b")])
    with pytest.raises(InputError, match="got example 1 without a single token"):
        network(template="{text} {mask}").reader.encode(["fine", " "])


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm", "gpt2", "bert", "vit"])
def test_other_architectures(kind):
    module = tiny_networks.tiny_module(kind, 371)
    with pytest.raises(InputError, match=f"got the architecture {type(module).__name__}, expected a causal"):
        network_from_module(module, tiny_networks.gpt2_tokenizer(), CausalPrompt(SINGLE, WORDS), name=kind)


def test_a_head_that_is_not_all_there_is_after_the_layers():
    """Gemma 2 bounds its logits after the head, which is kept; what mixes positions there is refused."""
    with torch.random.fork_rng():
        capped = tf.Gemma2ForCausalLM(
            tf.Gemma2Config(
                vocab_size=371,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=16,
                head_dim=16,
                initializer_range=5.0,
                final_logit_softcapping=2.0,
            )
        )
    tokenizer = tiny_networks.gpt2_tokenizer()
    net = network_from_module(capped, tokenizer, CausalPrompt(SINGLE, WORDS), name="gemma")
    expected = capped(torch.tensor([tokenizer("dull It was")["input_ids"]])).logits[
        0, -1, list(net.reader.words)
    ]
    torch.testing.assert_close(net.predict(["dull"])[0], expected, rtol=1e-5, atol=1e-5)
    assert 1 < expected.abs().max() <= 2

    class Centred(tf.GPT2LMHeadModel):
        def forward(self, **inputs):
            found = super().forward(**inputs)
            found.logits = found.logits - found.logits.mean(dim=1, keepdim=True)
            return found

    module = tiny_networks.tiny_module("gpt2-lm", len(tokenizer))
    module.__class__ = Centred
    with pytest.raises(InputError, match="got the architecture Centred"):
        network_from_module(module, tokenizer, CausalPrompt(SINGLE, WORDS), name="centred")


def test_a_slow_tokenizer():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="got the tokenizer Slow, expected a fast one"):
        CausalNetwork.of(tiny_networks.tiny_module("gpt2-lm"), Slow(), 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_a_padding_token_loads(tmp_path: Path, kind: str):
    folder = tiny_networks.tiny_checkpoint(tmp_path / kind, kind)
    net = load_network(str(folder), CausalPrompt(SINGLE, WORDS))
    assert net.reader.network.tokens.pad_id == 2  # the end-of-text token
    alone = torch.cat([net.predict([text]) for text in TEXTS])
    torch.testing.assert_close(net.predict(TEXTS), alone, rtol=1e-5, atol=1e-5)


def test_a_classifier_is_no_language_model(tmp_path: Path):
    folder = tiny_networks.tiny_checkpoint(tmp_path / "llama", "llama")
    with pytest.raises(
        InputError, match=r"without weights of the right shape for lm_head.weight.* choose a causal"
    ):
        load_network(str(folder), CausalPrompt(SINGLE, WORDS))


def test_description_tells_readouts_apart():
    changed = [
        network(),
        network(template="{text} {mask}"),
        network(words=WORDS[:2]),
        network(words=("zip", "zeal")),
    ]
    assert len({str(net.reader.describe()) for net in changed}) == 4
