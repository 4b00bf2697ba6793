"""Figures: which are drawn, from which numbers, and that equal runs give equal bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from report import run_folders as made
from tangentlora.report.answers import rank_figure, singular_value_figure
from tangentlora.report.canvas import Picture, house_style, styles
from tangentlora.report.curves import (
    accuracy_figure,
    curves_of,
    distance_figure,
    epochs_within,
    objective_figure,
)
from tangentlora.report.figures import draw, write_figures
from tangentlora.report.record import Metric, Run

PNG = b"\x89PNG\r\n\x1a\n"


def pictures(values: dict) -> dict:
    metrics = [Metric.parse(row) for row in made.metrics(values)]
    return {drawn.name: drawn for drawn in draw(Run.parse(values), metrics)}


def picture(figure: Callable, values: dict) -> Picture | None:
    """Draw one figure alone."""
    run = Run.parse(values)
    curves = [] if figure in (rank_figure, singular_value_figure) else [_curves(run, values)]
    with house_style():
        return figure(run, *curves)


def _curves(run: Run, values: dict) -> dict:
    return curves_of(run, [Metric.parse(row) for row in made.metrics(values)])


@pytest.fixture(scope="module")
def demo() -> dict:
    return pictures(made.demo())


def test_a_demo_has_all_figures_as_svg_and_png(demo: dict) -> None:
    assert list(demo) == ["objective", "distance", "accuracy", "ranks", "singular-values"]
    for drawn in demo.values():
        assert ElementTree.fromstring(drawn.svg).tag.endswith("svg")
        assert drawn.png.startswith(PNG)
        assert "<dc:date>" not in drawn.svg
        assert drawn.title
        assert drawn.caption
        assert drawn.alt


def test_the_alternative_texts_hold_the_numbers(demo: dict) -> None:
    assert "LoRA r=1 at 0.94" in demo["objective"].alt
    assert "the proved lower bound is 0.731246" in demo["objective"].alt
    assert "LoRA r=16 at 2.6e-5" in demo["distance"].alt
    assert "are drawn there" not in demo["distance"].caption
    assert "before training it is 0.560" in demo["accuracy"].alt
    assert "rank 4: 0.732500" in demo["ranks"].alt
    assert "certified: query 0 and value 3" in demo["singular-values"].alt
    assert "full fine-tuning: query 0 and value 4" in demo["singular-values"].alt


def test_zero_rank_and_the_empty_region_are_told_in_words(demo: dict) -> None:
    # Text is drawn as outlines; matplotlib leaves the words beside them as a comment.
    assert "<!-- rank 0: unchanged -->" in demo["singular-values"].svg
    assert "<!-- no answer of any rank is below 0.731246 -->" in demo["objective"].svg


def test_equal_runs_give_equal_bytes_whatever_the_users_settings(demo: dict) -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        again = pictures(made.demo())
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    assert again == demo


def test_figures_are_written_and_those_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    folder = made.write(tmp_path, made.run([made.certified()]))
    for name in ("objective.svg", "objective.png", "mine.svg"):
        folder.write_text(f"figures/{name}", "old")
    paths = write_figures(folder)
    assert [path.name for path in paths] == ["singular-values.svg", "singular-values.png"]
    assert paths[1].read_bytes().startswith(PNG)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["mine.svg", "singular-values.png", "singular-values.svg"]


def test_without_numbers_there_is_no_figure() -> None:
    one = made.answer("LoRA r=8", made.LIMITS[8], rank=8)
    assert picture(accuracy_figure, made.run([one], test_set=False)) is None
    assert picture(rank_figure, made.run([one])) is None
    assert picture(singular_value_figure, made.run([made.certified(ranks={made.QUERY: 0})])) is None
    # Two logged rounds are too few for a curve.
    assert picture(objective_figure, made.run([made.certified()])) is None


def test_a_diverged_run_is_drawn_as_far_as_it_went() -> None:
    diverged = made.answer("LoRA r=8", None, rank=8, ranks={}, singular_values={})
    values = made.run([diverged, made.answer("LoRA r=1", 0.9, rank=1)])
    objective = picture(objective_figure, values)
    assert objective is not None
    assert "LoRA r=1 at 0.9" in objective.alt
    assert "LoRA r=8 at 2.0000e10" in objective.alt
    assert picture(rank_figure, values) is None  # one rank is left, which is no comparison
    assert picture(objective_figure, made.run([diverged])) is None
    assert picture(singular_value_figure, made.run([diverged])) is None


def test_distances_that_rounding_made_negative_are_drawn_at_the_floor() -> None:
    below = made.answer("LoRA r=8", made.OPTIMUM, rank=8, lower_bound=made.OPTIMUM + 1e-9)
    drawn = picture(distance_figure, made.run([below]))
    assert drawn is not None
    assert "LoRA r=8 at 1e-10" in drawn.alt
    assert "Distances below 1e-10 are drawn there." in drawn.caption


def test_names_with_a_dollar_sign_are_drawn_as_they_are() -> None:
    values = made.run([made.answer("$r_8$ \\frac", made.LIMITS[8], rank=8), made.certified()])
    drawn = picture(objective_figure, values)
    assert drawn is not None
    assert "<!-- $r_8$ \\frac -->" in drawn.svg


def test_many_layers_are_drawn_in_part_and_the_rest_is_counted() -> None:
    names = [f"encoder.layer.{i}.attention.self.query" for i in range(9)]
    drawn = picture(singular_value_figure, made.run([made.certified(ranks=dict.fromkeys(names, 2))]))
    assert drawn is not None
    assert "The 6 layers with the largest are shown, 3 are not." in drawn.caption


def test_each_run_differs_in_colour_marker_and_dashes() -> None:
    signs = list(styles(Run.parse(made.demo())).values())
    assert len({(s.colour, s.marker) for s in signs}) == len(signs) == 7
    assert len({s.marker for s in signs}) == 7
    many = made.run([made.answer(f"LoRA r={r}", 0.8, rank=r) for r in range(1, 13)])
    assert len(set(styles(Run.parse(many)).values())) == 12


def test_epochs_to_a_distance_are_the_first_that_are_proved() -> None:
    values = made.run([made.certified(objective=0.5, lower_bound=0.5)])
    run = Run.parse(values)
    steps = [(0, 0.9), (5, 0.5005), (10, 0.6), (15, 0.5000005), (20, None)]
    metrics = [Metric("LoRA r=8", epoch, objective, None, {}) for epoch, objective in steps]
    metrics.insert(0, Metric("other", 1, 0.5, None, {}))
    assert epochs_within(run, metrics, "LoRA r=8", 1e-3) == 5
    assert epochs_within(run, metrics, "LoRA r=8", 1e-6) == 15
    assert epochs_within(run, metrics, "LoRA r=8", 1e-9) is None


def test_a_distance_is_relative_to_an_objective_above_one() -> None:
    run = Run.parse(made.run([made.certified(objective=20.0, lower_bound=19.0)]))
    assert run.distance(20.0) == pytest.approx(0.05)
    assert run.distance(0.5) == pytest.approx(-18.5)
    assert run.distance(None) is None
