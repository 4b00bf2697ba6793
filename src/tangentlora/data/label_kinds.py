"""What a label column holds: names and numbers of classes are read, all else is refused by name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from tangentlora.data.tables import Table
from tangentlora.errors import InputError

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?([T ]\d\d?:\d\d.*)?|\d\d?/\d\d?/\d{2,4}|\d\d?\.\d\d?\.\d{4}")
_LIST = re.compile(r"\[.*\]|\(.*,.*\)|\{.*[,:].*\}|[01]([ ,;|][01])+", re.DOTALL)
_JOINTS = ("|", ";", ",")
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_UNSEEN = dict.fromkeys(map(ord, _INVISIBLE))
_ENDS = " .,;:!\"'…"  # what stands around a label and tells no two apart

_CLASSES = "expected one class for each row, a word or a whole number"
_REGRESSION = "losses for regression are not offered: name another column as the label"
_MULTI_LABEL = "losses for several labels of one row are not offered: name another column as the label"


def read_labels(table: Table, column: str, known: Collection[str] = ()) -> list[str]:
    """Return a label column as strings: whole numbers without a decimal point, text without outer blanks.

    Truth values are the classes `False` and `True`, one-hot lists of one length the places of their ones,
    counted from 0. `known` are labels that the task declares, whatever they
    look like. Raises InputError, with the row number, for a label that is missing, and for what is no class:
    lists (one-hot, multi-hot or of names), several labels in one text, real numbers, dates, and a column
    of mixed types.
    """
    values = table.column(column)
    for number, value in zip(table.numbers, values, strict=True):
        if _is_missing(value):
            raise InputError(
                f"row {number} of {table.name} has no label in {column!r}; add it or remove the row"
            )
    if all(map(_is_one_hot, values)) and len({len(value) for value in values}) == 1:
        values = [next(k for k, item in enumerate(value) if item) for value in values]
    if any(isinstance(value, bool | int | float) for value in values):
        _require_one_type(table, column, values)
    labels = [_as_label(value, known) for value in values]
    for number, label in zip(table.numbers, labels, strict=True):
        require_letters(label, f"row {number} of {table.name}", column)
    seen = {label for label in labels if label in known}
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        if label in seen and isinstance(value, str):
            continue
        seen.add(label)
        kind, remedy = _no_class(value, label, known)
        if kind:
            shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:39] + "…"
            raise InputError(
                f"row {table.numbers[place]} of {table.name} has {shown} in the label column {column!r}, "
                f"{kind}; {_CLASSES}: {remedy}"
            )
    _require_single(table, column, labels, known)
    return labels


def is_blank(text: str) -> bool:
    """Say whether a text shows nothing: blanks, and marks of no width such as a byte order mark."""
    return not text.strip().strip(_INVISIBLE).strip()


def plain_text(text: str) -> str:
    """Return a text as it looks: in the composed form of Unicode, with single blanks and no hidden marks."""
    return " ".join(unicodedata.normalize("NFC", text).translate(_UNSEEN).split())


def require_letters(text: str, row: str, column: str) -> None:
    """Raise InputError for half of a surrogate pair, which no file and no tokenizer takes."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(
            f"{row} has half of a surrogate pair in {column!r}, which is no letter; expected Unicode text: "
            "correct the row, or write the file again as UTF-8"
        )


def twins(labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of labels that differ in case, spaces, `_`, `-`, points or Unicode form only."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(_folded(label), []).append(label)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _folded(label: str) -> str:
    plain = unicodedata.normalize("NFKC", label).casefold()
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")
    if re.fullmatch(r"[+-]?\d+", plain.strip()):
        return str(int(plain))
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", plain.strip(_ENDS) or plain.strip())


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return is_blank(value)
    return value is None or (isinstance(value, float) and value != value)  # JSON and parquet know NaN


def _as_label(value: Any, known: Collection[str]) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    whole = None if text in known else _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _no_class(value: Any, label: str, known: Collection[str]) -> tuple[str, str]:
    """Return what a value is that is no class, and what to do; two empty texts for a class."""
    if isinstance(value, list | tuple):
        return _of_list(value)
    if isinstance(value, dict):
        return "an object with fields", "name a column that holds the class itself"
    if isinstance(value, bytes):
        return "bytes", "write the class as text"
    if not isinstance(value, str | bool | int | float):  # dates, times, decimals
        real = _NUMBER.fullmatch(label) is not None
        if not real:
            return f"a {type(value).__name__}", "write the class that it stands for as text"
    if label in known:
        return "", ""
    if _LIST.fullmatch(label):
        return "a list written as text", f"where it stands for one class, write that; {_MULTI_LABEL}"
    if _DATE.fullmatch(label):
        return "a date", "write the class that it stands for as text"
    if label.lower() in ("inf", "-inf", "infinity", "-infinity"):
        return "a number that is not finite", _REGRESSION
    if re.fullmatch(r"[+-]?\d+,\d+", label) or (_NUMBER.fullmatch(label) and not label.strip("+-").isdigit()):
        return (
            "a real number",
            f"{_REGRESSION}, or where the numbers are names of classes, write them as words",
        )
    return "", ""


def _is_one_hot(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) < 2:
        return False
    return all(isinstance(item, bool | int | float) and item in (0, 1) for item in value) and sum(value) == 1


def _of_list(value: Sequence[Any]) -> tuple[str, str]:
    numbers = all(isinstance(item, bool | int | float) for item in value)
    truths = numbers and all(item in (0, 1) for item in value)
    if truths and len(value) > 1:
        return "a multi-hot list, or one-hot beside others", _MULTI_LABEL
    if numbers and value and not all(float(item).is_integer() for item in value):
        return "a list of real numbers", "write the class; losses for several real numbers are not offered"
    return "a list of labels", f"where there is one in each, write it without the list; {_MULTI_LABEL}"


def _require_one_type(table: Table, column: str, values: Sequence[Any]) -> None:
    """Refuse truth values beside numbers, and words beside numbers, in files that know types."""
    first: dict[str, int] = {}
    for number, value in zip(table.numbers, values, strict=True):
        if isinstance(value, bool):
            first.setdefault("truth values", number)
        elif isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
            first.setdefault("numbers", number)
        elif isinstance(value, str):
            first.setdefault("words", number)
    if len(first) > 1:
        found = " and ".join(f"{kind} (row {number})" for kind, number in first.items())
        raise InputError(
            f"{table.name} has {found} in the label column {column!r}; expected one type: write all labels "
            "as words, or all as whole numbers"
        )


def _require_single(table: Table, column: str, labels: Sequence[str], known: Collection[str]) -> None:
    """Refuse labels such as `joy|anger` among `joy` and `anger`: several labels of one row."""
    distinct = dict.fromkeys(labels)
    for joint in _JOINTS:
        parts = {label: {part.strip() for part in label.split(joint)} for label in distinct}
        often = Counter(part for found in parts.values() for part in found)
        for label, found in parts.items():
            if len(found) > 1 and label not in known and all(often[part] > 1 for part in found):
                raise InputError(
                    f"row {table.numbers[labels.index(label)]} of {table.name} has {label!r} in the label "
                    f"column {column!r}, several labels in one; {_CLASSES}: {_MULTI_LABEL}"
                )
