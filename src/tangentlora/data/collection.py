"""What a source holds before anything is drawn from it: its parts, their task and how an input is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tangentlora.data.classification import COMPLETION, Task
from tangentlora.data.columns import Columns, Wanted, find_columns, unused
from tangentlora.data.completions import completion_table
from tangentlora.data.examples import Examples
from tangentlora.data.labelling import label_table, task_of, with_class_names
from tangentlora.data.reading import Reading
from tangentlora.data.tables import Table
from tangentlora.errors import InputError

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

    Inputs may be references, such as file paths: only what is drawn gets decoded, by `decode`, or by what
    `given` has for a part that came from a further source. `inferred` says that the labels are those found in
    the training part.
    """

    parts: Mapping[str, Examples]
    task: Task
    decode: Callable[[Examples], Examples] = lambda examples: examples
    reading: Reading = field(default_factory=Reading)
    inferred: bool = False
    given: Mapping[str, Callable[[Examples], Examples]] = field(default_factory=dict)

    def with_part(self, part: str, examples: Examples, other: Collection) -> Collection:
        """Return the collection with a part of another source, in place of its own where it has one."""
        own, found = self.reading, other.reading
        notes = (*own.notes, *found.notes)
        if part in self.parts:
            where = own.origins.get(part, "the source")
            notes += (f"The {part} rows of {where} are not used, since others are given.",)
        reading = replace(
            own,
            unused=tuple(dict.fromkeys((*own.unused, *found.unused))),
            origins={**own.origins, **found.origins},
            left_out={
                **{name: rows for name, rows in own.left_out.items() if name != part},
                **found.left_out,
            },
            notes=notes,
        )
        parts, given = {**self.parts, part: examples}, {**self.given, part: other.decode}
        return replace(self, parts=parts, reading=reading, given=given)

    def decoded(self, part: str, examples: Examples | None) -> Examples | None:
        """Return what was drawn for a part with its inputs decoded."""
        return None if examples is None else self.given.get(part, self.decode)(examples)


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
    """Return the collection of text tables; without a task, the training table says what the labels are.

    Raises InputError as `find_columns` and `label_table` do, and where a part has one text and the training
    part two, or the reverse.
    """
    train, columns = find_columns(tables["train"], wanted, headerless)
    train = with_class_names(train, columns.label, wanted.task)
    task = wanted.task or task_of(train, columns)
    rest = replace(wanted, task=task)
    found: dict[str, tuple[Table, Columns]] = {"train": (train, columns)}
    for part, table in tables.items():
        if part != "train":
            other, own = find_columns(table, rest, headerless)
            found[part] = with_class_names(other, own.label, task if wanted.task else None), own
            _require_same_arity(found[part], (train, columns))
    examples: dict[str, Examples] = {}
    left_out: dict[str, tuple[int, ...]] = {}
    for part, pair in found.items():
        if task == COMPLETION:
            examples[part] = completion_table(*pair)
        else:
            examples[part], left_out[part] = label_table(*pair, task, wanted.published)
    others = dict.fromkeys(name for pair in found.values() for name in unused(*pair))
    reading = Reading(
        text=columns.text,
        label=columns.label,
        unused=tuple(others),
        origins={part: table.name for part, (table, _) in found.items()},
        left_out={part: rows for part, rows in left_out.items() if rows},
    )
    return Collection(examples, task, reading=reading, inferred=wanted.task is None and task != COMPLETION)


def _require_same_arity(part: tuple[Table, Columns], train: tuple[Table, Columns]) -> None:
    one, other = part[1].text, train[1].text
    if len(one) != len(other):
        raise InputError(
            f"{part[0].name} has its text in {' and '.join(map(repr, one))} and {train[0].name} in "
            f"{' and '.join(map(repr, other))}; expected the same number of texts in both: name the text "
            "columns that both have"
        )
