"""A study's results.json and timings.json, read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tangentlora.errors import InputError
from tangentlora.report.parsing import Number, parse_mapping, parse_number, parse_object, parsed, read_text
from tangentlora.report.study.results import Study

FORMAT = 1
"""The version of results.json that this code reads."""

Content = TypeVar("Content")


@dataclass(frozen=True)
class Seconds:
    """The wall time of one case: of linearising, and of each cell by its slug."""

    linearise: Number
    cells: dict[str, Number]

    @classmethod
    def parse(cls, row: object) -> Seconds:
        values = parse_object(row)
        return cls(parse_number(values.get("linearise")), parse_mapping(values.get("cells"), parse_number))


def read_study(folder: Path) -> Study:
    """Return what results.json says; raises `InputError` where it is missing, damaged or too new."""
    path = folder / "results.json"
    content = _parse(path, json.loads, _text(path))
    version = _parse(path, parse_object, content).get("format")
    if version != FORMAT:
        raise InputError(
            f"got {path} in format {version!r}, expected format {FORMAT}; run reproduce again with this "
            "version of tangentlora."
        )
    return _parse(path, Study.parse, content)


def read_timings(folder: Path) -> dict[str, Seconds]:
    """Return the wall times by case, none where there is no timings.json; raises `InputError` if damaged."""
    path = folder / "timings.json"
    if not path.exists():
        return {}
    return _parse(path, lambda text: parse_mapping(json.loads(text), Seconds.parse), _text(path))


def _text(path: Path) -> str:
    wanted = "the folder of a study; name the --output-dir of an earlier tangentlora reproduce"
    return read_text(path.parent, path.name, wanted)


def _parse(path: Path, parse: Callable[[Any], Content], value: Any) -> Content:
    return parsed(path, parse, value, "tangentlora reproduce wrote it; run reproduce again")
