"""path.json: what is written is read again, and what is not this run's is left out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from report.run_folders import QUERY, VALUE, certified, run
from tangentlora.errors import InputError
from tangentlora.report.canvas import house_style
from tangentlora.report.folder import RunFolder
from tangentlora.report.path_figure import path_figure
from tangentlora.report.path_record import FORMAT, LambdaPath, PathPoint, read_path
from tangentlora.report.record import Run


def made_path(lams: tuple[float, ...] = (0.4, 0.2, 0.1), chosen: float = 0.1) -> LambdaPath:
    """A made-up path: no number in it was measured."""
    points = tuple(
        PathPoint(lam, lam**0.5, 1e-9, 1e-9, True, {QUERY: 0, VALUE: i}, 7 * i, {"train_accuracy": 1 - lam})
        for i, lam in enumerate(lams)
    )
    return LambdaPath(points, chosen, "a rule")


def folder_with(path: LambdaPath, folder: Path, **changes: Any) -> RunFolder:
    """Write path.json of a run on the tangent that `run_folders` names."""
    made = RunFolder(folder)
    made.write_json("path.json", {"format": FORMAT, "tangent": "5b0c", **path.describe(), **changes})
    return made


def its_run() -> Run:
    return Run.parse(run([certified()]))


def test_what_is_described_is_read_again(tmp_path: Path) -> None:
    path = made_path()
    assert LambdaPath.parse(json.loads(json.dumps(path.describe()))) == path
    assert read_path(folder_with(path, tmp_path), its_run()) == path
    assert path.describe()["certified"] is path.certified is True
    failed = replace(path, points=(replace(path.points[0], certified=False), *path.points[1:]))
    assert read_path(folder_with(failed, tmp_path), its_run()) == failed
    assert failed.describe()["certified"] is failed.certified is False


def test_a_score_that_is_not_finite_stays_one(tmp_path: Path) -> None:
    point = replace(made_path().points[-1], scores={"train_accuracy": 0.5, "train_loss": math.inf})
    folder = folder_with(LambdaPath((point,), 0.1, "a rule"), tmp_path)
    assert '"train_loss": null' in (tmp_path / "path.json").read_text()
    found = read_path(folder, its_run())
    assert found is not None
    assert math.isnan(found.best.scores["train_loss"])


@pytest.mark.parametrize(
    "changes", [{"tangent": "another"}, {"chosen": 0.2}, {"format": FORMAT + 1}], ids=lambda c: next(iter(c))
)
def test_the_path_of_another_problem_is_none_of_the_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_path(folder_with(made_path(), tmp_path, **changes), its_run()) is None
    assert read_path(RunFolder(tmp_path / "empty"), its_run()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chosen": 0.3}, "the chosen λ = 0.3 is none of its points"),
        ({"chosen": None}, "None is no finite number"),
        ({"points": [{"lam": "0.1"}]}, "'0.1' is not a number"),
        ({"points": None}, "not iterable"),
    ],
)
def test_damage_is_told(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = folder_with(made_path(), tmp_path, **changes)
    with pytest.raises(InputError, match=rf"path.json, which is damaged \(.*{reason}.*run path again"):
        read_path(folder, its_run())


def test_the_figure_says_which_points_are_not_certified() -> None:
    path = made_path()
    failed = replace(path, points=(replace(path.points[0], certified=False), *path.points[1:]))
    with house_style():
        whole, open_ = path_figure(path), path_figure(failed)
    assert "hollow" not in whole.caption + whole.svg
    assert "3 of them certified." in whole.caption
    assert "2 of them certified; the hollow ones are not." in open_.caption
    assert "objective (hollow: not certified)" in open_.svg
    assert "dotted: λ = 0.1, chosen" in whole.svg
