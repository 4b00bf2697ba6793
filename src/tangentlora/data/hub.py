"""Data sets from the hub: the only place that imports `datasets`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tangentlora.data.classification import Task
from tangentlora.data.collection import Collection, collect_tables, name_parts
from tangentlora.data.columns import Columns, Wanted, find_columns, unused
from tangentlora.data.examples import Examples, Modality
from tangentlora.data.labelling import label_indices, named_as_the_task, task_of
from tangentlora.data.media import Rate, decode_images, decode_waveforms
from tangentlora.data.reading import Reading
from tangentlora.data.tables import Table
from tangentlora.errors import InputError

_SAMPLED = 500  # rows, by which columns of texts are told from others
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubCell:
    """One image or recording, still encoded, in a row of a data set."""

    data: Any
    row: int
    column: str
    name: str

    def read_bytes(self) -> bytes:
        """Return the encoded bytes; raise OSError when the cell is empty."""
        cell = self.data[self.row][self.column]
        if cell is None:
            raise OSError("the cell is empty")
        raw: bytes | None = cell["bytes"]
        return Path(cell["path"]).read_bytes() if raw is None else raw

    def __str__(self) -> str:
        return f"in row {self.row + 1} of {self.name}"


def is_hub_id(source: str) -> bool:
    """Say whether a source reads as a hub id: `owner/name`, or `owner/name:subset`."""
    return _HUB_ID.fullmatch(source) is not None


def open_hub(source: str, wanted: Wanted, revision: str | None, sampling_rate: Rate) -> Collection:
    """Return the collection in a data set of the hub, downloaded or from the cache.

    Where the set numbers its labels and also names them, in the type of the column or in a second column
    `<label>_text`, the names are the labels; the numbers are for a task that knows no names at all. Rows of
    a column with such a type whose label is −1 have none and are left out; a dev or test part without any
    labels counts as absent. Images and recordings stay encoded until drawn. Raises InputError when the set
    cannot be had, has no usable parts or columns, or calls the labels of the task by other names.
    """
    parts = _load(source, revision)
    modality, media = _find_media(parts["train"].features, wanted)
    wanted = wanted if media is None else replace(wanted, text=(media,))
    heading, columns = find_columns(_sample(source, parts["train"]), wanted)
    tables = {}
    absent: tuple[str, ...] = ()
    for part, data in parts.items():
        _require_columns(f"{source} ({part})", data, columns)
        if part != "train" and all(label in (-1, None) for label in data[columns.label][:]):
            absent += (f"{source} ({part}) has no labels and is left out.",)
            continue
        names = _label_names(data, columns.label, wanted.task, source)
        tables[part] = _table(f"{source} ({part})", data, columns, names, media)
    if media is None:
        found = collect_tables(tables, wanted)
    else:
        found = _collect_media(tables, columns, wanted, modality, sampling_rate)
    unlabelled = {part: len(parts[part]) - len(table.rows) for part, table in tables.items()}
    absent += tuple(
        f"{source} ({part}) has rows without a label, which are left out: {n}."
        for part, n in unlabelled.items()
        if n
    )
    reading = replace(found.reading, unused=unused(heading, columns), notes=(*found.reading.notes, *absent))
    return replace(found, reading=reading)


def _sample(source: str, data: Any) -> Table:
    """Return some of the rows, without what would have to be decoded, to find columns by."""
    import datasets

    names = tuple(data.features)
    rows = range(0, len(data), max(1, len(data) // _SAMPLED))
    plain = {name: isinstance(kind, datasets.Value) for name, kind in data.features.items()}
    chosen = data.select(rows)
    values = [chosen[name][:] if plain[name] else [None] * len(rows) for name in names]
    return Table(source, names, tuple(zip(*values, strict=True)), tuple(i + 1 for i in rows), header=False)


def _require_columns(name: str, data: Any, columns: Columns) -> None:
    """Refuse a part that lacks a column of the training part."""
    missing = [column for column in (*columns.text, columns.label) if column not in data.features]
    if missing:
        raise InputError(
            f"{name} has the columns {', '.join(map(repr, data.features))}; expected "
            f"{' and '.join(map(repr, missing))}, as in the training part: choose a set whose parts agree"
        )


def _load(source: str, revision: str | None) -> dict[str, Any]:
    import datasets

    match = _HUB_ID.fullmatch(source)
    assert match is not None, "the caller asks is_hub_id first"
    try:
        loaded = datasets.load_dataset(match[1], match[2], revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{source} is neither a file or folder here nor a data set that the hub gave ({reason}); check "
            f"the name, the subset (owner/name:subset) and the connection, or download it and give its folder"
        ) from error
    parts = name_parts(dict(loaded)) if len(loaded) > 1 else {"train": next(iter(loaded.values()))}
    if "train" not in parts:
        raise InputError(
            f"{source} has the parts {', '.join(loaded)} and none called train; give another data set"
        )
    return parts


def _find_media(features: Any, wanted: Wanted) -> tuple[Modality, str | None]:
    """Return the modality, and the column of images or recordings: the one named, else the first."""
    import datasets

    for name, kind in features.items():
        if wanted.text in (None, (name,)) and isinstance(kind, (datasets.Image, datasets.Audio)):
            return ("image" if isinstance(kind, datasets.Image) else "audio"), name
    return "text", None


def _label_names(data: Any, column: str, task: Task | None, source: str) -> dict[Any, str]:
    """Return what every number in the label column means, or nothing where its values are to stand.

    The values stand when they are no numbers, when there are no names, or not one for each number, and as
    `named_as_the_task` says.
    """
    import datasets

    kind, beside = data.features[column], f"{column}_text"
    names: dict[Any, str] = {}
    if isinstance(kind, datasets.ClassLabel):
        names = dict(enumerate(kind.names))
    elif isinstance(kind, datasets.Value) and "int" in kind.dtype and beside in data.features:
        pairs = set(zip(data[column][:], data[beside][:], strict=True))
        names = dict(pairs)
        if len(names) < len(pairs) or not all(names.values()):
            return {}
    return named_as_the_task(names, column, task, source)


def _table(name: str, data: Any, columns: Columns, names: dict[Any, str], media: str | None) -> Table:
    """Return the labelled rows of one part; in a column of named labels −1 says that there is none."""
    import datasets

    inputs = [data[text][:] for text in columns.text] if media is None else [_cells(data, media, name)]
    labels = data[columns.label][:]
    typed = isinstance(data.features[columns.label], datasets.ClassLabel)
    kept = [i for i, label in enumerate(labels) if not typed or label != -1]
    named = [names.get(label, label) for label in labels] if names else labels
    rows = tuple((*(values[i] for values in inputs), named[i]) for i in kept)
    numbers = tuple(i + 1 for i in kept)
    return Table(name, (*columns.text, columns.label), rows, numbers, header=False)


def _cells(data: Any, column: str, name: str) -> list[HubCell]:
    encoded = data.cast_column(column, replace(data.features[column], decode=False))
    return [HubCell(encoded, row, column, name) for row in range(len(encoded))]


def _collect_media(
    tables: dict[str, Table], columns: Columns, wanted: Wanted, modality: Modality, sampling_rate: Rate
) -> Collection:
    task = wanted.task or task_of(tables["train"], columns)
    parts = {
        part: Examples(
            inputs=tuple(table.column(columns.text[0])),
            labels=label_indices(table, columns.label, task),
            label_names=task.labels,
            modality=modality,
        )
        for part, table in tables.items()
    }
    decode = decode_images if modality == "image" else partial(decode_waveforms, sampling_rate=sampling_rate)
    reading = Reading(
        columns.text, columns.label, origins={part: table.name for part, table in tables.items()}
    )
    return Collection(parts, task, decode, reading, inferred=wanted.task is None)
