"""What can be refused before the work is refused here: paths, names, and settings without a say.

Nothing heavy is imported, so that a wrong path or option is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tangentlora.belongs import LORA, MEDIA, refuse_unused
from tangentlora.data.kinds import Kind, kind_of, require_pattern
from tangentlora.data.kshot import setting_of
from tangentlora.data.tasks import task as known_task
from tangentlora.errors import InputError
from tangentlora.places import (
    adapter_folder,
    architecture,
    model_place,
    readout_for,
    require_no_revision,
    require_writable,
)
from tangentlora.studies.settings import Settings
from tangentlora.studies.study import Plan

MEDIA_INPUTS = "images or recordings"


def require_ready(settings: Settings, given: Iterable[str] | None = None) -> None:
    """Raise InputError for all that the settings alone and a look at their paths can tell to be wrong.

    `given` names the settings that somebody gave, by default those that differ from their defaults.
    """
    given = tuple(settings.given if given is None else given)
    require_no_revision(settings.model, settings.revision)
    if settings.init_from is not None:
        adapter_folder(settings.init_from)
    kind = require_data(settings, given)
    require_writable(settings.tangent_dir.expanduser(), "tangent", "--tangent-dir")
    refuse_unused(given, settings.chosen | read_as(settings, kind))


def require_data(settings: Settings, given: Iterable[str]) -> Kind:
    """Return what the data are; raise InputError for a path, a task or a pattern that is none."""
    kind = kind_of(settings.data)
    for more in (settings.test_data, settings.dev_data):
        if more is not None:
            kind_of(more)
    if settings.task is not None:
        known_task(settings.task)
    refuse_unused(given, {"data": kind})
    if settings.label_pattern is not None:
        require_pattern(settings.label_pattern)
    named = setting_of(Path(settings.data).expanduser()) if kind == "a k-shot folder" else None
    if (
        named is not None
        and settings.shots is None
        and "data_seed" in given
        and settings.data_seed != named[1]
    ):
        raise InputError(
            f"got the data seed {settings.data_seed} and the k-shot folder {settings.data}, which is that of "
            f"seed {named[1]}, expected one seed: leave the seed out, or name the folder above"
        )
    return kind


def read_as(settings: Settings, kind: Kind) -> dict[str, str]:
    """Return the readout and the kind of inputs, as far as the names of network and data tell them."""
    place = model_place(settings.model)
    found = {"network": {"hub": "a hub id", "folder": "a folder"}.get(place, "the packaged weights")}
    if kind == MEDIA:
        found |= {"inputs": MEDIA_INPUTS}
        return found | ({"readout": "head"} if settings.readout == "auto" else {})
    if kind != "a hub data set":
        found |= {"inputs": "text"}
    name = architecture(settings.model)
    completions = settings.task == "completion"
    if settings.readout == "auto" and kind != "a hub data set" and name is not None and not completions:
        found |= {"readout": readout_for(name)}
    return found | ({"readout": "completions"} if completions else {})


def require_rank(settings: Settings, shapes: Iterable[tuple[int, int]]) -> None:
    """Raise InputError where LoRA's rank is above the smaller side of an adapted matrix."""
    most = min(min(shape) for shape in shapes)
    if settings.solver in LORA and settings.rank > most:
        raise InputError(
            f"got rank {settings.rank}, expected 1 to {most}, the smaller side of the smallest adapted "
            "matrix: change --rank, or --ranks"
        )


def require_cases(plan: Plan) -> None:
    """Raise InputError as `require_ready` does for the settings of a study's cases, and for a store."""
    for settings in dict.fromkeys(replace(case.settings, seed=0, data_seed=13) for case in plan.cases):
        made = any(case.made for case in plan.cases)
        require_ready(settings, settings.given if not made else [n for n in settings.given if n != "data"])


def require_tensorboard() -> None:
    """Raise InputError where the package that writes scalars is absent."""
    if find_spec("tensorboard") is None:
        raise InputError(
            "got --tensorboard, but the package tensorboard is absent, expected it installed: run pip "
            "install 'tangentlora[studies]' or leave the option out"
        )


def require_adapter(path: str | Path, given: Mapping[str, Any]) -> None:
    """Raise InputError where an adapter, or the network or the data given for it, is at no such path."""
    adapter_folder(str(path))
    settings = Settings(**{name: value for name, value in given.items() if name != "lam"})
    if "model" in given:
        require_no_revision(settings.model, settings.revision)
    if "data" in given:
        require_data(settings, given)


_OF_DATA = (
    "data",
    "task",
    "text_column",
    "label_column",
    "label_pattern",
    "shots",
    "data_seed",
    "test_limit",
    "test_data",
    "dev_data",
    "test_fraction",
)


def refuse_data(given: Iterable[str]) -> None:
    """Raise InputError for settings of data that are at hand already."""
    if unused := [name for name in given if name in _OF_DATA]:
        raise InputError(
            f"got {', '.join(unused)} with examples that are read already, expected these settings only "
            "where the data are named: leave them out"
        )


def refuse_live(given: Iterable[str], *, by_name: bool, readout: bool) -> None:
    """Raise InputError for settings that a live model leaves without a say.

    With data `by_name` their settings have one, and without a `readout` object the most length of texts.
    """
    known = (*(_OF_DATA if by_name else ()), *(() if readout else ("max_length",)))
    if unused := [name for name in given if name not in known]:
        raise InputError(
            f"got {', '.join(unused)} with a live model, which is taken as it is, expected "
            f"{', '.join(known) or 'no such settings'}: leave them out, or give what they say by the model, "
            "the readout object and the data"
        )
