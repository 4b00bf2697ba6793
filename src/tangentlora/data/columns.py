"""Which columns of a table hold the text and the label, and which others would be lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tangentlora.data.classification import Task
from tangentlora.data.tables import Table
from tangentlora.errors import InputError

TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "message",
    "review",
    "comment",
    "question",
    "query",
    "utterance",
    "body",
    "prompt",
)
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "document"),
    ("question", "answer"),
    ("premise", "hypothesis"),
    ("claim", "evidence"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "context"),
    ("query", "answer"),
    ("prompt", "response"),
    ("context", "response"),
    ("title", "body"),
    ("subject", "body"),
    ("text", "text_pair"),
    ("sentence", "sentence_pair"),
)
LABEL_NAMES: tuple[str, ...] = (
    "label",
    "labels",
    "category",
    "class",
    "target",
    "intent",
    "sentiment",
    "topic",
    "coarse_label",
    "completion",
)

_STEMS = (*TEXT_NAMES, "passage", "document", "paragraph", "phrase", "string", "title", "sent", "premise")
_NUMBERED = re.compile(r"(.*?)([_ .-]?)([1aA])")
_SECOND = {"1": "2", "a": "b", "A": "B"}

_TEXTUAL = {*TEXT_NAMES, *(name for pair in PAIR_NAMES for name in pair)} | {
    *("title", "summary", "abstract", "description", "headline", "subject", "paragraph", "completion"),
    *("explanation", "reason", "article", "source_text", "target_text", "reference"),
}
"""Columns of these names count as texts where they hold words at all."""

_CHATS = ("messages", "conversations", "conversation", "chosen", "dialog", "dialogue")
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "context", "source")
_ANSWERS = ("completion", "response", "output", "answer", "target")
CONVERSATION = (
    "of a conversation write what the network saw before the answer, in its chat template, as 'prompt' and "
    "the answer as 'completion'"
)
"""The remedy for lists of messages, which are not read."""

_SAMPLED = 500
_WORDS = 3  # of the typical value of a column that is text, whatever its name
_SHARE = 1 / 3  # of a column's values that differ, for it to be text and no category


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text, or the two texts of a pair, and the label."""

    text: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Wanted:
    """What the caller said of the data: the task and the columns, each None where it is to be found out.

    `published` says that the files are of a known layout: rows without a text, which some have, are kept.
    """

    task: Task | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    published: bool = False

    def find(self, available: Sequence[str]) -> Columns | None:
        """Return the columns named by the caller, else by the task, else by custom; None if some are absent.

        Pairs come before single texts: a table with a question and a sentence poses a question about both.
        Customary names are told whatever their case and outer blanks; those the caller gives are exact.
        """
        pairs: tuple[tuple[str, ...], ...] = (*PAIR_NAMES, *_numbered(available))
        singles: tuple[tuple[str, ...], ...] = tuple((name,) for name in TEXT_NAMES)
        texts, labels = pairs + singles, LABEL_NAMES
        if self.task is not None:
            texts = (self.task.text_columns, *(singles if len(self.task.text_columns) == 1 else pairs))
            labels = (self.task.label_column, *labels)
        texts = texts if self.text is None else (self.text,)
        labels = labels if self.label is None else (self.label,)
        written = _as_written(available)
        if self.text is None:
            texts = tuple(tuple(map(written, names)) for names in texts)
        if self.label is None:
            labels = tuple(map(written, labels))
        text = next((names for names in texts if set(names) <= set(available)), None)
        label = next((name for name in labels if name in available and name not in (text or ())), None)
        return None if text is None or label is None else Columns(text, label)

    def describe(self) -> str:
        """Return what was looked for, for a message."""
        text = self.text or (self.task.text_columns if self.task else TEXT_NAMES[:2])
        label = self.label or (self.task.label_column if self.task else LABEL_NAMES[0])
        joint = " and " if self.text or self.task else " or "
        return f"the text in {joint.join(map(repr, text))} and the label in {label!r}"


def find_columns(table: Table, wanted: Wanted, headerless: tuple[str, ...] = ()) -> tuple[Table, Columns]:
    """Return the table under the right names, and its text and label columns.

    A table whose first row names no such columns is taken to have no header when `headerless` has names of
    its width. Raises InputError, with the columns found, when text or label is missing, a column that is read
    is there twice, or a further column of texts would be lost.
    """
    columns = wanted.find(table.columns)
    if columns is None and table.header and len(headerless) == len(table.columns):
        table = table.without_header(headerless)
        columns = wanted.find(table.columns)
    if columns is None:
        found = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in table.columns)
        raise InputError(
            f"{table.name} has the columns {found}; expected {wanted.describe()}: name the text and label "
            f"columns, or put their names in the first row{_delimiter_hint(table)}{_trainers_hint(table)}"
        )
    for name in (*columns.text, columns.label):
        if table.columns.count(name) > 1:
            raise InputError(
                f"{table.name} has {table.columns.count(name)} columns called {name!r}; expected one: rename "
                "or remove the others"
            )
    named = wanted.text is not None or (wanted.task is not None and columns.text == wanted.task.text_columns)
    lost = () if named else further_texts(table, columns)
    if lost:
        raise InputError(
            f"{table.name} has texts in {_listed(lost)} beside {_listed(columns.text)}, which would not be "
            "read; expected one column of text, or two that are a pair: name the text columns that are to be "
            "read, one or two, or remove the others"
        )
    return table, columns


def unused(table: Table, columns: Columns) -> tuple[str, ...]:
    """Return the names of the columns that are not read."""
    return tuple(name for name in table.columns if name not in (*columns.text, columns.label))


def further_texts(table: Table, columns: Columns) -> tuple[str, ...]:
    """Return the columns that are not read and hold texts, by name or by their sentences."""
    step = max(1, len(table.rows) // _SAMPLED)
    rows = table.rows[::step]
    return tuple(
        name
        for place, name in enumerate(table.columns)
        if name not in (*columns.text, columns.label, f"{columns.label}_text")
        and _is_text(name, [row[place] for row in rows])
    )


def _is_text(name: str, values: Iterable[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str) and re.search(r"[^\W\d_]", value)]
    if not texts:
        return False
    differ = len(set(texts))
    if name.lower() in _TEXTUAL or name.lower().rstrip("12ab_") in _STEMS:
        return differ > max(1, len(texts) * _SHARE) or any(len(text.split()) >= 2 * _WORDS for text in texts)
    long = sum(len(text.split()) >= _WORDS or _unspaced(text) for text in texts)
    return 2 * long > len(texts) and differ > len(texts) * _SHARE


def _unspaced(text: str) -> bool:
    """Say whether a text is long in a script that writes no spaces between words."""
    return sum(ord(letter) >= 0x2E80 for letter in text) >= 2 * _WORDS


def _as_written(available: Sequence[str]) -> Callable[[str], str]:
    """Return what finds the column that a name means: of that name, else of it but for case and blanks."""
    plain = {name.strip().casefold(): name for name in reversed(available)}
    return lambda name: name if name in available else plain.get(name.strip().casefold(), name)


def _numbered(available: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of columns such as text1 and text2, text_a and text_b."""
    pairs = []
    for name in available:
        match = _NUMBERED.fullmatch(name)
        if match and match[1].lower() in _STEMS:
            other = match[1] + match[2] + _SECOND[match[3]]
            pairs += [(name, other)] if other in available else []
    return tuple(pairs)


def _delimiter_hint(table: Table) -> str:
    """Return a further remedy where the only column's name looks like several."""
    others = [sign for sign in (";", "\t", "|", ",") if len(table.columns) == 1 and sign in table.columns[0]]
    if not table.header or not others:
        return ""
    sign = "tabs" if others[0] == "\t" else repr(others[0])
    own = "tabs" if table.name.lower().endswith(".tsv") else "commas"
    return f"; if its columns are parted by {sign}, save it with {own}, or under the suffix that says so"


def _trainers_hint(table: Table) -> str:
    """Return a further remedy for rows as trainers of causal language models take them."""
    names = {name.lower(): name for name in table.columns}
    prompt = next((names[name] for name in _PROMPTS if name in names), None)
    answer = next((names[name] for name in _ANSWERS if name in names), None)
    if any(name in names for name in _CHATS):
        return f"; {CONVERSATION}"
    if prompt is None or answer is None:
        return ""
    return (
        f"; if {answer!r} goes on where {prompt!r} ends, for a causal language model, take the task "
        f"'completion' with {prompt!r} as its text and {answer!r} as its label"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
