"""Data sets from the hub: the only place that imports `datasets`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tangentlora.data.collection import Collection, collect_tables, name_parts
from tangentlora.data.examples import Examples, Modality
from tangentlora.data.labelling import Columns, Wanted, find_columns, label_indices, task_of
from tangentlora.data.media import decode_images, decode_waveforms
from tangentlora.data.tables import Table
from tangentlora.errors import InputError

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?", re.ASCII)


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


def open_hub(source: str, wanted: Wanted, revision: str | None, sampling_rate: int | None) -> Collection:
    """Return the collection in a data set of the hub, downloaded or from the cache.

    A dev or test part without any labels (−1 throughout) counts as absent. Where the set numbers its labels
    and also names them, the names are the labels, unless the task knows only the numbers. Images and
    recordings stay encoded until drawn. Raises InputError when the set cannot be had, or has no usable parts
    or columns.
    """
    parts = _load(source, revision)
    modality, media = _find_media(parts["train"].features, wanted)
    wanted = wanted if media is None else replace(wanted, text=(media,))
    heading = Table(source, tuple(parts["train"].features), (), (), header=False)
    _, columns = find_columns(heading, wanted)
    tables = {}
    for part, data in parts.items():
        name = f"{source} ({part})"
        labels = _labels(data, columns.label, wanted)
        if part != "train" and not any(label is not None for label in labels):
            continue
        if media is None:
            inputs = [list(data[column]) for column in columns.text]
        else:
            inputs = [_cells(data, media, name)]
        rows = tuple(zip(*inputs, labels, strict=True))
        numbers = tuple(range(1, len(rows) + 1))
        tables[part] = Table(name, (*columns.text, columns.label), rows, numbers, header=False)
    if media is None:
        return collect_tables(tables, wanted)
    return _collect_media(tables, columns, wanted, modality, sampling_rate)


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


def _labels(data: Any, column: str, wanted: Wanted) -> list[Any]:
    """Return the labels of one part, None for −1, by name where the set has names that the task allows."""
    import datasets

    labels = [None if label == -1 else label for label in data[column]]
    kind = data.features[column]
    if not isinstance(kind, datasets.ClassLabel):
        return labels
    if wanted.task is not None and not set(wanted.task.labels) <= set(kind.names):
        return labels
    return [None if label is None else kind.names[label] for label in labels]


def _cells(data: Any, column: str, name: str) -> list[HubCell]:
    encoded = data.cast_column(column, replace(data.features[column], decode=False))
    return [HubCell(encoded, row, column, name) for row in range(len(encoded))]


def _collect_media(
    tables: dict[str, Table], columns: Columns, wanted: Wanted, modality: Modality, sampling_rate: int | None
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
    return Collection(parts, task, decode)
