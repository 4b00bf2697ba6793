"""Filling a template and cutting it to length, without a tokenizer."""

from __future__ import annotations

import pytest

from tangentlora.errors import InputError
from tangentlora.models.template import Template, cut


@pytest.mark.parametrize(
    ("source", "texts", "filled"),
    [
        ("{text} It was {mask}.", ("a film .",), "a film . It was<M>."),
        ("{mask}: {text}", (" who is it ? ",), "<M>: who is it ?"),
        ("{text}? {mask}, {text2}", ("what is it ?", "It is."), "what is it?<M>, It is."),
        ("{text}? {mask}, {text2}", ("what is it?!", "so."), "what is it?<M>, so."),
        ("{text}? {mask}, {text2}", ("Was it in the U.S.?", "so."), "Was it in the U.S.?<M>, so."),
        ("{text} {mask}, {text2}", ("what is it?", "so."), "what is it?<M>, so."),
        ("{text} {mask}, {text2:lower_first}", ("One.", " The EU is."), "One.<M>, the EU is."),
        ("{text:lower_first}? {mask}, {text2}", ("How so?", "It is."), "how so?<M>, It is."),
        ("{text:lower_first} {mask}", ("",), "<M>"),
        ("{text}? {mask}, {text2}", ("?", "so."), "??<M>, so."),
        ("{text}{mask}", ("is it",), "is it<M>"),
        ("{{{text}}} {mask}", ("x",), "{x}<M>"),
        ("{text2} {mask} {text}", ("one", "two"), "two<M> one"),
    ],
)
def test_fill(source, texts, filled):
    template = Template.parse(source)
    sentence, slots = template.fill(texts, "<M>", 0)
    assert sentence == filled
    assert len(slots) == template.n_texts == len(texts)


def test_slots_are_the_texts():
    template = Template.parse("Say: {text}? {mask}, {text2}!")
    sentence, slots = template.fill((" what is it ?", "so . "), "[MASK]", 0)
    assert [sentence[a:b] for a, b in slots] == ["what is it", "so"]


def test_slots_keep_up_with_letters_that_grow_in_lower_case():
    template = Template.parse("{mask}: {text:lower_first}!")
    sentence, [(start, end)] = template.fill(("İzmir",), "[MASK]", 0)
    assert sentence[start:end] == "İzmir"[:1].lower() + "zmir"
    assert sentence[end:] == "!"


def test_an_unknown_format_is_named():
    with pytest.raises(InputError, match=r"unknown format 'upper' of the field 'text2'.*text:lower_first"):
        Template.parse("{text} {mask}, {text2:upper}")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{mask}",
        "{text} was good",
        "{text} {mask} {mask}",
        "{text} {text} {mask}",
        "{text2} {mask}",
        "{text} {mask} {word}",
        "{} {mask}",
        "{text!r} {mask}",
        "{text:>9} {mask}",
        "{text} {mask:lower_first}",
        "{text:lower_first} {text:lower_first} {mask}",
        "{text} {mask",
    ],
)
def test_malformed_templates(source):
    with pytest.raises(InputError, match=r"expected \{mask\} and \{text\} once .* write for example"):
        Template.parse(source)


def test_number_of_texts():
    with pytest.raises(InputError, match=r"got 2 text\(s\) in example 7, expected 1 .*text columns"):
        Template.parse("{text} It was {mask}.").fill(("a", "b"), "<M>", 7)
    with pytest.raises(InputError, match=r"got 1 text\(s\) in example 0, expected 2"):
        Template.parse("{text}? {mask}, {text2}").fill(("a",), "<M>", 0)


def test_cut_takes_from_the_end_of_the_longer_text():
    # Six one-letter tokens and a special one at each end: "abcd" and "xy" around the template's "|".
    offsets = [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (0, 0)]
    slots = [(0, 4), (5, 7)]
    assert cut(offsets, slots, 9) == list(range(9))
    assert cut(offsets, slots, 8) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert cut(offsets, slots, 7) == [0, 1, 2, 5, 6, 7, 8]
    assert len(cut(offsets, slots, 6)) == 6
    assert cut(offsets, slots, 3) == [0, 5, 8]
    assert cut(offsets, slots, 2) is None


def test_cut_keeps_tokens_that_end_in_the_template():
    # "ab" + "c." where the full stop is the template's: the second token may not go.
    assert cut([(0, 2), (2, 4)], [(0, 3)], 1) == [1]
    assert cut([(0, 2), (2, 4)], [(0, 3)], 0) is None
