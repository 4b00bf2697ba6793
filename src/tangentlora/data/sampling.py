"""Drawing examples: k per label, a held-out share, a capped test set; seeded, in the order of the source."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tangentlora.data.examples import Examples
from tangentlora.errors import InputError

TEST_SEED = 42
"""The seed of the capped test set: the same in every run, as in the published experiments."""


def sample_shots(examples: Examples, shots: int, seed: int) -> tuple[Examples, Examples]:
    """Return `shots` examples of every label, drawn by `seed`, and the remainder, both in original order.

    Raises InputError when shots < 1 or a label has fewer than `shots` examples.
    """
    if shots < 1:
        raise InputError(f"got {shots} shots; expected at least 1 example per label")
    for name, count in examples.counts().items():
        if count < shots:
            raise InputError(
                f"the label {name!r} has {count} example(s), fewer than the {shots} shots asked for; ask for "
                f"fewer shots or add examples"
            )
    return _split(examples, [shots] * len(examples.label_names), seed)


def draw_dev(
    dev: Examples | None, rest: Examples, shots: int, seed: int, spare: int
) -> tuple[Examples | None, Examples]:
    """Return a dev set of `shots` examples of every label, drawn by `seed`, and what is left of `rest`.

    A `dev` set that is there is cut to at most `shots` of every label, and `rest` left whole. Else the dev
    set is drawn from `rest`, or None when a label has fewer than `shots` + `spare` examples there. Source:
    the published k-shot sets, whose dev set is as large as the training set (arXiv:2012.15723).
    """
    if dev is not None:
        return _split(dev, [shots] * len(dev.label_names), seed)[0], rest
    if min(rest.counts().values()) < shots + spare:
        return None, rest
    return sample_shots(rest, shots, seed)


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Return what is left for training, and a `fraction` of every label, drawn by `seed`, for testing.

    Every label that has examples keeps at least one for training. Raises InputError unless 0 ≤ fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"got a test fraction of {fraction}; expected 0 ≤ fraction < 1, such as 0.25")
    kept = [max(count - round(fraction * count), min(count, 1)) for count in examples.counts().values()]
    return _split(examples, kept, seed)


def cap(examples: Examples, limit: int | None) -> Examples:
    """Return at most `limit` examples (None: all), drawn by TEST_SEED, in their original order.

    Raises InputError when limit < 1.
    """
    if limit is not None and limit < 1:
        raise InputError(
            f"got a limit of {limit} test examples; expected at least 1, or none for all of them"
        )
    if limit is None or len(examples) <= limit:
        return examples
    return examples.select(sorted(_permutation(len(examples), TEST_SEED)[:limit]))


def _split(examples: Examples, wanted: Sequence[int], seed: int) -> tuple[Examples, Examples]:
    left = list(wanted)
    chosen = set()
    for i in _permutation(len(examples), seed):
        if left[examples.labels[i]]:
            left[examples.labels[i]] -= 1
            chosen.add(i)
    return examples.select(sorted(chosen)), examples.select(
        i for i in range(len(examples)) if i not in chosen
    )


def _permutation(n: int, seed: int) -> list[int]:
    # Sorting by random() and not shuffle(): its stream alone is promised to be the same in every version.
    draw = random.Random(seed)
    keys = [draw.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)
