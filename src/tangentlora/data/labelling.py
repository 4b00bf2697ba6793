"""From a table to labelled examples: the texts, and which output a label is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tangentlora.data.classification import COMPLETION, Task, infer_task
from tangentlora.data.columns import CONVERSATION, Columns
from tangentlora.data.examples import Examples
from tangentlora.data.label_kinds import is_blank, read_labels, require_letters
from tangentlora.data.tables import Table
from tangentlora.errors import InputError


def text_values(table: Table, column: str) -> list[str]:
    """Return a column of texts as they are; raise InputError, with the row number, for what is no text."""
    values = table.column(column)
    for number, text in zip(table.numbers, values, strict=True):
        if isinstance(text, list) and any(isinstance(turn, dict) for turn in text):
            raise InputError(
                f"row {number} of {table.name} has a list of messages in {column!r}; expected text: "
                f"{CONVERSATION}"
            )
        if not isinstance(text, str):
            raise InputError(
                f"row {number} of {table.name} has {text!r} in {column!r}; expected text: correct the row, "
                f"or name another text column"
            )
        require_letters(text, f"row {number} of {table.name}", column)
    return values


def task_of(table: Table, columns: Columns) -> Task:
    """Return the task that an unknown table poses; see :func:`tangentlora.data.infer_task`.

    A label column called `completion` beside one text says that there are no classes but texts to go on with.
    """
    if len(columns.text) == 1 and columns.label.strip().casefold() == COMPLETION.label_column:
        return COMPLETION
    values = read_labels(table, columns.label)
    return infer_task(values, text_columns=columns.text, label_column=columns.label)


def named_as_the_task(names: dict[Any, str], column: str, task: Task | None, source: str) -> dict[Any, str]:
    """Return the label of the task that each number of a label column means, where the source names them.

    A label is told by its name whatever the case. Nothing is returned, and the numbers stand, where the task
    has no names. Raises InputError for names that are not the task's: sources number labels differently.
    """
    if task is None or not names:
        return names
    folded = {value.casefold(): k for value, k in task.outputs.items()}
    outputs = {n: task.outputs.get(name, folded.get(name.casefold())) for n, name in names.items()}
    if set(range(len(task.labels))) <= set(outputs.values()):
        return {n: names[n] if k is None else task.labels[k] for n, k in outputs.items()}
    if not task.synonyms:
        return {}
    raise InputError(
        f"{source} calls the labels in {column!r} {', '.join(names.values())}, and task {task.name} knows "
        f"them as {', '.join(task.outputs)}; choose another label column or task, or leave the task out"
    )


def with_class_names(table: Table, column: str, task: Task | None) -> Table:
    """Return the table with the numbers of a label column as the names that the file itself has for them."""
    names = dict(enumerate(table.class_names.get(column, ())))
    meant = named_as_the_task(names, column, task, table.name)
    if not meant:
        return table
    place = table.columns.index(column)
    rows = tuple((*row[:place], meant.get(row[place]), *row[place + 1 :]) for row in table.rows)
    return replace(table, rows=rows)


def label_indices(table: Table, column: str, task: Task) -> tuple[int, ...]:
    """Return the output, 0..K−1, of every row; raise InputError, with the row, for an unknown label."""
    outputs = task.outputs
    values = read_labels(table, column, outputs)
    for number, value in zip(table.numbers, values, strict=True):
        if value not in outputs:
            raise InputError(
                f"row {number} of {table.name} has the label {value!r}; expected one of "
                f"{', '.join(task.labels)}, the labels of task {task.name}: correct the row, or choose "
                f"another task or label column"
            )
    return tuple(outputs[value] for value in values)


def label_table(
    table: Table, columns: Columns, task: Task, keep_blank: bool = False
) -> tuple[Examples, tuple[int, ...]]:
    """Return the rows as text examples with the labels of the task, and the numbers of the rows left out.

    Those are the rows whose texts are all blank, none with `keep_blank`. Raises InputError, with the row
    number, for a text that is no text, and as :func:`label_indices` does.
    """
    texts = [text_values(table, name) for name in columns.text]
    labels = label_indices(table, columns.label, task)
    rows: list[Any] = texts[0] if len(texts) == 1 else list(zip(*texts, strict=True))
    kept = [i for i in range(len(labels)) if not all(is_blank(column[i]) for column in texts)]
    found = Examples(tuple(rows), labels, task.labels)
    if keep_blank or len(kept) == len(labels):
        return found, ()
    blank = set(range(len(labels))) - set(kept)
    return found.select(kept), tuple(table.numbers[i] for i in sorted(blank))
