"""The figures of a study: which are drawn, from which numbers, and that equal results give equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from report.study import made_studies as made
from tangentlora.report.canvas import Picture, house_style
from tangentlora.report.study.figures import NAMES, draw_study, write_study_figures
from tangentlora.report.study.panels import rank_styles
from tangentlora.report.study.published import published_answers_figure, published_figure
from tangentlora.report.study.ranks import optimality_figure, trade_off_figure
from tangentlora.report.study.results import Study
from tangentlora.report.study.spectra import singular_value_figure
from tangentlora.report.study.training import accuracy_figure, distance_figure, loss_figure


def draw(values: dict[str, Any]) -> dict[str, Picture]:
    return {picture.name: picture for picture in draw_study(Study.parse(values))}


def draw_one(figure: Callable[[Study], Picture | None], values: dict[str, Any]) -> Picture | None:
    with house_style():
        return figure(Study.parse(values))


def cell(values: dict[str, Any], slug: str, case: int = 0) -> dict[str, Any]:
    return next(c for c in values["cases"][case]["cells"] if c["slug"] == slug)


@pytest.fixture(scope="module")
def two_tasks() -> dict[str, Any]:
    return made.study(("sst2", "qnli"), ranks=(1, 8))


@pytest.fixture(scope="module")
def drawn(two_tasks: dict[str, Any]) -> dict[str, Picture]:
    return draw(two_tasks)


def test_a_study_has_all_figures_as_svg_and_png(drawn: dict[str, Picture]) -> None:
    assert tuple(drawn) == NAMES
    for picture in drawn.values():
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
        assert picture.png.startswith(b"\x89PNG\r\n\x1a\n")
        assert "<dc:date>" not in picture.svg
        assert "n = 3 seeds" in picture.caption
        # Text is drawn as outlines; matplotlib leaves the words beside them as a comment.
        assert "<!-- sst2" in picture.svg
        assert "qnli" in picture.alt


def test_equal_results_give_equal_bytes(two_tasks: dict[str, Any], drawn: dict[str, Picture]) -> None:
    assert draw(json.loads(json.dumps(two_tasks))) == drawn


def test_the_alternative_texts_hold_the_means(two_tasks: dict[str, Any], drawn: dict[str, Picture]) -> None:
    ends = [cell(two_tasks, "lora-r8", i)["trace"]["objective"][-1] for i in range(3)]
    optima = [cell(two_tasks, "full", i)["optimum"] for i in range(3)]
    assert f"LoRA r=8 at {sum(ends) / 3:.6f}" in drawn["loss"].alt
    assert f"Its certified optimum is {sum(optima) / 3:.6f}." in drawn["loss"].alt
    accuracies = [cell(two_tasks, "full", i)["curve"][-1]["test_accuracy"] for i in range(3)]
    assert f"full fine-tuning at {sum(accuracies) / 3:.3f}" in drawn["accuracy"].alt
    epochs = [cell(two_tasks, "lora-r8", i)["epochs_to_optimum"] for i in range(3)]
    assert f"sst2: LoRA r=1 never; LoRA r=8 {sum(epochs) / 3:.0f}; full" in drawn["trade-off"].alt
    # 4 × 384 numbers at rank 1, eight bytes each with their gradient.
    assert "LoRA r=1 12.3 kB" in drawn["trade-off"].alt
    assert "its certified optimum has 3" in drawn["singular-values"].alt
    assert "r=8" in drawn["published"].svg


def test_runs_that_never_reach_the_optimum_are_counted(
    two_tasks: dict[str, Any], drawn: dict[str, Picture]
) -> None:
    assert "<!-- never -->" in drawn["trade-off"].svg
    assert "<!-- 3/3 -->" in drawn["trade-off"].svg
    assert "counts the runs that never came so near" in drawn["trade-off"].caption
    all_reach = draw_one(trade_off_figure, made.study(("mr",), (13,), ranks=(8, 16)))
    assert all_reach is not None
    assert "never" not in all_reach.svg + all_reach.caption


@pytest.mark.parametrize("figure", [distance_figure, published_figure])
def test_one_task_with_one_seed_has_no_band(figure: Callable[[Study], Picture | None]) -> None:
    several = draw_one(figure, made.study(("mr",), (13, 21), ranks=(8,)))
    one = draw_one(figure, made.study(("mr",), (13,), ranks=(8,)))
    assert several is not None
    assert one is not None
    assert "FillBetween" in several.svg
    assert "FillBetween" not in one.svg
    assert "One seed." in one.caption


@pytest.mark.parametrize("figure", [distance_figure, trade_off_figure])
def test_six_tasks_have_a_panel_each(figure: Callable[[Study], Picture | None]) -> None:
    picture = draw_one(figure, made.study(seeds=(13,), ranks=(8,)))
    assert picture is not None
    for task in made.TASKS:
        assert f"<!-- {task} -->" in picture.svg
    assert ("<!-- memory of training, MB -->" in picture.svg) == (picture.name == "trade-off")


@pytest.mark.parametrize(
    ("figures", "variants"),
    [
        ((published_figure, published_answers_figure), ("published",)),
        ((singular_value_figure,), ("full",)),
        ((loss_figure, accuracy_figure, trade_off_figure, optimality_figure), ("lora", "full")),
        ((distance_figure, trade_off_figure), ("certified",)),
    ],
)
def test_figures_with_nothing_to_show_are_left_out(
    figures: tuple[Callable[[Study], Picture | None], ...], variants: tuple[str, ...]
) -> None:
    values = made.without(made.study(("mr",), (13,), ranks=(1, 8)), *variants)
    for figure in figures:
        assert draw_one(figure, values) is None


def test_without_a_certified_optimum_the_rest_is_drawn() -> None:
    values = made.without(made.study(("mr",), (13,), ranks=(8,)), "certified")
    for row in values["cases"][0]["cells"]:
        row |= {"optimum": None, "relative_excess": None, "epochs_to_optimum": None}
    assert list(draw(values)) == ["loss", "accuracy", "singular-values", "published", "published-answers"]


def test_a_diverged_run_is_drawn_as_far_as_it_went() -> None:
    values = made.study(("mr",), (13, 21), ranks=(1, 8))
    diverged = cell(values, "lora-r8")
    diverged["trace"] = {"epoch": [0, 1, 2, 3], "objective": [0.7, 9.0, None, None]}
    diverged |= {"objective": None, "relative_excess": None, "epochs_to_optimum": None, "relative_gap": None}
    diverged |= {"singular_values": {}, "linearised": None}
    drawn = draw(values)
    assert tuple(drawn) == NAMES
    other = dict(zip(*cell(values, "lora-r8", 1)["trace"].values(), strict=True))
    assert f"LoRA r=8 at {(9.0 + other[1]) / 2:.6f}" in drawn["loss"].alt
    assert "(1 of 2 never)" in drawn["trade-off"].alt


def test_distances_below_the_floor_are_drawn_there(drawn: dict[str, Picture]) -> None:
    assert "Distances below 1e-8 are drawn there." in drawn["distance"].caption
    assert "What is below 1e-8 is drawn there." in drawn["optimality"].caption
    stuck = draw_one(distance_figure, made.study(("sst2",), (13,), ranks=(1,)))
    assert stuck is not None
    assert "full fine-tuning at 1.0e-8" in stuck.alt


def test_each_seed_has_its_own_line_of_singular_values() -> None:
    values = made.study(("mr",), (13, 21), ranks=(8,))
    cell(values, "full", 1)["singular_values"] = {"layer": [2.0, 0.5]}
    cell(values, f"certified-lam{made.LAM:g}", 1)["ranks"] = {"layer": 1}
    picture = draw_one(singular_value_figure, values)
    assert picture is not None
    assert "one line per seed (n = 2 seeds)" in picture.caption
    assert "mr shows 2 to 33, its certified optimum has 1 to 3" in picture.alt


def test_the_number_of_seeds_may_differ_by_task() -> None:
    values = made.study(("mr", "cr"), (13, 21), ranks=(8,))
    values["cases"].pop()
    picture = draw_one(distance_figure, values)
    assert picture is not None
    assert "Means over n = 1 to 2 seeds by task, bands of" in picture.caption


def test_many_singular_values_are_drawn_in_part_and_the_rest_is_counted() -> None:
    values = made.study(("mr",), (13,), ranks=(8,))
    cell(values, "full")["singular_values"] = {"layer": [2.0**-k for k in range(64)]}
    drawn = draw_one(singular_value_figure, values)
    assert drawn is not None
    assert "The largest 40 of up to 64 are shown." in drawn.caption
    assert "Those below 1.0e-8 are drawn there." in drawn.caption


def test_each_rank_differs_in_colour_and_marker() -> None:
    signs = rank_styles(Study.parse(made.study(("mr",), (13,))))
    assert len({(s.colour, s.marker) for s in signs.values()}) == len({s.marker for s in signs.values()}) == 7
    many = rank_styles(Study.parse(made.study(("mr",), (13,), ranks=tuple(range(1, 17)))))
    assert len(set(many.values())) == 16


def test_figures_are_written_and_those_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    values = made.without(made.study(("mr",), (13,), ranks=(8,)), "published")
    made.write(tmp_path, values)
    (tmp_path / "figures").mkdir()
    for name in ("published.svg", "loss.png", "mine.svg"):
        (tmp_path / "figures" / name).write_text("old")
    paths = write_study_figures(tmp_path)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == sorted([*(path.name for path in paths), "mine.svg"])
    assert len(paths) == 12
    assert (tmp_path / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
