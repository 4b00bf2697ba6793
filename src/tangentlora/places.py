"""Where networks, adapters and runs lie: told apart, and refused, without opening what is heavy.

Standard library only, so that a wrong path is answered before anything else is imported.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Literal

from tangentlora.errors import InputError

PACKAGED = "minilm"
"""The name of the weights that an optional package brings."""

ADAPTER_CONFIG = "adapter_config.json"

_ADAPTER_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_WRITTEN = ("ForMaskedLM", "ForCausalLM", "LMHeadModel")


def model_place(model: str) -> Literal["minilm", "folder", "hub"]:
    """Say where a network is to be found: packaged, in a folder, or else under a hub id.

    Raises InputError for an empty name, a file, a folder without config.json, and a path that does not exist.
    """
    if model == PACKAGED:
        return "minilm"
    path = Path(model).expanduser()
    if model and (path / "config.json").is_file():
        return "folder"
    if model and path.exists():
        raise InputError(
            f"got {model!r}, which is not a folder with a config.json, expected a saved model; "
            "give the folder that save_pretrained wrote."
        )
    if not model or model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise InputError(
            f"got the folder {model!r}, which does not exist, expected a saved model; "
            "correct the path or give a hub id."
        )
    return "hub"


def require_no_revision(model: str, revision: str | None) -> None:
    """Raise InputError for a revision of a network that is no hub id: files on this machine have one only."""
    place = model_place(model)
    if revision is not None and place != "hub":
        where = "the packaged weights" if place == "minilm" else "a folder on this machine"
        raise InputError(
            f"got the revision {revision!r} of {model}, which is {where}, expected a revision with a hub id "
            "alone: leave it out, or name the network by its hub id"
        )


def architecture(model: str) -> str | None:
    """Return the class that a packaged or local network was saved from; None where that is not known here."""
    if model == PACKAGED:
        return "BertModel"
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
        return str((config.get("architectures") or [""])[0])
    except (OSError, ValueError, AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return None  # a hub id, or damaged: said where it is loaded


def readout_for(name: str) -> Literal["prompt", "prototypes", "head"]:
    """Return the readout that a text network saved from the class `name` was trained for.

    A masked or a causal language model is read by a prompt, a bare encoder (as sentence encoders are saved)
    by prototypes, and everything else by its classification head.
    """
    if name.endswith(_WRITTEN):
        return "prompt"
    # GPT2DoubleHeadsModel and its like end in Model too, and have heads of their own
    return "prototypes" if name.endswith("Model") and "Head" not in name else "head"


def adapter_folder(name: str) -> Path | None:
    """Return the folder of an adapter, None for a hub id.

    Raises InputError for what is neither, and for a folder without adapter_config.json.
    """
    folder = Path(name).expanduser()
    below = re.fullmatch(rf"({_ADAPTER_ID.pattern})/.+", name, re.ASCII)
    if below and not folder.exists():
        raise InputError(
            f"got the adapter {name!r}, which is no folder here, expected one with {ADAPTER_CONFIG} or a hub "
            f"id of two parts; if it is a folder of the hub's {below[1]}, download that (hf download "
            f"{below[1]}) and give the folder in it."
        )
    if not name or (not folder.is_dir() and (folder.exists() or not _ADAPTER_ID.fullmatch(name))):
        raise InputError(
            f"got the adapter {name!r}, which is no folder here, expected one with {ADAPTER_CONFIG} or a hub "
            "id such as owner/name; correct the path."
        )
    if not folder.is_dir():
        return None
    if not (folder / ADAPTER_CONFIG).is_file():
        held = sorted(str(path.parent) for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        raise InputError(
            f"got the adapter {name}, a folder without {ADAPTER_CONFIG}, expected one that PEFT's "
            "save_pretrained wrote; " + (f"name {held[0]}, which is one." if held else "correct the path.")
        )
    return folder


def require_run(folder: Path, *, part: bool = False) -> None:
    """Raise InputError where a folder is no run folder; with `part` it may be that of one of its answers."""
    places = (folder, folder.absolute().parent) if part and folder.is_dir() else (folder,)
    if not any((place / "run.json").is_file() for place in places):
        raise InputError(
            f"got {folder}, where run.json does not exist, expected a run folder; name the --output-dir of "
            "an earlier tangentlora fit or demo."
        )


def require_writable(folder: Path, what: str = "output", option: str = "--output-dir") -> None:
    """Refuse, before the work, a folder that could not be written after it."""
    whole = folder.absolute()
    existing = next(path for path in (whole, *whole.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "cannot be written" if existing.is_dir() else "is a file"
        raise InputError(
            f"got the {what} folder {folder}, but {existing} {reason}, expected a folder that can be "
            f"written: choose another {option}"
        )
