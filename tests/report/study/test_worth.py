"""The choice of λ by the dev set, held-out accuracy, wall time, and wins counted honestly."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import pytest

from report.study import made_studies as made
from report.study.test_tables import rows
from tangentlora.report.study.reading import Seconds
from tangentlora.report.study.results import Study
from tangentlora.report.study.worth import chosen, wins_table, worth_table


def certified(values: dict[str, Any], dev: list[tuple[float | None, float | None]]) -> Study:
    """Return the study with these dev accuracies and losses at λ = 0.1, 0.01 and 0.001."""
    for case in values["cases"]:
        for cell, (accuracy, loss) in zip(case["cells"], dev, strict=False):
            cell["linearised"] |= {"dev_accuracy": accuracy, "dev_loss": loss}
    return Study.parse(values)


@pytest.mark.parametrize(
    ("dev", "lam"),
    [
        ([(0.5, 0.1), (0.75, 0.9), (0.5, 0.1)], 0.01),  # accuracy first
        ([(0.75, 0.4), (0.75, 0.9), (0.75, 0.3)], 0.001),  # then loss
        ([(0.5, 0.4), (0.75, 0.3), (0.75, 0.3)], 0.01),  # then the larger λ
        ([(None, None), (None, None), (0.5, 0.3)], 0.001),  # what has no dev score cannot be chosen
        ([(None, None)] * 3, None),
    ],
)
def test_the_dev_set_chooses(dev: list[tuple[float | None, float | None]], lam: float | None) -> None:
    (case,) = certified(made.study(("mr",), (13,), ranks=(8,)), dev).cases
    cell = chosen(case)
    assert (None if cell is None else cell.lam) == lam


def test_one_certified_answer_needs_no_dev_set() -> None:
    (case,) = certified(made.study(("mr",), (13,), ranks=(8,), lams=(0.01,)), [(None, None)]).cases
    assert chosen(case) == case.cells[0]


def test_accuracy_and_seconds_stand_beside_the_baselines() -> None:
    values = made.study(("mr", "cr"), ranks=(8,))
    study = certified(values, [(0.5, 1.0), (0.75, 1.0), (0.5, 1.0)])
    timings = {name: Seconds.parse(row) for name, row in made.timings(values).items()}
    found = rows(worth_table(study, timings))
    assert found["test accuracy"] == [
        "λ by dev set",
        "zero-shot",
        "logistic regression",
        "PEFT LoRA, AdamW",
        "certified, linearised",
        "certified, real network",
    ]
    ours = {t: [c["cells"][1] for c in values["cases"] if c["task"] == t] for t in ("mr", "cr")}
    scores = [cell["real"]["test_accuracy"] for cell in ours["mr"]]
    assert found["mr"][0] == "0.01"
    assert found["mr"][5] == f"{mean(scores):.3f} ± {stdev(scores):.3f}"
    by_task = [mean(cell["linearised"]["test_accuracy"] for cell in cells) for cells in ours.values()]
    assert found["mean over tasks"][4] == f"{mean(by_task):.3f}"
    # Linearising takes 20 s and each of three λ 1 s.
    assert found["mean seconds"] == ["", "5", "5", "5", "23", "23"]


def test_without_timings_there_is_no_row_of_seconds_and_an_unknown_part_makes_the_sum_unknown() -> None:
    values = made.study(("mr",), (13,), ranks=(8,))
    assert "mean seconds" not in rows(worth_table(Study.parse(values), {}))
    partly = {"mr-13": Seconds(20.0, {"zero-shot": 1.25, "certified-lam0.1": 1.0})}
    assert rows(worth_table(Study.parse(values), partly))["mean seconds"] == ["", "1.25", "–", "–", "–", "–"]


def test_wins_ties_and_losses_are_counted_over_the_cases() -> None:
    values = made.study(("mr",), (13, 21, 42), ranks=(8,))
    for case, other in zip(values["cases"], (0.75, 0.5, 0.625), strict=True):
        for cell in case["cells"]:
            if cell["variant"] == "peft-lora":
                cell["real"]["test_accuracy"] = other
            elif cell["variant"] == "certified":
                cell["real"]["test_accuracy"] = 0.625
    found = rows(wins_table(Study.parse(values)))
    line = found["certified, real network against PEFT LoRA, AdamW"]
    assert line == ["1", "1", "1", f"0.0 ± {stdev([12.5, -12.5, 0.0]):.1f}"]
    assert len(found) == 2 + 6  # head and rule, two ways to use the answer against three baselines


def test_without_baselines_or_answers_there_is_no_table() -> None:
    values = made.study(("mr",), (13,), ranks=(8,))
    for variants in (("zero-shot", "logistic-regression", "peft-lora"), ("certified",)):
        study = Study.parse(made.without(values, *variants))
        assert worth_table(study, {}) == wins_table(study) == ""


def test_a_task_that_a_method_did_not_run_leaves_its_mean_open() -> None:
    values = made.study(("mr", "cr"), (13,), ranks=(8,))
    first = values["cases"][0]
    first["cells"] = [c for c in first["cells"] if c["variant"] != "peft-lora"]
    found = rows(worth_table(Study.parse(values), {}))
    assert found["mr"][3] == found["mean over tasks"][3] == "–"
    assert found["cr"][3] != "–"


def test_answers_that_do_not_hold_on_the_real_network_are_counted() -> None:
    values = made.study(("mr",), lams=(made.LAM,))
    assert "holds" not in worth_table(Study.parse(values), {})
    for cell in values["cases"][0]["cells"]:
        if cell["variant"] == "certified":
            cell["real"]["train_loss"] = 3.0  # above that before training
    assert ", holds 2/3 |" in worth_table(Study.parse(values), {})
