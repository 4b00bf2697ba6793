"""Local folders: a table per part, or images or recordings sorted into one folder per class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tangentlora.data.classification import Task, infer_task
from tangentlora.data.collection import PART_NAMES, Collection, collect_tables, name_parts
from tangentlora.data.columns import Wanted
from tangentlora.data.examples import Examples, Modality
from tangentlora.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Rate, decode_images, decode_waveforms
from tangentlora.data.reading import Reading
from tangentlora.data.tables import TABLE_SUFFIXES, read_table
from tangentlora.errors import InputError


def part_files(folder: Path) -> dict[str, Path]:
    """Return the table files of a folder by part (`train.csv`, `dev.tsv`, `test.jsonl` …).

    Raises InputError when two files have a claim on one part.
    """
    files: dict[str, Path] = {}
    for part, names in PART_NAMES.items():
        claims = [path for name in names for s in TABLE_SUFFIXES if (path := folder / f"{name}{s}").is_file()]
        if len(claims) > 1:
            raise InputError(
                f"{folder} holds {' and '.join(path.name for path in claims)}; expected one file for the "
                f"{part} part: remove one"
            )
        if claims:
            files[part] = claims[0]
    return files


def open_tables(folder: Path, wanted: Wanted, headerless: tuple[str, ...] = ()) -> Collection:
    """Return the collection in a folder's train, dev and test files; raise InputError without train."""
    files = part_files(folder)
    if "train" not in files:
        raise InputError(f"{folder} has no train file; add train.csv, train.tsv or another kind of table")
    return collect_tables({part: read_table(path) for part, path in files.items()}, wanted, headerless)


def open_media(
    folder: Path, task: Task | None, sampling_rate: Rate, label_pattern: str | None = None
) -> Collection:
    """Return the collection in a folder of class folders, or of train, dev and test folders of class folders.

    The names of the class folders are the labels, or what the first group of the regular expression
    `label_pattern` matches in a file's name; images and recordings are told apart by their suffix.
    Raises InputError when there are neither, or both, for a class that is no label of the task, and for a
    pattern that is none, or that a file's name does not match.
    """
    roots: dict[str, Path] = name_parts({path.name: path for path in _subfolders(folder)})
    parts = roots if "train" in roots else {"train": folder}
    files = {part: _class_files(root) for part, root in parts.items()}
    if label_pattern is not None:
        files = {part: _named(rows, label_pattern) for part, rows in files.items()}
    suffixes = {path.suffix.lower() for rows in files.values() for path, _ in rows}
    kinds: set[Modality] = {"image" if suffix in IMAGE_SUFFIXES else "audio" for suffix in suffixes}
    if len(kinds) != 1 or not files["train"]:
        found = "both images and recordings" if len(kinds) > 1 else "no data that can be read for training"
        raise InputError(
            f"{folder} holds {found}; expected a train table ({', '.join(TABLE_SUFFIXES)}), k-shot folders "
            f"such as SST-2/16-13, or one folder per class of images or of recordings"
        )
    (modality,) = kinds
    inferred = task is None
    task = task or infer_task((name for _, name in files["train"]), text_columns=(modality,))
    decode = decode_images if modality == "image" else partial(decode_waveforms, sampling_rate=sampling_rate)
    origins = {part: str(root) for part, root in parts.items()}
    reading = Reading((modality,), None, origins=origins, notes=_empty_folders(parts, files))
    examples = {part: _label(rows, task, modality) for part, rows in files.items()}
    return Collection(examples, task, decode, reading, inferred)


def _empty_folders(parts: Mapping[str, Path], files: Mapping[str, list[tuple[Path, str]]]) -> tuple[str, ...]:
    """Return a sentence for each folder that would be a class if it held anything that can be read."""
    return tuple(
        f"{folder} holds no image or recording and is no class."
        for part, root in parts.items()
        for folder in _subfolders(root)
        if folder not in {path.parent for path, _ in files[part]}
    )


def _label(rows: list[tuple[Path, str]], task: Task, modality: Modality) -> Examples:
    outputs = task.outputs
    for path, name in rows:
        if name not in outputs:
            raise InputError(
                f"{path} is of the class {name!r}, which is no label of task {task.name}; expected one of "
                f"{', '.join(task.labels)}: rename or remove its folder"
            )
    references: tuple[Any, ...] = tuple(path for path, _ in rows)
    return Examples(references, tuple(outputs[name] for _, name in rows), task.labels, modality)


def _named(rows: list[tuple[Path, str]], label_pattern: str) -> list[tuple[Path, str]]:
    """Return the files with the label that the pattern finds in their names."""
    try:
        pattern = re.compile(label_pattern)
    except re.error as error:
        raise InputError(f"got the label pattern {label_pattern!r} ({error}); correct it") from error
    found = [(path, pattern.search(path.name)) for path, _ in rows]
    wrong = next((path.name for path, match in found if match is None), None)
    if pattern.groups < 1 or wrong is not None:
        reason = "has no group" if pattern.groups < 1 else f"does not match {wrong}"
        raise InputError(
            f"the label pattern {label_pattern!r} {reason}; expected a regular expression whose first group "
            "is the label in every file's name, such as '_(.+?)_': correct it"
        )
    return [(path, match[1]) for path, match in found if match is not None]


def _class_files(root: Path) -> list[tuple[Path, str]]:
    return [
        (path, folder.name)
        for folder in _subfolders(root)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES + AUDIO_SUFFIXES and not path.name.startswith(".")
    ]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
