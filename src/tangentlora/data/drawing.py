"""From a collection to the three sets of an experiment, with words for where the rows of each come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tangentlora.data.classification import COMPLETION
from tangentlora.data.collection import Collection
from tangentlora.data.examples import Examples, Splits
from tangentlora.data.sampling import TEST_SEED, cap, draw_dev, hold_out, sample_shots
from tangentlora.errors import InputError

_MOST_CLASSES = 10
"""From this many classes on, two rows each on average are the least that a label column can have."""


@dataclass(frozen=True)
class Draw:
    """What of a collection is drawn for which set; see :func:`tangentlora.data.load_splits`.

    `shots` are those of the training set, `dev_shots` those of the dev set.
    """

    seed: int
    shots: int | None
    dev_shots: int | None
    test_limit: int | None
    test_fraction: float


def draw_splits(source: str, collection: Collection, draw: Draw) -> Splits:
    """Return the sets of a collection: everything that is given trains, unless the draw says otherwise.

    Raises InputError for a fraction to hold out where there is a test set, or where shots leave the rest for
    testing; for labels that are no classes to learn (see `require_classes`); and as the draws do.
    """
    parts, origins = dict(collection.parts), dict(collection.reading.origins)
    notes = list(collection.reading.notes)
    if draw.test_fraction:
        _require_no_test(source, parts, draw)
    require_classes(source, collection)
    if "test" not in parts and "dev" in parts and not draw.test_fraction and "dev" not in collection.given:
        parts["test"], origins["test"] = parts.pop("dev"), origins.pop("dev", source)
        left = (
            "no dev set" if draw.dev_shots is None else "no dev set but what is drawn from the training rows"
        )
        notes.append(f"There is no test set: {origins['test']} serves as one, so that there is {left}.")
    train, rest = parts["train"], None
    dev, test = parts.get("dev"), parts.get("test")
    whole = origins.get("train", source)
    origins["train"] = f"all of {whole}"
    if draw.shots is not None:
        train, rest = sample_shots(train, draw.shots, draw.seed)
        origins["train"] = f"{draw.shots} of each label of {whole}, drawn by seed {draw.seed}"
        if draw.dev_shots is not None:
            own = dev is not None
            dev, rest = draw_dev(dev, rest, draw.dev_shots, draw.seed, spare=1 if test is None else 0)
            place = f"of {origins['dev']}" if own else f"of the other rows of {whole}"
            origins["dev"] = f"at most {draw.dev_shots} of each label {place}, drawn by seed {draw.seed}"
    elif draw.test_fraction:
        train, test = hold_out(train, draw.test_fraction, draw.seed)
        origins["train"] = f"what is left of {whole}"
        origins["test"] = f"{draw.test_fraction:g} of each label of {whole}, drawn by seed {draw.seed}"
        test = test if len(test) else None
    if rest is not None and test is None and len(rest):
        test, origins["test"] = rest, f"the other rows of {whole}"
    elif rest is not None and len(rest):
        notes.append(f"{len(rest)} other rows of {whole} are not used.")
    capped = None if test is None else cap(test, draw.test_limit)
    if test is not None and capped is not None and len(capped) < len(test):
        origins["test"] = f"{len(capped)} of {len(test)} rows, drawn by seed {TEST_SEED}: {origins['test']}"
    return _decoded(source, collection, train, dev, capped, origins, notes)


def _decoded(
    source: str,
    collection: Collection,
    train: Examples,
    dev: Examples | None,
    test: Examples | None,
    origins: dict[str, str],
    notes: list[str],
) -> Splits:
    named = {"train": train, "dev": dev, "test": test}
    decoded = {
        part: found for part, rows in named.items() if (found := collection.decoded(part, rows)) is not None
    }
    done = [f"{part}: {note}" for part, rows in decoded.items() for note in rows.notes]
    reading = replace(
        collection.reading,
        origins={part: origins.get(part, source) for part in decoded},
        notes=(*notes, *done),
    )
    return Splits(
        train=decoded["train"],
        dev=decoded.get("dev"),
        test=decoded.get("test"),
        task=collection.task,
        source=source,
        reading=reading,
    )


def require_classes(source: str, collection: Collection) -> None:
    """Refuse labels from which nothing can be learnt: one row per class, or a class without a training row.

    The first is judged where the labels are those found in the data. Raises InputError.
    """
    train, task = collection.parts["train"], collection.task
    counts = train.counts()
    K, N = sum(map(bool, counts.values())), len(train)
    if task == COMPLETION or not N:
        return
    if collection.inferred and (2 < K == N or (K >= _MOST_CLASSES and N < 2 * K)):
        column = "" if collection.reading.label is None else f" in {collection.reading.label!r}"
        raise InputError(
            f"{source} has {K} different labels{column} in {N} training rows, so that classes have one row "
            "each or hardly more; expected several rows of each class: name the column that holds the class, "
            "or add rows"
        )
    absent = [name for name, count in counts.items() if not count]
    if absent:
        if collection.inferred:
            raise InputError(
                f"{source} has no text in any row with the label {' or '.join(map(repr, absent))}; expected "
                "at least one for each label: add it, or remove those rows"
            )
        raise InputError(
            f"{source} has no training row with the label {' or '.join(map(repr, absent))} of task "
            f"{task.name}; expected at least one of each label: add some, or leave the task out to take the "
            "labels from the data"
        )


def _require_no_test(source: str, parts: dict[str, Examples], draw: Draw) -> None:
    if "test" in parts or draw.shots is not None:
        has = "has a test set" if "test" in parts else "leaves what the shots do not take for testing"
        raise InputError(
            f"got a test fraction of {draw.test_fraction} for {source}, which {has}; expected one source of "
            "test rows: leave the fraction out"
        )
