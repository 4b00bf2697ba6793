"""results.json and timings.json, read or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from report.study import made_studies as made
from tangentlora.errors import InputError
from tangentlora.report.study.reading import read_study, read_timings
from tangentlora.report.study.results import Study


def test_a_study_keeps_its_order_and_its_numbers(tmp_path: Path) -> None:
    values = made.study()
    study = read_study(made.write(tmp_path, values))
    assert (study.name, study.within, len(study.cases)) == ("made", 1e-3, 18)
    assert [group.label for group in study.groups] == list(made.TASKS)
    assert [case.seed for case in study.groups[0].cases] == [13, 21, 42]
    assert study.ranks() == list(made.RANKS)
    assert study.ranks("published") == [8]
    raw = values["cases"][0]["cells"][3]
    cell = study.cases[0].cell("lora", 1)
    assert cell is not None
    assert (cell.slug, cell.objective, cell.state_bytes) == (
        raw["slug"],
        raw["objective"],
        raw["state_bytes"],
    )
    assert [point[0] for point in cell.points] == raw["trace"]["epoch"]
    assert [epoch for epoch, _ in cell.accuracies] == made.LOGGED
    assert cell.nuclear_norm == pytest.approx(sum(sum(row) for row in raw["singular_values"].values()))


def test_the_optimum_is_that_of_the_lambda_of_the_compared_runs(tmp_path: Path) -> None:
    study = read_study(made.write(tmp_path, made.study()))
    for case in study.cases:
        assert case.lam == made.LAM
        (raw,) = [c for c in case.cells if c.slug == f"certified-lam{made.LAM:g}"]
        assert case.cell("certified") == raw
        assert case.optimum == raw.objective


def test_without_compared_runs_only_a_lone_certified_answer_is_the_optimum() -> None:
    others = ("lora", "full", "published")
    several = Study.parse(made.without(made.study(("mr",), (13,)), *others))
    alone = Study.parse(made.without(made.study(("mr",), (13,), lams=(0.1,)), *others))
    assert (several.cases[0].lam, several.cases[0].optimum) == (None, None)
    assert alone.cases[0].lam == 0.1
    assert alone.cases[0].optimum == alone.cases[0].cells[0].objective


def test_without_a_trace_the_points_are_the_logged_epochs() -> None:
    values = made.study(("mr",), (13,))
    full = next(c for c in values["cases"][0]["cells"] if c["variant"] == "full")
    full["trace"] = {"epoch": [], "objective": []}
    cell = Study.parse(values).cases[0].cell("full")
    assert cell is not None
    assert cell.points == tuple((row["epoch"], row["objective"]) for row in full["curve"])


def test_groups_are_named_by_what_tells_them_apart() -> None:
    values = made.study(("mr", "cr"), (13,))
    second = [case | {"model": "roberta", "name": case["name"] + "-roberta"} for case in values["cases"]]
    study = Study.parse(values | {"cases": [*values["cases"], *second]})
    assert [group.label for group in study.groups] == [
        "mr, minilm",
        "cr, minilm",
        "mr, roberta",
        "cr, roberta",
    ]


def test_epochs_to_the_optimum_are_counted_only_where_there_is_one() -> None:
    values = made.study(("mr",), (13, 21))
    first = values["cases"][0]
    first["cells"] = [c for c in first["cells"] if c["variant"] != "certified"]
    (group,) = Study.parse(values).groups
    assert len(group.cells("lora", 8)) == 2
    assert len(group.epochs("lora", 8)) == 1


def test_timings_are_read_and_may_be_absent(tmp_path: Path) -> None:
    folder = made.write(tmp_path, made.study(("mr",), (13,)))
    seconds = read_timings(folder)["mr-13"]
    assert (seconds.linearise, seconds.cells["full"], seconds.cells["certified-lam0.1"]) == (20.0, 5.0, 1.0)
    (folder / "timings.json").unlink()
    assert read_timings(folder) == {}


def _no_cases(values: dict[str, Any]) -> None:
    values["cases"] = []


def _no_rank(values: dict[str, Any]) -> None:
    del values["cases"][0]["cells"][0]["rank"]


def _words(values: dict[str, Any]) -> None:
    values["cases"][0]["cells"][0]["objective"] = "small"


def _uneven(values: dict[str, Any]) -> None:
    values["cases"][0]["cells"][3]["trace"]["epoch"].pop()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_no_cases, "ValueError: it lists no cases"),
        (_no_rank, "KeyError: 'rank'"),
        (_words, "TypeError: 'small' is not a number"),
        (_uneven, "ValueError: zip"),
    ],
)
def test_damaged_results_are_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], reason: str
) -> None:
    values = made.study(("mr",), (13,))
    damage(values)
    made.write(tmp_path, values | {"cases": values["cases"]})
    with pytest.raises(InputError) as error:
        read_study(tmp_path)
    assert str(error.value).startswith(f"got {tmp_path / 'results.json'}, which is damaged ({reason}")
    assert str(error.value).endswith("run reproduce again.")


def test_missing_foreign_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"where results\.json does not exist, expected the folder of a study"
    ):
        read_study(tmp_path)
    made.write(tmp_path, made.study(("mr",), (13,)) | {"format": 2})
    with pytest.raises(InputError, match="in format 2, expected format 1; run reproduce again"):
        read_study(tmp_path)
    (tmp_path / "results.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"where results\.json cannot be read"):
        read_study(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match=r"damaged \(TypeError: \[\] is not an object"):
        read_study(tmp_path)
    (tmp_path / "timings.json").write_text(json.dumps({"mr-13": {"linearise": "long"}}))
    with pytest.raises(
        InputError, match=r"timings\.json, which is damaged \(TypeError: 'long' is not a number"
    ):
        read_timings(tmp_path)
