"""A network and its data in one folder: made whole or not at all, and made once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tangentlora.errors import InputError
from tangentlora.studies.versions import versions

Size = Literal["tiny", "ci", "full"]
"""How long the network is trained: not to speak of (for tests of the path), half a minute, some minutes."""

_CARD = "made.json"
_RECIPE = 1  # raised when the networks or the data of the same settings change


@dataclass(frozen=True)
class Made:
    """A saved network, a folder of class folders that it was not trained on, and how well it learnt.

    `accuracy` in [0, 1] is that on held-out examples of the classes it was trained on.
    """

    model: Path
    data: Path
    accuracy: float


def make_once(folder: Path, settings: dict[str, Any], make: Callable[[Path], float]) -> Made:
    """Return what is in `folder`, made by `make(partial)` where it is not there with these settings.

    `make` writes `model` and `data` into an empty folder beside it and returns the accuracy; one rename puts
    it in place. What was made with other settings, or has lost its weights, is replaced. Raises InputError
    where `folder` holds anything that was not made here.
    """
    asked = {"recipe": _RECIPE, **settings}
    known = _read(folder / _CARD)
    complete = (folder / "model" / "model.safetensors").is_file() and (folder / "data" / "train").is_dir()
    if known is None or known["settings"] != asked or not complete:
        if known is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"got the folder {folder}, which holds something else, expected a new or empty one; choose "
                "another folder."
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            known = {"settings": asked, "versions": versions(), "accuracy": make(partial)}
            (partial / _CARD).write_text(json.dumps(known, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Made(folder / "model", folder / "data", known["accuracy"])


def _read(card: Path) -> dict[str, Any] | None:
    """Return what an earlier run wrote about its folder, None where it wrote nothing that can be read."""
    try:
        known: dict[str, Any] = json.loads(card.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and {"settings", "accuracy"} <= known.keys() else None
