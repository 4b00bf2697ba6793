"""What a run.json of earlier versions means where it lacks a setting that it has today."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HELD_OUT = 0.25  # of each label of data that had no test set, where no shots were drawn


def completed(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration with the settings that it lacks, at the values that were used then."""
    if "test_fraction" in configuration or "test_data" in configuration:
        return dict(configuration)
    whole = configuration.get("shots") is None and _is_one_part(str(configuration.get("data")))
    return dict(configuration) | {"test_fraction": _HELD_OUT if whole else 0.0}


def _is_one_part(data: str) -> bool:
    """Return whether data on this machine are a table, or a folder without dev, test or k-shot sets."""
    from tangentlora.data.collection import PART_NAMES

    path = Path(data).expanduser()
    if not path.is_dir():
        return path.is_file()
    others = {name for part in ("dev", "test") for name in PART_NAMES[part]}
    shots = [*path.glob("[0-9]*-[0-9]*/"), *path.glob("*/[0-9]*-[0-9]*/")]
    return not shots and not any(entry.stem in others for entry in path.iterdir())
