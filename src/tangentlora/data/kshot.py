"""The published k-shot layout: TASK/SHOTS-SEED/{train,dev,test}.{tsv,csv}."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from tangentlora.data.classification import Task
from tangentlora.data.collection import Collection
from tangentlora.data.columns import Wanted
from tangentlora.data.folders import open_tables, part_files
from tangentlora.data.tasks import TASKS
from tangentlora.errors import InputError

PUBLISHED_SHOTS = 16
_SETTING = re.compile(r"(\d+)-(\d+)")


def find_setting(folder: Path, task: Task | None, shots: int | None, seed: int) -> Path | None:
    """Return the folder SHOTS-SEED that `folder` is or holds, or None when this is no k-shot layout.

    `folder` may be that folder, a task's folder, or the root that holds the tasks. Of the folders with this
    seed the one with the fewest shots that suffice for `shots` (None: 16) is taken. Raises InputError when
    the root is given without a task it holds, or no folder has the seed and enough shots.
    """
    if setting_of(folder) and part_files(folder):
        return folder
    if settings := settings_in(folder):
        least = shots or PUBLISHED_SHOTS
        fitting = [(k, path) for (k, s), path in settings.items() if s == seed and k >= least]
        if not fitting:
            raise InputError(
                f"{folder} has no set of {least} shots for seed {seed}; found "
                f"{', '.join(path.name for path in settings.values())}: choose a seed and shots among these"
            )
        return min(fitting)[1]
    tasks = sorted(path.name for path in folder.iterdir() if path.is_dir() and settings_in(path))
    if not tasks:
        return None
    if task is None or task.folder not in tasks:
        got = "no task was named" if task is None else f"none for task {task.name}"
        raise InputError(
            f"{folder} holds the k-shot tasks {', '.join(tasks)} and {got}; name one of them as the task"
        )
    return find_setting(folder / task.folder, task, shots, seed)


def open_setting(setting: Path, wanted: Wanted) -> Collection:
    """Return the collection in one folder SHOTS-SEED; its parent's name tells the task where none was named.

    Files without a header get the columns of the task; a csv file of an unknown task is `label,text`.
    """
    named = next((known for known in TASKS.values() if known.folder == _real(setting).parent.name), None)
    task = wanted.task or named
    headerless = task.columns if task is not None else ("label", "text")
    return open_tables(setting, replace(wanted, task=task, published=named is not None), headerless)


def _real(folder: Path) -> Path:
    """Return the folder under its full name, for `.` and `..` have none."""
    return Path(os.path.abspath(folder))


def setting_of(folder: Path) -> tuple[int, int] | None:
    """Return the shots and the seed that a folder's name SHOTS-SEED tells, None for another name."""
    match = _SETTING.fullmatch(_real(folder).name)
    return None if match is None else (int(match[1]), int(match[2]))


def settings_in(folder: Path) -> dict[tuple[int, int], Path]:
    """Return the folders SHOTS-SEED in a folder, by shots and seed."""
    found = {path: match for path in sorted(folder.iterdir()) if (match := _SETTING.fullmatch(path.name))}
    return {(int(match[1]), int(match[2])): path for path, match in found.items() if path.is_dir()}
