"""A study with several λ: each is named, and all are shown, in tables, figures and the page's blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report.study import made_studies as made
from tangentlora.report.study.document import results_blocks
from tangentlora.report.study.figures import draw_study
from tangentlora.report.study.results import Study
from tangentlora.report.study.summary import study_summary, tables_of

SECOND = 0.1


def of_two_lams() -> dict[str, Any]:
    """Return a study of two tasks whose runs were made at λ = 0.01 and, with another objective, at 0.1."""
    values = json.loads(json.dumps(made.study(("sst2", "qnli"), (13, 21), (1, 4))))
    for case in values["cases"]:
        more = []
        for cell in case["cells"]:
            if cell["lam"] == made.LAM and cell["variant"] != "certified":
                more.append(
                    cell
                    | {
                        "lam": SECOND,
                        "slug": f"{cell['slug']}-second",
                        "relative_excess": 0.5,
                        "learning_rate": 0.25,
                    }
                )
        case["cells"] += more
    return values


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.parse(of_two_lams())


def test_groups_are_by_lambda_and_their_cells_are_those_of_it(study: Study) -> None:
    labels = [group.label for group in study.groups]
    assert labels == ["sst2, λ = 0.01", "sst2, λ = 0.1", "qnli, λ = 0.01", "qnli, λ = 0.1"]
    assert [group.label for group in study.tasks] == ["sst2", "qnli"]
    assert study.lams == (made.LAM, SECOND)
    for group in study.groups:
        for variant, rank in (("lora", 4), ("full", None), ("certified", None)):
            assert len(group.cells(variant, rank)) == 2
            assert {cell.lam for _, cell in group.cells(variant, rank)} == {group.lam}


def test_every_lambda_is_in_the_tables_with_its_own_numbers(study: Study) -> None:
    tables = tables_of(study, {})
    for name in ("claims", "epochs", "certificates"):
        head = tables[name].splitlines()[0]
        assert "sst2, λ = 0.01" in head
        assert "qnli, λ = 0.1" in head
    row = next(line for line in tables["claims"].splitlines() if line.startswith("| LoRA r=4"))
    assert row.count("5.0e-1 (5.0e-1)") == 2
    assert "sst2, λ = 0.1, r=" in tables["published"]


def test_a_case_counts_once_where_the_dev_set_chooses_lambda(study: Study) -> None:
    tables, single = (
        tables_of(study, {}),
        tables_of(Study.parse(made.study(("sst2", "qnli"), (13, 21), (1, 4))), {}),
    )
    assert tables["worth"] == single["worth"]
    assert tables["wins"] == single["wins"]


def test_figures_have_a_panel_for_each_lambda_and_captions_say_which(study: Study) -> None:
    for picture in draw_study(study):
        assert "λ = 0.01" in picture.alt or picture.name in ("singular-values",), picture.name
        assert "λ = 0.1" in picture.alt, picture.name
    alone = Study.parse(made.study(("sst2",), (13, 21), (1, 4)))
    captions = {picture.name: picture.caption for picture in draw_study(alone)}
    assert all("λ = 0.01." in captions[name] for name in ("loss", "distance", "accuracy", "optimality"))
    assert "Learning rates at the end: LoRA 0.25" in {p.name: p.caption for p in draw_study(study)}["loss"]


def test_the_summary_and_the_page_name_every_lambda(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "two", of_two_lams())
    assert study_summary(folder).splitlines()[0].endswith("λ = 0.01 and 0.1.")
    assert "λ: 0.01, 0.1." in results_blocks(folder)["made-cases"]


def test_certified_answers_alone_are_all_listed() -> None:
    values = made.without(of_two_lams(), "lora", "full", "published", "frozen-a", "perturbed")
    study = Study.parse(values)
    assert [group.lam for group in study.groups[:3]] == list(made.LAMS)
    assert "sst2, λ = 0.001" in tables_of(study, {})["certificates"].splitlines()[0]
