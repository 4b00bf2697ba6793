"""The prompt readout: the full model's logits, tokens as in pretraining, and what cannot be prompted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_networks
from tangentlora.errors import InputError
from tangentlora.models import MaskPrompt, find_targets, load_network, network_from_module

WORDS = ("terrible", "great", "okay")
SINGLE, PAIR, FIRST = "{text} It was {mask}.", "{text}? {mask}, {text2}", "{mask}: {text}"
TEXTS = ["a bright and funny film", "dull", "the story was not very good and slow of plot"]
SHARED = Path(__file__).parents[2] / "../shared"


def network(kind="bert-mlm", template=SINGLE, words=WORDS, max_length=None, dtype=torch.float32):
    processor = tiny_networks.tiny_processor(kind)
    module = tiny_networks.tiny_module(kind, len(processor)).to(dtype)
    return network_from_module(module, processor, MaskPrompt(template, words, max_length), name=kind)


def tokens(net, text):
    (features,) = net.reader.encode([text])
    return net.reader.tokens.tokenizer.convert_ids_to_tokens(features["input_ids"])


@pytest.mark.parametrize("template", [SINGLE, FIRST, PAIR])
@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
def test_outputs_are_the_full_models_logits(kind, template):
    net = network(kind, template, dtype=torch.float64)  # in float64 only a wrong formula can differ by 1e-6
    inputs = [(text, "it is good") for text in TEXTS] if template == PAIR else TEXTS
    tokenizer = net.reader.tokens.tokenizer
    space = "Ġ" if kind == "roberta-mlm" else ""
    ids = tokenizer.convert_tokens_to_ids([space + word for word in WORDS])
    for batch in net.batches(net.reader.encode(inputs), batch_size=2):
        full = net.module(**batch.tensors).logits
        rows, columns = (batch.tensors["input_ids"] == tokenizer.mask_token_id).nonzero(as_tuple=True)
        assert len(rows) == len(batch.index)
        torch.testing.assert_close(net.outputs(batch), full[rows, columns][:, ids], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
def test_batching_does_not_change_outputs(kind):
    net = network(kind)
    together = net.predict(TEXTS)
    alone = torch.cat([net.predict([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, net.predict(TEXTS))


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
def test_the_whole_vocabulary_is_never_multiplied(kind):
    net = network(kind)
    net.module.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("the full decoder ran"))
    net.predict(TEXTS)
    shapes = {
        tuple(layer.weight.shape) for layer in net.reader.head.modules() if isinstance(layer, nn.Linear)
    }
    assert shapes == {(32, 32), (3, 32)}


def test_the_other_layers_of_the_head_are_the_networks_own():
    net = network("roberta-mlm")
    before = net.predict(TEXTS)
    (dense,) = find_targets(net.module, ["lm_head.dense"])
    calls = []
    net.module.lm_head.dense.register_forward_hook(lambda _, args, __: calls.append(args[0].shape))
    with torch.no_grad():
        dense.weight(net.module).mul_(2)
    after = net.predict(TEXTS)
    assert calls == [(3, 1, 32)]
    assert (after - before).abs().max() > 1e-3
    batch = next(net.batches(net.reader.encode(TEXTS[:1])))
    at_mask = batch.tensors["input_ids"][0] == net.reader.tokens.tokenizer.mask_token_id
    full = net.module(**batch.tensors).logits[:, at_mask][0, 0, list(net.reader.words)]
    torch.testing.assert_close(after[0], full, rtol=1e-6, atol=1e-6)


def test_roberta_tokens_are_those_of_running_text():
    net = network("roberta-mlm")
    assert tokens(net, "the movie was slow")[1:-1] == (
        [*"the", "Ġmovie", "Ġwas", "Ġslow", "Ġ", "I", "t", "Ġwas", "<mask>", "."]
    )
    net = network("roberta-mlm", FIRST)
    assert tokens(net, "how slow")[1:-1] == ["<mask>", ":", "Ġhow", "Ġslow"]


def test_bert_pairs_share_one_segment_and_one_question_mark():
    net = network("bert-mlm", PAIR)
    assert tokens(net, ("what is it ?", "a film")) == (
        ["[CLS]", "what", "is", "it", "?", "[MASK]", ",", "a", "film", "[SEP]"]
    )
    (features,) = net.reader.encode([("what is it ?", "a film")])
    assert features["token_type_ids"].sum() == 0


def test_a_second_text_begins_in_lower_case_where_the_template_says_so():
    net = network("roberta-mlm", "{text} {mask}, {text2:lower_first}")
    assert tokens(net, ("the movie?", "The film")) == (
        ["<s>", *"the", "Ġmovie", "?", "<mask>", ",", "Ġthe", "Ġfilm", "</s>"]
    )
    assert tokens(network("roberta-mlm", "{text} {mask}, {text2}"), ("the movie?", "The film"))[-4:] != (
        [",", "Ġthe", "Ġfilm", "</s>"]
    )


def test_roberta_gets_no_segments():
    assert set(network("roberta-mlm").reader.encode(TEXTS)[0]) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("kind", ["bert-mlm", "roberta-mlm"])
@pytest.mark.parametrize("template", [SINGLE, FIRST])
def test_long_texts_are_cut_and_the_template_is_not(kind, template):
    full, short = network(kind, template), network(kind, template, max_length=20)
    long = "the film was great and " * 30
    kept = tokens(short, long)
    assert len(kept) == 20
    assert kept.count(short.reader.tokens.tokenizer.mask_token) == 1
    brief = tokens(full, "the film")
    tail = (
        brief[-1:] if template == FIRST else brief[brief.index("film" if kind[0] == "b" else "Ġfilm") + 1 :]
    )
    assert kept[-len(tail) :] == tail
    assert short.predict([long]).isfinite().all()


def test_the_longer_text_is_cut_first():
    net = network("bert-mlm", PAIR, max_length=14)
    kept = tokens(net, ("the film " * 20, "a b c"))
    assert kept == ["[CLS]", *["the", "film"] * 3, "?", "[MASK]", ",", "a", "b", "c", "[SEP]"]


@pytest.mark.parametrize(("kind", "limit"), [("bert-mlm", 64), ("roberta-mlm", 62)])
def test_position_embeddings_bound_the_length(kind, limit):
    """RoBERTa's positions start after the padding index: two of its 64 rows are never used by a token."""
    net = network(kind)
    with pytest.raises(InputError, match=f"got max_length={limit + 1} .* expected 1 to {limit},"):
        network(kind, max_length=limit + 1)
    assert len(tokens(net, "great " * 200)) == limit
    assert net.predict(["great " * 200]).isfinite().all()


def test_template_without_room():
    with pytest.raises(InputError, match="alone takes more than 5 tokens, expected room for a text"):
        network(max_length=5)


@pytest.mark.parametrize(("kind", "mask"), [("bert-mlm", "[MASK]"), ("roberta-mlm", "<mask>")])
def test_text_with_a_mask(kind, mask):
    with pytest.raises(InputError, match="example 1 whose text contains"):
        network(kind).reader.encode(["fine", f"so {mask} so"])
    with pytest.raises(InputError, match="example 0 whose text contains"):
        network(kind, max_length=20).reader.encode([f"{'good ' * 40}{mask}"])


@pytest.mark.parametrize("bad", [3, None, ["a", "b"], ("a", 1), b"bytes"])
def test_inputs_that_are_not_text(bad):
    with pytest.raises(InputError, match=r"got example 1 of type .*pass str or \(str, str\)"):
        network().reader.encode(["fine", bad])


def test_number_of_texts():
    with pytest.raises(InputError, match="got 2 text"):
        network().reader.encode([("a", "b")])
    with pytest.raises(InputError, match="got 1 text"):
        network(template=PAIR).reader.encode(["a"])
    with pytest.raises(InputError, match="got 3 texts in example 0"):
        network().reader.encode([("a", "b", "c")])


def test_label_words():
    with pytest.raises(InputError, match=r"'greatest', which is \['Ġgreat', 'e', 's', 't'\]"):
        network("roberta-mlm", words=("terrible", "greatest"))
    with pytest.raises(InputError, match=r"'zzz', which is \['z', '##z', '##z'\]"):
        network(words=("terrible", "zzz"))
    with pytest.raises(InputError, match=r"'☃', which is \['\[UNK\]'\] .*choose another word"):
        network(words=("terrible", "☃"))
    with pytest.raises(InputError, match=r"'', which is \[\]"):
        network(words=("terrible", ""))
    with pytest.raises(InputError, match="'great' and 'Great', which are the same token"):
        network(words=("great", "Great"))
    with pytest.raises(InputError, match="got 1 label words, expected at least two"):
        MaskPrompt(SINGLE, ("great",))


def test_template_is_checked_at_once():
    with pytest.raises(InputError, match=r"expected \{mask\} and \{text\} once"):
        MaskPrompt("{text} was fine", WORDS)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "distilbert", "vit"])
def test_other_architectures(kind):
    processor = tiny_networks.tiny_processor("bert-mlm")
    module = tiny_networks.tiny_module(kind)
    with pytest.raises(InputError, match=f"got the architecture {type(module).__name__}, expected a masked"):
        network_from_module(module, processor, MaskPrompt(SINGLE, WORDS), name=kind)


def test_an_architecture_that_computes_something_else():
    processor = tiny_networks.tiny_processor("bert-mlm")
    module = tiny_networks.tiny_module("bert-mlm", len(processor))

    class Doubled(type(module)):
        def forward(self, **inputs):
            found = super().forward(**inputs)
            found.logits = 2 * found.logits
            return found

    module.__class__ = Doubled
    with pytest.raises(InputError, match="got the architecture Doubled"):
        network_from_module(module, processor, MaskPrompt(SINGLE, WORDS), name="doubled")


def test_tokenizer_without_a_mask():
    module = tiny_networks.tiny_module("bert-mlm")
    with pytest.raises(InputError, match="got the tokenizer GPT2Tokenizer, expected a fast one with a mask"):
        network_from_module(module, tiny_networks.gpt2_tokenizer(), MaskPrompt(SINGLE, WORDS), name="x")


def test_binding_draws_no_random_number():
    state = torch.random.get_rng_state()
    network("roberta-mlm")
    assert torch.equal(state, torch.random.get_rng_state())


def test_description_tells_readouts_apart():
    descriptions = [network().reader.describe(), network(template=FIRST).reader.describe()]
    descriptions.append(network(words=("terrible", "good")).reader.describe())
    assert len({str(description) for description in descriptions}) == 3


@pytest.mark.skipif(not SHARED.exists(), reason="the sample model is not here")
def test_a_real_masked_language_model():
    words = ("terrible", "great")
    net = load_network(str(SHARED / "models/minilm-mlm"), MaskPrompt(SINGLE, words))
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in net.module.parameters())
    bad, good = net.predict(["An awful, boring mess.", "A wonderful, moving film."]).diff(dim=1).flatten()
    assert good > bad
    encoded = net.reader.encode(["the plot is thin " * 100, "the plot is thin " * 200])
    assert [len(features["input_ids"]) for features in encoded] == [406, 512]  # the network has 512 positions
    assert (encoded.cut.cut, encoded.cut.lost) == (1, 806 - 512)
    tokenizer = net.reader.tokens.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(net.reader.words)) == list(words)
