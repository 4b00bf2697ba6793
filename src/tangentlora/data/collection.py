"""What a source holds before anything is drawn from it: its parts, their task and how an input is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tangentlora.data.classification import COMPLETION, Task
from tangentlora.data.completions import completion_table
from tangentlora.data.examples import Examples
from tangentlora.data.labelling import Wanted, find_columns, label_table, task_of
from tangentlora.data.tables import Table

PART_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val", "dev_matched", "validation_matched"),
    "test": ("test", "test_matched"),
}
"""The names under which files, folders and hub data sets hold each part."""

Held = TypeVar("Held")


@dataclass(frozen=True)
class Collection:
    """The parts of a source (`train` always, `dev` and `test` where they exist), their task and decoder.

    Inputs may be references, such as file paths: only what is drawn gets decoded, by `decode`.
    """

    parts: Mapping[str, Examples]
    task: Task
    decode: Callable[[Examples], Examples] = lambda examples: examples


def name_parts(found: Mapping[str, Held]) -> dict[str, Held]:
    """Return what was found as train, dev and test; the first of several names for one part counts."""
    return {
        part: next(found[name] for name in names if name in found)
        for part, names in PART_NAMES.items()
        if any(name in found for name in names)
    }


def collect_tables(
    tables: Mapping[str, Table], wanted: Wanted, headerless: tuple[str, ...] = ()
) -> Collection:
    """Return the collection of text tables; without a task, the training table says what the labels are."""
    found = {part: find_columns(table, wanted, headerless) for part, table in tables.items()}
    task = wanted.task or task_of(*found["train"])
    if task == COMPLETION:
        return Collection({part: completion_table(*pair) for part, pair in found.items()}, task)
    return Collection({part: label_table(*pair, task) for part, pair in found.items()}, task)
