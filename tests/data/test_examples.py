"""Examples and splits hold together, have fingerprints, and are drawn evenly and repeatably."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tangentlora.data import Examples, Splits, cap, hold_out, infer_task, sample_shots
from tangentlora.data.sampling import draw_dev
from tangentlora.errors import InputError

NAMES = ("a", "b", "c")


def numbered(counts: dict[int, int]) -> Examples:
    """Examples t0, t1, … with the given number of each label, the labels interleaved."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    labels = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
    return Examples(tuple(f"t{i}" for i in range(len(labels))), tuple(labels), NAMES)


def places(examples: Examples) -> list[int]:
    return [int(str(text)[1:]) for text in examples.inputs]


def test_select_keeps_inputs_and_labels_together_in_the_order_asked_for() -> None:
    chosen = Examples(("p", "q", "r"), (0, 2, 1), NAMES).select([2, 0])
    assert (chosen.inputs, chosen.labels, chosen.label_names) == (("r", "p"), (1, 0), NAMES)
    assert len(chosen) == 2
    assert chosen.counts() == {"a": 1, "b": 1, "c": 0}


@pytest.mark.parametrize(
    ("labels", "message"),
    [((0,), "2 inputs and 1 labels"), ((0, 3), "got the label 3 for 3"), ((-1, 0), "label -1")],
)
def test_examples_that_do_not_hold_together_are_refused(labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Examples(("p", "q"), labels, NAMES)


def test_equal_content_has_one_fingerprint() -> None:
    wave = np.array([0.0, 0.5], dtype=np.float32)
    sound = Examples((wave, wave), (0, 1), NAMES, "audio", 8000)
    again = Examples((wave.copy(), wave.copy()), (0, 1), NAMES, "audio", 8000)
    assert sound.fingerprint() == again.fingerprint()
    assert len(sound.fingerprint()) == 64


@pytest.mark.parametrize(
    "other",
    [
        Examples(("ab", "c"), (0, 1), NAMES),
        Examples(("a", "bc"), (1, 0), NAMES),
        Examples(("bc", "a"), (0, 1), NAMES),
        Examples(("a", "bc"), (0, 1), ("a", "b")),
        Examples((("a", "b"), "c"), (0, 1), NAMES),
        Examples(("a", "bc"), (0, 1), NAMES, "audio"),
        Examples(("a", "bc"), (0, 1), NAMES, sampling_rate=8),
    ],
)
def test_any_change_of_content_changes_the_fingerprint(other: Examples) -> None:
    assert Examples(("a", "bc"), (0, 1), NAMES).fingerprint() != other.fingerprint()


def test_fingerprints_see_pixels_and_samples() -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [
        Examples((image.new("RGB", size, colour),), (0,), NAMES, "image")
        for size, colour in [((2, 3), "red"), ((3, 2), "red"), ((2, 3), "blue")]
    ]
    waves = [Examples((np.array(wave, dtype=np.float32),), (0,), NAMES, "audio") for wave in [[0, 1], [1, 0]]]
    assert len({examples.fingerprint() for examples in [*pictures, *waves]}) == 5


def splits(train: Examples, **parts: Any) -> Splits:
    return Splits(train, parts.get("dev"), parts.get("test"), infer_task(NAMES), "the source")


def test_splits_need_two_labels_to_train_on_but_not_all() -> None:
    assert splits(numbered({0: 2, 1: 1})).source == "the source"
    with pytest.raises(
        InputError, match="every training example of the source has the label 'b'; expected two"
    ):
        splits(numbered({1: 3}))


def test_empty_sets_are_refused() -> None:
    with pytest.raises(InputError, match="the train set of the source is empty"):
        splits(numbered({}))
    with pytest.raises(InputError, match="the dev set of the source is empty"):
        splits(numbered({0: 1, 1: 1}), dev=numbered({}))


@pytest.mark.parametrize(
    "other", [Examples(("x",), (0,), ("a", "b")), Examples(("x",), (0,), NAMES, sampling_rate=8000)]
)
def test_splits_of_different_kinds_are_refused(other: Examples) -> None:
    with pytest.raises(InputError, match=r"the test set of the source is .*expected one kind"):
        splits(numbered({0: 1, 1: 1}), test=other)


@pytest.mark.parametrize("seed", [13, 21, 42])
def test_shots_are_balanced_and_the_remainder_is_all_the_rest_in_order(seed: int) -> None:
    examples = numbered({0: 9, 1: 20, 2: 6})
    shots, rest = sample_shots(examples, 5, seed)
    assert shots.counts() == {"a": 5, "b": 5, "c": 5}
    assert rest.counts() == {"a": 4, "b": 15, "c": 1}
    assert sorted(places(shots) + places(rest)) == list(range(35))
    assert places(shots) == sorted(places(shots))
    assert places(rest) == sorted(places(rest))
    assert all(examples.labels[i] == label for i, label in zip(places(shots), shots.labels, strict=True))


def test_the_seed_and_nothing_else_decides_the_draw() -> None:
    examples = numbered({0: 9, 1: 20, 2: 6})
    draws = {seed: tuple(places(sample_shots(examples, 5, seed)[0])) for seed in (13, 21, 42)}
    assert len(set(draws.values())) == 3
    assert tuple(places(sample_shots(examples, 5, 13)[0])) == draws[13]


def test_a_draw_takes_the_smallest_keys_of_each_label_from_pythons_generator() -> None:
    draw = random.Random(21)
    keys = [draw.random() for _ in range(12)]
    smallest = sorted(min(range(k, 12, 3), key=keys.__getitem__) for k in range(3))
    examples = Examples(tuple(f"t{i}" for i in range(12)), (0, 1, 2) * 4, NAMES)
    assert places(sample_shots(examples, 1, 21)[0]) == smallest


def test_draws_are_even() -> None:
    examples = numbered({0: 5, 1: 5, 2: 5})
    seen: Counter[int] = Counter()
    for seed in range(600):
        seen.update(places(sample_shots(examples, 1, seed)[0]))
    assert min(seen.values()) > 80  # 120 expected of each; a standard deviation is 10
    assert max(seen.values()) < 160


def test_too_many_or_too_few_shots_are_refused() -> None:
    with pytest.raises(InputError, match=r"the label 'c' has 1 example.*fewer than the 2 shots"):
        sample_shots(numbered({0: 3, 1: 3, 2: 1}), 2, 13)
    with pytest.raises(InputError, match="got 0 shots; expected at least 1"):
        sample_shots(numbered({0: 3, 1: 3, 2: 1}), 0, 13)


def test_a_dev_set_is_drawn_from_the_rest_and_has_as_many_shots() -> None:
    examples = numbered({0: 9, 1: 20, 2: 10})
    train, rest = sample_shots(examples, 4, 13)
    dev, left = draw_dev(None, rest, 4, 13, spare=1)
    assert dev is not None
    assert dev.counts() == {"a": 4, "b": 4, "c": 4}
    assert left.counts() == {"a": 1, "b": 12, "c": 2}
    assert sorted(places(train) + places(dev) + places(left)) == list(range(39))
    again = draw_dev(None, rest, 4, 13, spare=1)[0]
    assert again is not None
    assert places(again) == places(dev)
    other = draw_dev(None, rest, 4, 21, spare=1)[0]
    assert other is not None
    assert places(other) != places(dev)


def test_a_label_with_too_few_examples_means_no_dev_set() -> None:
    rest = numbered({0: 4, 1: 9, 2: 9})
    assert draw_dev(None, rest, 4, 13, spare=1) == (None, rest)
    assert draw_dev(None, rest, 5, 13, spare=0) == (None, rest)
    assert draw_dev(None, rest, 4, 13, spare=0)[0] is not None


def test_a_dev_set_that_is_there_is_cut_to_the_shots_where_it_has_more() -> None:
    dev, rest = numbered({0: 9, 1: 2, 2: 5}), numbered({0: 4, 1: 4, 2: 4})
    cut, left = draw_dev(dev, rest, 4, 13, spare=1)
    assert cut is not None
    assert cut.counts() == {"a": 4, "b": 2, "c": 4}
    assert places(cut) == sorted(places(cut))
    assert left is rest


def test_the_held_out_share_is_the_same_for_every_label_and_leaves_each_one() -> None:
    train, test = hold_out(numbered({0: 40, 1: 8, 2: 1}), 0.25, 13)
    assert train.counts() == {"a": 30, "b": 6, "c": 1}
    assert test.counts() == {"a": 10, "b": 2, "c": 0}
    assert sorted(places(train) + places(test)) == list(range(49))
    assert len(hold_out(numbered({0: 4, 1: 4}), 0.0, 13)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 3.0])
def test_a_share_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=f"got a test fraction of {fraction}"):
        hold_out(numbered({0: 4, 1: 4}), fraction, 13)


def test_the_cap_draws_at_random_and_keeps_the_order() -> None:
    examples = numbered({0: 50, 1: 50})
    capped = cap(examples, 30)
    assert len(capped) == 30
    assert places(capped) == sorted(places(capped)) == places(cap(examples, 30))
    assert places(capped) != list(range(30))
    assert cap(examples, None) is examples
    assert cap(examples, 100) is examples
    with pytest.raises(InputError, match="got a limit of 0 test examples"):
        cap(examples, 0)
