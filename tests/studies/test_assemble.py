"""results.json: distances to the optimum and arrival, on records made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from small_studies import small_plan
from tangentlora.studies.assemble import assemble


def record(variant: str, objective: float, lam: float | None = 0.1, **more: Any) -> dict[str, Any]:
    values = {"slug": variant, "variant": variant, "lam": lam, "objective": objective, "certified": False}
    return values | {"trace": [], "seconds": 1.0, "key": "abc"} | more


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    return small_plan(tmp_path)


def cells_of(plan: Any, *records: dict[str, Any]) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = assemble(plan, [({"name": "a"}, records)])["cases"][0]["cells"]
    return cells


def test_runs_are_set_against_the_certified_optimum_of_their_own_lam(plan: Any) -> None:
    trace = [[0, 0.7], [1, 0.5001], [2, 0.5011], [3, 0.5009], [4, 0.5002]]
    best, other, run, elsewhere = cells_of(
        plan,
        record("certified", 0.5, certified=True),
        record("certified", 2.0, 0.2, certified=True),
        record("lora", 0.5002, trace=trace),
        record("full", 2.5, 0.2, trace=[[0, 3.0], [1, 2.0021], [2, 2.0019]]),
    )
    assert (best["excess"], other["excess"]) == (0, 0)
    assert run["optimum"] == 0.5
    assert run["excess"] == run["relative_excess"] == pytest.approx(2e-4)
    assert run["epochs_to_optimum"] == 1
    assert elsewhere["relative_excess"] == pytest.approx(0.25)
    assert elsewhere["epochs_to_optimum"] == 2  # within 1e-3 of 2.0, relative to 2.0


def test_a_run_that_never_arrives_has_no_epoch(plan: Any) -> None:
    _, run = cells_of(
        plan, record("certified", 0.5, certified=True), record("lora", 0.51, trace=[[0, 0.7], [9, 0.51]])
    )
    assert run["epochs_to_optimum"] is None
    assert run["excess"] == pytest.approx(0.01)


def test_an_optimum_that_is_not_certified_is_no_optimum(plan: Any) -> None:
    _, run = cells_of(plan, record("certified", 0.5), record("lora", 0.51, trace=[[0, 0.5]]))
    assert (run["optimum"], run["excess"], run["epochs_to_optimum"]) == (None, None, None)


def test_times_and_keys_stay_out_and_traces_are_thinned_between_their_ends(plan: Any) -> None:
    trace = [[epoch, 1 / (1 + epoch)] for epoch in range(1001)]
    (run,) = cells_of(plan, record("lora", 0.1234567890123, trace=trace))
    assert not {"seconds", "key"} & set(run)
    epochs = run["trace"]["epoch"]
    assert len(epochs) <= 121
    assert (epochs[0], epochs[-1]) == (0, 1000)
    assert epochs == sorted(set(epochs))
    assert run["trace"]["objective"] == pytest.approx([1 / (1 + epoch) for epoch in epochs], rel=1e-9)
    assert run["objective"] == 0.123456789  # ten digits
