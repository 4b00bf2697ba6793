"""What is looked at in the data before any work: counts, and a sentence for each thing that may be wrong."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tangentlora.data.columns import LABEL_NAMES

_WIDTH = 100
_MOST = 12  # labels, columns or rows that a line names


@dataclass(frozen=True)
class PartCheck:
    """One set: its rows, where they come from, the rows of every label, and what may be wrong with it.

    `duplicates` are rows whose input an earlier row of the set has with the same label, `contradictions` the
    inputs that rows of the set give different labels, with `contradicting` the number of those rows. `blank`
    are rows with a blank text, of two or in a published set, `left_out` the rows of the source without any
    text, which the set does not have. `leaked` are rows whose input is in the training set too, of which
    `relabelled` have another label there. `numbers` are rows whose text is a bare number.
    """

    rows: int
    origin: str
    labels: dict[str, int]
    duplicates: int = 0
    contradictions: int = 0
    contradicting: int = 0
    blank: int = 0
    left_out: tuple[int, ...] = ()
    leaked: int = 0
    relabelled: int = 0
    numbers: int = 0


@dataclass(frozen=True)
class DataCheck:
    """What the data are and what may be wrong with them, known before any work.

    `parts` has the sets by name, train first; `text` and `label` are the columns that were read and `unused`
    those that were not. `twins` are groups of labels that differ in case, spaces, points or Unicode form, and
    `notes` what else was done with the source. `idle` are the sets that the work at hand does not use.
    """

    source: str
    task: str
    classes: bool
    text: tuple[str, ...]
    label: str | None
    unused: tuple[str, ...]
    parts: dict[str, PartCheck]
    twins: tuple[tuple[str, ...], ...]
    single: tuple[str, ...]
    examples: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    def leaving(self, *parts: str) -> DataCheck:
        """Return the check for work that does not use these sets."""
        return replace(self, idle=tuple(part for part in parts if part in self.parts))

    @property
    def held_out(self) -> int:
        """The number of test rows."""
        return self.parts["test"].rows if "test" in self.parts else 0

    def warnings(self) -> list[str]:
        """Return a sentence for everything that may be wrong with the data, or was done unasked."""
        said = [*self.notes, *self._of_labels()]
        for name, part in self.parts.items():
            said += _of_part(name, part, self.examples)
        return said

    def lines(self) -> list[str]:
        """Return the check for a terminal, at most 100 wide: the sets first, then what may be wrong."""
        lines = [f"Data: {printable(self.source)}{self._columns()}"]
        for name in ("train", "dev", "test"):
            part = self.parts.get(name)
            said = _row(part, self.classes) if part else _ABSENT[name]
            lines.append(f"  {name:<6}{said}{'; not used here' if name in self.idle else ''}")
        if self.unused:
            lines.append(f"  columns not used: {_some(self.unused)}")
        return [
            line
            for text in [*lines, *(f"  ! {text}" for text in self.warnings())]
            for line in textwrap.wrap(text, _WIDTH, subsequent_indent=" " * 8, break_on_hyphens=False)
        ]

    def told(self) -> str:
        """Return the lines as one text."""
        return "\n".join(self.lines())

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "source": self.source,
            "task": self.task,
            "text_columns": list(self.text),
            "label_column": self.label,
            "columns_not_used": list(self.unused),
            "held_out_rows": self.held_out,
            "parts_not_used": list(self.idle),
            "parts": {name: _part_record(part) for name, part in self.parts.items()},
            "case_twins": [list(group) for group in self.twins],
            "labels_of_one_row": list(self.single),
            "notes": list(self.notes),
            "warnings": self.warnings(),
        }

    def _columns(self) -> str:
        if not self.text:
            return ""
        text = f"; read from {' and '.join(map(repr, self.text))}"
        if not self.classes:
            return f"{text}, completions from {self.label!r}"
        K = len(self.parts["train"].labels)
        return f"{text}, {K} classes" + ("" if self.label is None else f" from {self.label!r}")

    def _of_labels(self) -> list[str]:
        said = [
            f"The labels {' and '.join(map(repr, group))} differ in case, spaces, points or Unicode form "
            f"only and count as {len(group)} classes."
            for group in self.twins
        ]
        others = [name for name in self.unused if name.strip().casefold() in LABEL_NAMES]
        if others and self.label is not None:
            hold = "hold labels too, are" if len(others) > 1 else "holds labels too, is"
            said.append(
                f"The labels are those in {self.label!r}; {_some(others)}, which by name {hold} not read."
            )
        if self.single:
            have = "labels have" if len(self.single) > 1 else "label has"
            said.append(f"{len(self.single)} {have} one training row only: {_some(self.single)}.")
        for name in self.parts["train"].labels:
            if name.casefold() in _LIKE_MISSING:
                said.append(f"The label {name!r} counts as a class: does it stand for a missing label?")
        numbers = [name for name in self.parts["train"].labels if re.fullmatch(r"-?\d+", name)]
        words = [name for name in self.parts["train"].labels if name not in numbers]
        if numbers and words:
            said.append(
                f"Labels are whole numbers ({_some(numbers)}) and words ({_some(words)}): is it one column?"
            )
        return said


_LIKE_MISSING = ("nan", "null", "none", "na", "n/a", "#n/a", "<na>", "nil", "?")
_ABSENT = {
    "train": "none",
    "dev": "none",
    "test": "none: no held-out rows, so accuracies are on the training rows",
}


def _of_part(name: str, part: PartCheck, examples: Mapping[str, str]) -> Iterable[str]:
    if part.left_out:
        places = _some([str(row) for row in part.left_out])
        n = len(part.left_out)
        said = "1 row has" if n == 1 else f"{n} rows have"
        yield f"{said} no text and {'is' if n == 1 else 'are'} left out of the {name} set: row {places}."
    if part.blank:
        have = "have" if part.blank > 1 else "has"
        yield f"{part.blank} of {part.rows} {name} rows {have} a blank text and {_stay(part.blank)} in."
    if 2 * part.numbers > part.rows:
        yield f"{part.numbers} of {part.rows} {name} texts are bare numbers: is it the right column?"
    if part.duplicates:
        repeat = "repeat" if part.duplicates > 1 else "repeats"
        yield f"{part.duplicates} of {part.rows} {name} rows {repeat} an earlier one, label included."
    if part.contradictions:
        shown = f", such as {examples[name]}" if name in examples else ""
        yield (
            f"{part.contradicting} of {part.rows} {name} rows contradict each other: {part.contradictions} "
            f"input{'s have' if part.contradictions > 1 else ' has'} different labels{shown}."
        )
    if part.leaked:
        other = f", {part.relabelled} of them with another label" if part.relabelled else ""
        are = "are" if part.leaked > 1 else "is"
        yield f"{part.leaked} of {part.rows} {name} rows {are} in the training set too{other}."


def _stay(rows: int) -> str:
    return "stay" if rows > 1 else "stays"


def _row(part: PartCheck, classes: bool) -> str:
    where = f" ({part.origin})" if part.origin else ""
    said = f"{part.rows} row{'s' if part.rows != 1 else ''}{where}"
    if not classes:
        return said
    counts = [f"{printable(name)} {count}" for name, count in part.labels.items()]
    if len(counts) <= _MOST:
        return f"{said}: {', '.join(counts)}"
    least, most = min(part.labels.values()), max(part.labels.values())
    return f"{said}: {len(counts)} labels, from {least} to {most} rows each"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_MOST]))
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more"


def printable(text: str) -> str:
    """Return a text of the data as a terminal can show it: control characters are written out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _part_record(part: PartCheck) -> dict[str, Any]:
    return {
        "rows": part.rows,
        "from": part.origin,
        "labels": part.labels,
        "duplicates": part.duplicates,
        "contradictions": part.contradictions,
        "contradicting_rows": part.contradicting,
        "rows_with_a_blank_text": part.blank,
        "rows_left_out_without_text": len(part.left_out),
        "texts_that_are_numbers": part.numbers,
        "also_in_train": part.leaked,
        "also_in_train_with_another_label": part.relabelled,
    }
