"""The tables of a study, against the numbers of results.json taken by hand."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

import pytest

from report.study import made_studies as made
from tangentlora.report.study.markdown import spread_digits, table
from tangentlora.report.study.results import Study
from tangentlora.report.study.series import mean_of
from tangentlora.report.study.tables import certificates_table, claims_table, epochs_table, published_table
from tangentlora.report.wording import relative


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of a Markdown table by its first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    assert len({len(line) for line in text.splitlines()}) == 1, "columns are not aligned"
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def cells(values: dict[str, Any], slug: str, task: str = "sst2") -> list[dict[str, Any]]:
    return [c for case in values["cases"] if case["task"] == task for c in case["cells"] if c["slug"] == slug]


@pytest.fixture
def values() -> dict[str, Any]:
    return made.study(("sst2", "mr"), ranks=(1, 8))


def test_claims_are_means_and_the_largest_over_the_seeds(values: dict[str, Any]) -> None:
    found = rows(claims_table(Study.parse(values)))
    assert found["relative excess, mean (largest)"] == ["sst2", "mr"]
    excess = [c["relative_excess"] for c in cells(values, "lora-r1", "mr")]
    assert found["LoRA r=1"][1] == f"{relative(mean(excess))} ({relative(max(excess))})"
    optima = [c["optimum"] for c in cells(values, "full")]
    assert found["certified optimum P*"][0] == f"{mean(optima):.4f} ± {stdev(optima):.4f}"
    assert found["its rank, largest layer"] == ["2", "2"]
    assert found["constraints"] == ["32", "32"]


def test_every_variant_that_was_run_has_a_row(values: dict[str, Any]) -> None:
    for case in values["cases"]:
        lora = next(c for c in case["cells"] if c["slug"] == "lora-r8")
        case["cells"] += [lora | {"slug": v, "variant": v} for v in ("frozen-a", "perturbed")]
    found = rows(claims_table(Study.parse(values)))
    assert found["LoRA, A frozen r=8"] == found["LoRA, perturbed r=8"] == found["LoRA r=8"]


def test_diverged_and_missing_runs_are_told(values: dict[str, Any]) -> None:
    cells(values, "lora-r8")[0].update(
        objective=None, relative_excess=None, relative_gap=None, certified=False
    )
    values["cases"][-1]["cells"] = []
    assert rows(claims_table(Study.parse(values)))["LoRA r=8"][0].endswith(", not finite 1/3")
    assert rows(certificates_table(Study.parse(values)))["LoRA r=8"][1].endswith(", 2/2")
    values["cases"] = [c | {"cells": [] if c["task"] == "mr" else c["cells"]} for c in values["cases"]]
    assert rows(claims_table(Study.parse(values)))["LoRA r=8"][1] == "–"


def test_epochs_say_how_many_seeds_never_came_near(values: dict[str, Any]) -> None:
    for c, epochs in zip(cells(values, "lora-r8"), (10, None, 20), strict=True):
        c["epochs_to_optimum"] = epochs
    found = rows(epochs_table(Study.parse(values)))
    assert found["epochs to within 1e-3"] == ["sst2", "mr"]
    assert found["LoRA r=8"][0] == f"15 ± {stdev([10, 20]):.0f}, never 1/3"
    assert found["LoRA r=1"][0] == "never 3/3"
    epochs = [c["epochs_to_optimum"] for c in cells(values, "full", "mr")]
    assert found["full fine-tuning"][1] == f"{mean(epochs):.0f} ± {stdev(epochs):.0f}"


def test_the_rank_that_suffices_is_good_on_every_seed(values: dict[str, Any]) -> None:
    found = rows(certificates_table(Study.parse(values)))
    gaps = [c["relative_gap"] for c in cells(values, "lora-r8")]
    assert found["LoRA r=8"][0] == f"{relative(max(gaps))}, 3/3"
    assert found["certified optimum"][0].endswith(", 3/3")
    assert found["rank that suffices: certified"] == found["rank that suffices: within 1e-3"] == ["8", "8"]
    # One seed of three is enough to say no.
    cells(values, "lora-r8")[1].update(certified=False, relative_excess=2e-3)
    found = rows(certificates_table(Study.parse(values)))
    assert found["LoRA r=8"][0].endswith(", 2/3")
    assert found["rank that suffices: certified"] == found["rank that suffices: within 1e-3"] == ["none", "8"]


def test_a_rank_that_some_seed_did_not_run_does_not_suffice(values: dict[str, Any]) -> None:
    values["cases"][0]["cells"] = [c for c in values["cases"][0]["cells"] if c["slug"] != "lora-r8"]
    assert rows(certificates_table(Study.parse(values)))["rank that suffices: certified"] == ["none", "8"]


def test_the_published_loop_stands_beside_the_one_with_lambda(values: dict[str, Any]) -> None:
    found = rows(published_table(Study.parse(values)))["sst2, r=8"]
    stated, published = cells(values, "lora-r8"), cells(values, "published-r8")
    assert found[:2] == [relative(mean(c["relative_excess"] for c in group)) for group in (stated, published)]
    assert found[3] == "25.0 ± 0.0"
    for text, scores in (
        (found[4], [c["linearised"] for c in stated]),
        (found[5], [c["linearised"] for c in published]),
        (found[6], [c["without_f0"] for c in published]),
    ):
        accuracies = [score["test_accuracy"] for score in scores]
        assert text == f"{mean(accuracies):.3f} ± {stdev(accuracies):.3f}"


def test_tables_with_nothing_to_say_are_empty(values: dict[str, Any]) -> None:
    assert published_table(Study.parse(made.without(values, "published"))) == ""
    uncertified = Study.parse(made.without(values, "certified"))
    assert claims_table(uncertified) == epochs_table(uncertified) == ""
    nothing = Study.parse(made.without(values, "certified", "lora", "full"))
    assert certificates_table(nothing) == ""


def test_tables_are_aligned_and_escape_bars() -> None:
    text = table(["a", "b"], [["long | name", "1"], ["x", "23.45"]])
    assert text.splitlines() == [
        "| a            |     b |",
        "| ------------ | ----: |",
        "| long \\| name |     1 |",
        "| x            | 23.45 |",
    ]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([123.4, 125.4], "124 ± 1"),
        ([0.00123], "0.00123"),
        ([4.0, 5.0], "4.50 ± 0.71"),
        ([0.0], "0.00"),
        ([], "–"),
    ],
)
def test_three_digits_suit_the_size(numbers: list[float], text: str) -> None:
    assert spread_digits(mean_of(numbers)) == text
