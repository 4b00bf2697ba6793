"""From a table to labelled examples: which columns hold text and label, and which output a label is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tangentlora.data.classification import COMPLETION, Task, infer_task
from tangentlora.data.examples import Examples
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
    ("premise", "hypothesis"),
    ("text1", "text2"),
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


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text, or the two texts of a pair, and the label."""

    text: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Wanted:
    """What the caller said of the data: the task and the columns, each None where it is to be found out."""

    task: Task | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None

    def find(self, available: Sequence[str]) -> Columns | None:
        """Return the columns named by the caller, else by the task, else by custom; None if some are absent.

        Pairs come before single texts: a table with a question and a sentence poses a question about both.
        """
        pairs: tuple[tuple[str, ...], ...] = PAIR_NAMES
        singles: tuple[tuple[str, ...], ...] = tuple((name,) for name in TEXT_NAMES)
        texts, labels = pairs + singles, LABEL_NAMES
        if self.task is not None:
            texts = (self.task.text_columns, *(singles if len(self.task.text_columns) == 1 else pairs))
            labels = (self.task.label_column, *labels)
        texts = texts if self.text is None else (self.text,)
        labels = labels if self.label is None else (self.label,)
        text = next((names for names in texts if set(names) <= set(available)), None)
        label = next((name for name in labels if name in available), None)
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
    its width. Raises InputError, with the columns found, when text or label is missing.
    """
    columns = wanted.find(table.columns)
    if columns is None and table.header and len(headerless) == len(table.columns):
        table = table.without_header(headerless)
        columns = wanted.find(table.columns)
    if columns is None:
        found = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in table.columns)
        raise InputError(
            f"{table.name} has the columns {found}; expected {wanted.describe()}: name the text and label "
            f"columns, or put their names in the first row"
        )
    return table, columns


def label_values(table: Table, column: str) -> list[str]:
    """Return the label column as strings: whole numbers without a decimal point, text without outer blanks.

    Raises InputError, with the row number, when a label is missing.
    """
    values = [_as_label(value) for value in table.column(column)]
    for number, value in zip(table.numbers, values, strict=True):
        if not value:
            raise InputError(
                f"row {number} of {table.name} has no label in {column!r}; add it or remove the row"
            )
    return values


def text_values(table: Table, column: str) -> list[str]:
    """Return a column of texts as they are; raise InputError, with the row number, for what is no text."""
    values = table.column(column)
    for number, text in zip(table.numbers, values, strict=True):
        if not isinstance(text, str):
            raise InputError(
                f"row {number} of {table.name} has {text!r} in {column!r}; expected text: correct the row, "
                f"or name another text column"
            )
    return values


def task_of(table: Table, columns: Columns) -> Task:
    """Return the task that an unknown table poses; see :func:`tangentlora.data.infer_task`.

    A label column called `completion` beside one text says that there are no classes but texts to go on with.
    """
    if len(columns.text) == 1 and columns.label == COMPLETION.label_column:
        return COMPLETION
    values = label_values(table, columns.label)
    return infer_task(values, text_columns=columns.text, label_column=columns.label)


def label_indices(table: Table, column: str, task: Task) -> tuple[int, ...]:
    """Return the output, 0..K−1, of every row; raise InputError, with the row, for an unknown label."""
    outputs = task.outputs
    values = label_values(table, column)
    for number, value in zip(table.numbers, values, strict=True):
        if value not in outputs:
            raise InputError(
                f"row {number} of {table.name} has the label {value!r}; expected one of "
                f"{', '.join(task.labels)}, the labels of task {task.name}: correct the row, or choose "
                f"another task or label column"
            )
    return tuple(outputs[value] for value in values)


def label_table(table: Table, columns: Columns, task: Task) -> Examples:
    """Return the rows as text examples with the labels of the task; blank text is kept, missing text not.

    Raises InputError, with the row number, for a text that is no text, and as :func:`label_indices` does.
    """
    texts = [text_values(table, name) for name in columns.text]
    inputs = tuple(texts[0]) if len(texts) == 1 else tuple(zip(*texts, strict=True))
    return Examples(inputs, label_indices(table, columns.label, task), task.labels)


def _as_label(value: Any) -> str:
    if value is None or value != value:  # JSON and parquet know NaN
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()
