"""Figures: which are drawn, from which numbers, and that equal runs give equal bytes."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from report import run_folders as made
from tangentlora.report.canvas import styles
from tangentlora.report.curves import epochs_within
from tangentlora.report.figures import draw, write_figures
from tangentlora.report.record import Metric, Run

PNG = b"\x89PNG\r\n\x1a\n"


def pictures(values: dict) -> dict:
    metrics = [Metric.parse(row) for row in made.metrics(values)]
    return {picture.name: picture for picture in draw(Run.parse(values), metrics)}


@pytest.fixture(scope="module")
def demo() -> dict:
    return pictures(made.demo())


def test_a_demo_has_all_figures_as_svg_and_png(demo: dict) -> None:
    assert list(demo) == ["objective", "distance", "accuracy", "ranks", "singular-values"]
    for picture in demo.values():
        assert ElementTree.fromstring(picture.svg).tag.endswith("svg")
        assert picture.png.startswith(PNG)
        assert "<dc:date>" not in picture.svg
        assert picture.title
        assert picture.caption
        assert picture.alt


def test_the_alternative_texts_hold_the_numbers(demo: dict) -> None:
    assert "LoRA r=1 at 0.94" in demo["objective"].alt
    assert "the proved lower bound is 0.731246" in demo["objective"].alt
    assert "LoRA r=16 at 2.6e-5" in demo["distance"].alt
    assert "before training it is 0.560" in demo["accuracy"].alt
    assert "rank 4: 0.732500" in demo["ranks"].alt
    assert "certified: query 0 and value 3" in demo["singular-values"].alt
    assert "full fine-tuning: query 0 and value 4" in demo["singular-values"].alt


def test_zero_rank_and_the_empty_region_are_told_in_words(demo: dict) -> None:
    # Text is drawn as outlines; matplotlib leaves the words beside them as a comment.
    assert "<!-- rank 0: unchanged -->" in demo["singular-values"].svg
    assert "<!-- no answer of any rank is below 0.731246 -->" in demo["objective"].svg


def test_equal_runs_give_equal_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    import matplotlib

    values = made.run([made.answer("LoRA r=8", made.LIMITS[8], rank=8)])
    first = write_figures(made.write(tmp_path / "a", values))
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0}):
        second = write_figures(made.write(tmp_path / "b", values))
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    assert len(first) == 8
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_figures_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    folder = made.write(tmp_path, made.run([made.answer("LoRA r=8", made.LIMITS[8], rank=8)]))
    write_figures(folder)
    (tmp_path / "figures" / "mine.svg").write_text("kept")
    (tmp_path / "metrics.jsonl").unlink()
    paths = write_figures(folder)
    assert [path.name for path in paths] == ["singular-values.svg", "singular-values.png"]
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "mine.svg",
        "singular-values.png",
        "singular-values.svg",
    ]


def test_without_a_test_set_no_accuracy_is_drawn() -> None:
    assert "accuracy" not in pictures(
        made.run([made.answer("LoRA r=8", made.LIMITS[8], rank=8)], test_set=False)
    )


def test_an_answer_of_rank_zero_has_no_singular_values_to_draw() -> None:
    assert "singular-values" not in pictures(made.run([made.certified(ranks={made.QUERY: 0, made.VALUE: 0})]))


def test_a_diverged_run_is_drawn_as_far_as_it_went() -> None:
    values = made.run([made.answer("LoRA r=8", None, rank=8, ranks={}), made.answer("LoRA r=1", 0.9, rank=1)])
    drawn = pictures(values)
    assert "ranks" not in drawn  # one rank is left, which is no comparison
    assert "LoRA r=1 at 0.9" in drawn["objective"].alt
    assert "LoRA r=8" in drawn["objective"].alt
    alone = pictures(made.run([made.answer("LoRA r=8", None, rank=8, ranks={}, singular_values={})]))
    assert list(alone) == ["accuracy"]


def test_distances_that_rounding_made_negative_are_drawn_at_the_floor() -> None:
    values = made.run([made.answer("LoRA r=8", made.OPTIMUM, rank=8, lower_bound=made.OPTIMUM + 1e-15)])
    assert "distance" in pictures(values)


def test_names_with_a_dollar_sign_are_drawn_as_they_are() -> None:
    values = made.run([made.answer("$r_8$ \\frac", made.LIMITS[8], rank=8), made.certified()])
    assert "<!-- $r_8$ \\frac -->" in pictures(values)["objective"].svg


def test_many_layers_are_drawn_in_part_and_the_rest_is_counted() -> None:
    names = [f"encoder.layer.{i}.attention.self.query" for i in range(9)]
    picture = pictures(made.run([made.certified(ranks=dict.fromkeys(names, 2))]))["singular-values"]
    assert "The 6 layers with the largest are shown, 3 are not." in picture.caption


def test_each_run_differs_in_colour_marker_and_dashes() -> None:
    signs = list(styles(Run.parse(made.demo())).values())
    assert len({(s.colour, s.marker) for s in signs}) == len(signs) == 7
    assert len({s.marker for s in signs}) == 7
    many = made.run([made.answer(f"LoRA r={r}", 0.8, rank=r) for r in range(1, 13)])
    assert len(set(styles(Run.parse(many)).values())) == 12


def test_epochs_to_a_distance_are_the_first_that_are_proved() -> None:
    values = made.run([made.answer("LoRA r=8", 0.5, rank=8), made.certified(objective=0.5, lower_bound=0.5)])
    run = Run.parse(values)
    steps = [(0, 0.9), (5, 0.5005), (10, 0.6), (15, 0.5000005), (20, None)]
    metrics = [Metric("LoRA r=8", epoch, objective, None, {}) for epoch, objective in steps]
    metrics.insert(0, Metric("other", 1, 0.5, None, {}))
    assert epochs_within(run, metrics, "LoRA r=8", 1e-3) == 5
    assert epochs_within(run, metrics, "LoRA r=8", 1e-6) == 15
    assert epochs_within(run, metrics, "LoRA r=8", 1e-9) is None


def test_the_gap_axis_reads_the_distance_relative_to_the_objective() -> None:
    run = Run.parse(made.run([made.certified(objective=20.0, lower_bound=19.0)]))
    assert run.distance(20.0) == pytest.approx(0.05)
    assert run.distance(None) is None
    assert re.fullmatch(r"0\.05.*", str(run.distance(20.0)))
