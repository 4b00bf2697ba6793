"""What a source of examples is, told by its name and the folder's entries, before anything is read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from tangentlora.data.folders import part_files
from tangentlora.data.hub import is_hub_id
from tangentlora.data.kshot import setting_of, settings_in
from tangentlora.data.tables import TABLE_SUFFIXES
from tangentlora.errors import InputError

Kind = Literal[
    "the bundled messages",
    "a table",
    "a folder of tables",
    "a k-shot folder",
    "a folder of images or recordings",
    "a hub data set",
]


def kind_of(source: str) -> Kind:
    """Return what a source is; raises InputError where there is nothing of that name."""
    path = Path(os.path.expanduser(source))
    if source == "support":
        return "the bundled messages"
    if path.is_file():
        return "a table"
    if source and path.is_dir():
        if (setting_of(path) and part_files(path)) or settings_in(path):
            return "a k-shot folder"
        if part_files(path):
            return "a folder of tables"
        holds = any(settings_in(below) for below in path.iterdir() if below.is_dir())
        return "a k-shot folder" if holds else "a folder of images or recordings"
    if is_hub_id(source) and path.suffix.lower() not in TABLE_SUFFIXES:
        return "a hub data set"
    raise InputError(
        f"there is no file or folder {source!r}; expected one, `support`, or a hub id owner/name: "
        f"correct the path"
    )


def require_pattern(label_pattern: str) -> None:
    """Raise InputError where a label pattern is no regular expression or has no group."""
    try:
        groups = re.compile(label_pattern).groups
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"got the label pattern {label_pattern!r} ({error}); correct it") from error
    if groups < 1:
        raise InputError(
            f"the label pattern {label_pattern!r} has no group; expected a regular expression whose first "
            "group is the label in every file's name, such as '_(.+?)_': correct it"
        )
