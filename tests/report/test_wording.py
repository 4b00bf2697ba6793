"""Numbers in words: what is rounded never says more than what is known."""

from __future__ import annotations

import random

import pytest

from tangentlora.report import wording


def test_bounds_are_rounded_to_the_safe_side() -> None:
    generator = random.Random(0)
    for _ in range(500):
        value = generator.uniform(1, 10) * 10.0 ** generator.randint(-12, 3)
        assert float(wording.at_most(value)) >= value * (1 - 1e-15)
        assert float(wording.at_least(value)) <= value * (1 + 1e-15)
        assert float(wording.at_most(value)) <= 1.11 * value
        assert float(wording.at_least(value)) >= 0.9 * value
        assert value * (1 + 1e-15) >= float(wording.number_below(value))


def test_numbers_are_written_as_people_read_them() -> None:
    assert wording.at_most(2.11e-5) == "2.2e-5"
    assert wording.at_least(0.0689) == "0.068"
    assert wording.at_most(0.0) == "0"
    assert wording.number(0.73124649) == "0.731246"
    assert wording.number(0.0) == "0.000000"
    assert wording.number(3.2e7) == "3.2000e7"
    assert wording.number_below(0.7312469) == "0.731246"
    assert wording.number_below(-0.7312461) == "-0.731247"
    assert wording.plain(0.1) == "0.1"
    assert [wording.tolerance(t) for t in (1e-3, 1e-6, 5.5e-6)] == ["1e-3", "1e-6", "5.5e-6"]
    assert wording.relative(-2.2e-16) == "-2.2e-16"
    assert wording.accuracy(2 / 3) == "0.667"
    assert wording.power(-6) == "10⁻⁶"
    assert [wording.data_size(n) for n in (12, 7_340_032, 3.1e11)] == ["12 bytes", "7.34 MB", "310 GB"]


@pytest.mark.parametrize(
    "form",
    [
        wording.number,
        wording.number_below,
        wording.plain,
        wording.relative,
        wording.accuracy,
        wording.tolerance,
    ],
)
def test_what_is_not_known_is_a_dash(form) -> None:
    assert form(None) == wording.ABSENT


def test_lists_read_as_sentences_do() -> None:
    assert wording.listing([]) == ""
    assert wording.listing([1]) == "1"
    assert wording.listing([1, 2, 4]) == "1, 2 and 4"


def test_layers_keep_the_parts_in_which_they_differ() -> None:
    one = "encoder.layer.11.attention.self.query"
    assert wording.short_names([one]) == {one: "query"}
    assert list(wording.short_names([one, one.replace("query", "value")]).values()) == ["query", "value"]
    assert list(wording.short_names([one, one.replace("11", "3")]).values()) == ["11", "3"]
    uneven = ["a.b", "a.b.c"]
    assert wording.short_names(uneven) == dict(zip(uneven, uneven, strict=True))
