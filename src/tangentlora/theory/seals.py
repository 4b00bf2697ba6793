"""The seal of a run folder: sizes and SHA-256 of every file that the run stands for, written last.

A run whose run.json says that it is sealed is whole only with its seal. Checksums guard against accidents and
swapped files; what decides the proof is computed anew besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tangentlora.errors import InputError
from tangentlora.theory.evidence import read_json

SEAL = "seal.json"
PAGES = ("report.html", "README.md", "figures")
"""What `report` makes again from the rest, and seals anew."""

_FORMAT = 1
_OWN = ("run.json", "metrics.jsonl", "path.json", *PAGES)
_OF_ANSWER = ("solution.safetensors", "certificate.json", "adapter")
_REMEDY = "run fit again, or take the folder from where it was copied"


def sealed_files(folder: Path, run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that a run consists of, named relative to its folder."""
    names = [*_OWN, *(f"{entry['folder']}/{part}" for entry in run["runs"] for part in _OF_ANSWER)]
    for name in names:
        path = folder / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (str(one.relative_to(folder).as_posix()) for one in found if one.is_file())


def seal_of(folder: Path, names: Iterator[str]) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of files of a folder, by name."""
    return {name: _digest(folder / name) for name in names}


def described(files: Mapping[str, Any]) -> dict[str, Any]:
    """Return what seal.json holds."""
    return {"format": _FORMAT, "files": dict(sorted(files.items()))}


def broken_seals(folder: Path, run: Mapping[str, Any]) -> list[str] | None:
    """Return what is not as it was sealed, None for a run that an earlier version wrote without a seal.

    Raises InputError for a seal that cannot be read.
    """
    if not (folder / SEAL).exists():
        return [f"{SEAL} is missing, so the run was not finished"] if run.get("sealed") else None
    seal = read_json(folder / SEAL, _REMEDY)
    files = seal.get("files")
    if seal.get("format") != _FORMAT or not isinstance(files, dict):
        raise InputError(f"got {folder / SEAL}, which is no seal, expected that of a run folder: {_REMEDY}")
    there = set(sealed_files(folder, run))
    reasons = [f"{name} is in the folder and was not sealed" for name in sorted(there - set(files))]
    for name, sealed in files.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or name not in there:
            reasons.append(f"{name} is missing")
        elif _digest(folder / name) != sealed:
            reasons.append(f"{name} is not the file that was written")
    return reasons


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
