"""From the sets of an experiment to their data check, in one pass over the rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tangentlora.data.check import DataCheck, PartCheck
from tangentlora.data.classification import COMPLETION
from tangentlora.data.examples import Examples, Splits, content_of
from tangentlora.data.label_kinds import is_blank, plain_text, twins

_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
_SHOWN = 40  # letters of a text that a line quotes


def check_data(splits: Splits) -> DataCheck:
    """Return what the sets of an experiment hold and what may be wrong with them, in one pass over the rows.

    Texts count as the same when they differ in blanks, hidden marks and Unicode form only; images and
    recordings when their pixels or samples are equal.
    """
    reading, classes = splits.reading, splits.task != COMPLETION
    seen: dict[Any, int] = {}
    examples: dict[str, str] = {}
    parts = {}
    for name, rows in splits.parts.items():
        keys = [_key(value) for value in rows.inputs]
        if name == "train":
            seen = dict(zip(reversed(keys), reversed(rows.labels), strict=True))
        parts[name] = _check_part(name, rows, keys, seen, splits, examples)
    names = splits.train.label_names
    counts = splits.train.counts()
    return DataCheck(
        source=splits.source,
        task=splits.task.name,
        classes=classes,
        text=reading.text,
        label=reading.label,
        unused=reading.unused,
        parts=parts,
        twins=twins(names) if classes else (),
        single=tuple(name for name, count in counts.items() if count == 1) if classes else (),
        examples=examples,
        notes=reading.notes,
    )


def _check_part(
    name: str,
    rows: Examples,
    keys: Sequence[Any],
    trained: Mapping[Any, int],
    splits: Splits,
    examples: dict[str, str],
) -> PartCheck:
    groups: dict[Any, dict[int, int]] = defaultdict(dict)
    for key, label in zip(keys, rows.labels, strict=True):
        found = groups[key]
        found[label] = found.get(label, 0) + 1
    torn = [key for key, found in groups.items() if len(found) > 1]
    if torn and rows.modality == "text":
        examples[name] = _quoted(torn[0])
    leaked = [] if name == "train" else [i for i, key in enumerate(keys) if key in trained]
    return PartCheck(
        rows=len(rows),
        origin=splits.reading.origins.get(name, ""),
        labels=rows.counts() if splits.task != COMPLETION else {},
        duplicates=sum(count - 1 for found in groups.values() for count in found.values()),
        contradictions=len(torn),
        contradicting=sum(sum(groups[key].values()) for key in torn),
        blank=_with_blank(rows),
        left_out=tuple(splits.reading.left_out.get(name, ())),
        leaked=len(leaked),
        numbers=sum(isinstance(key, str) and _NUMBER.fullmatch(key) is not None for key in keys),
        relabelled=sum(trained[keys[i]] != rows.labels[i] for i in leaked),
    )


def _key(value: Any) -> Any:
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, tuple):
        return tuple(map(plain_text, value))
    return hash(tuple(content_of(value)))


def _with_blank(rows: Examples) -> int:
    """Return the number of rows with a blank text; most such rows were left out before, if not of a pair."""
    if rows.modality != "text":
        return 0
    texts = (value if isinstance(value, tuple) else (value,) for value in rows.inputs)
    return sum(any(map(is_blank, found)) for found in texts)  # type: ignore[arg-type]


def _quoted(key: str | tuple[str, ...]) -> str:
    text = key if isinstance(key, str) else " | ".join(key)
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")
