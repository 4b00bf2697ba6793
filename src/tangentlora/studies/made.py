"""Networks that the project makes itself stand in for a study's model and, where none is given, its data."""

from __future__ import annotations

from dataclasses import replace

from tangentlora.studies.offline.digits import make_digits
from tangentlora.studies.offline.made import Made, Size
from tangentlora.studies.offline.sounds import make_sounds
from tangentlora.studies.settings import Settings, default_tangent_dir
from tangentlora.studies.study import Case


def with_made(case: Case, size: str, *, progress: bool = False) -> Case:
    """Return the case with the folders of the network and data that its study makes; others stay as they are.

    They are made once and kept beside the tangents of `fit`. A study with no `data` of its own, and none
    given, gets the data that come with the network.
    """
    if case.made is None:
        return case
    how: Size = "ci" if size == "ci" else "full"
    folder = default_tangent_dir() / "made" / f"{case.made}-{how}"
    made: Made = {"digits": make_digits, "sounds": make_sounds}[case.made](
        folder, size=how, progress=progress
    )
    data = case.settings.data if case.settings.data != Settings.data else str(made.data)
    return replace(case, settings=replace(case.settings, model=str(made.model), data=data))
