"""The bundled support messages: four balanced labels, no near duplicates, varied, no personal data."""

from __future__ import annotations

import csv
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations, pairwise
from statistics import median

import pytest

LABELS = {"account", "billing", "delivery", "technical"}
Row = tuple[str, str]

PERSONAL = re.compile(r"\d(?:[ -]?\d){6,}|@|https?:|www\.")
"""More than six digits in a row, spaced or not, an e-mail address or a link."""


@pytest.fixture(scope="module")
def raw() -> bytes:
    return files("tangentlora").joinpath("data", "support.csv").read_bytes()


@pytest.fixture(scope="module")
def rows(raw: bytes) -> list[Row]:
    header, *body = csv.reader(raw.decode("utf-8").splitlines(), strict=True)
    assert header == ["label", "text"]
    assert all(len(row) == 2 for row in body)
    return [(label, text) for label, text in body]


def tokens(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers: case, punctuation and spacing do not count."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def near_duplicates(texts: list[str], threshold: float) -> list[tuple[str, str]]:
    """Pairs of texts whose token sets overlap by more than the threshold."""
    bags = [(text, set(tokens(text))) for text in texts]
    return [(a, b) for (a, left), (b, right) in combinations(bags, 2) if jaccard(left, right) > threshold]


def shared_runs(texts: list[str], length: int) -> list[str]:
    """Runs of `length` words that occur in more than one text."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = tokens(text)
        counts.update({words[start : start + length] for start in range(len(words) - length + 1)})
    return [" ".join(run) for run, count in counts.items() if count > 1]


def test_the_file_is_utf8_with_unix_line_ends_and_one_message_per_line(raw: bytes, rows: list[Row]) -> None:
    assert b"\r" not in raw
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == len(rows) + 1
    assert all(text == " ".join(text.split()) for _, text in rows)


def test_there_are_at_least_440_messages_and_110_of_each_of_the_four_labels(rows: list[Row]) -> None:
    counts = Counter(label for label, _ in rows)
    assert len(rows) >= 440
    assert set(counts) == LABELS
    assert min(counts.values()) >= 110


def test_the_order_is_mixed(rows: list[Row]) -> None:
    labels = [label for label, _ in rows]
    changes = sum(before != after for before, after in pairwise(labels))
    assert changes > len(labels) / 2


def test_no_message_is_repeated(rows: list[Row]) -> None:
    counts = Counter(tokens(text) for _, text in rows)
    assert [words for words, count in counts.items() if count > 1] == []


def test_no_two_messages_are_near_duplicates(rows: list[Row]) -> None:
    assert near_duplicates([text for _, text in rows], threshold=0.6) == []


def test_runs_of_five_words_are_hardly_ever_shared(rows: list[Row]) -> None:
    assert len(shared_runs([text for _, text in rows], length=5)) <= 5


def test_a_near_duplicate_would_be_seen() -> None:
    texts = ["Where is my red parcel, please?", "where is my blue parcel please", "The oven clock is slow."]
    assert near_duplicates(texts, threshold=0.6) == [(texts[0], texts[1])]
    assert shared_runs(texts, length=3) == ["where is my"]


def test_lengths_spread_from_a_few_words_to_a_short_paragraph(rows: list[Row]) -> None:
    lengths = [len(text.split()) for _, text in rows]
    assert min(lengths) <= 4
    assert max(lengths) >= 45
    assert 10 <= median(lengths) <= 30


def test_no_opening_is_used_more_than_four_times(rows: list[Row]) -> None:
    openings = Counter(tokens(text)[:3] for _, text in rows)
    assert [opening for opening, count in openings.items() if count > 4] == []


def test_nothing_looks_like_a_card_a_telephone_number_or_an_address_on_the_net(rows: list[Row]) -> None:
    assert [text for _, text in rows if PERSONAL.search(text)] == []


@pytest.mark.parametrize(
    "text", ["card 4000 0000 0000", "ring 555-0100-1", "me@example.org", "see www.example.org"]
)
def test_personal_data_would_be_seen(text: str) -> None:
    assert PERSONAL.search(text)
