"""One cell: which solver it takes, and a record that agrees with the certificate and the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from small_studies import small_plan
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.studies.cells import chosen_by_dev, run_cell, run_real, solver_of, trained_parameters
from tangentlora.studies.measure import LinearisedSet, linearised_sets
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.settings import Settings
from tangentlora.studies.study import Cell

LAM = 0.05


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_plan(tmp_path_factory.mktemp("cells")).cases[0].settings, dev=True)


@pytest.fixture(scope="module")
def sets(prepared: Prepared) -> Sequence[LinearisedSet]:
    return linearised_sets(prepared)


def test_each_variant_takes_its_solver() -> None:
    settings = Settings(solver="sgd", learning_rate=0.5, momentum=0.25, perturbation=0.1, seed=3)
    assert solver_of(Cell("certified", None, LAM), settings) == Certified()
    assert solver_of(Cell("full", None, LAM), settings) == Proximal(seed=3)
    assert solver_of(Cell("full-plain", None, LAM), settings) == Proximal(
        seed=3, learning_rate=0.5, momentum=0.0
    )
    plain = solver_of(Cell("lora", 4, LAM), settings)
    assert plain == Descent(rank=4, learning_rate=0.5, momentum=0.25, seed=3)
    assert solver_of(Cell("frozen-a", 4, LAM), settings) == replace(plain, freeze_a=True)
    assert solver_of(Cell("perturbed", 4, LAM), settings) == replace(plain, perturbation=0.1)
    assert solver_of(Cell("published", 4, LAM), settings) == replace(plain, published=True)
    other = solver_of(Cell("lora", 4, LAM), Settings(solver="lbfgs"))
    assert isinstance(other, Descent)
    assert other.method == "lbfgs"


def test_the_record_of_a_trained_run(prepared: Prepared, sets: Sequence[LinearisedSet]) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    record = run_cell(prepared, sets, Cell("lora", 2, LAM), lambda *logged: seen.append(logged))
    assert (record["slug"], record["rank"], record["lam"]) == ("lora-r2-lam0.05", 2, LAM)
    assert record["gap"] == pytest.approx(record["objective"] - record["lower_bound"])
    assert record["objective"] <= record["factored_objective"]
    assert [row["epoch"] for row in record["curve"]] == [epoch for epoch, _ in seen]
    assert seen[-1][1] == {key: value for key, value in record["curve"][-1].items() if key != "epoch"}
    assert {"objective", "gap", "train_loss", "test_accuracy"} <= set(seen[0][1])
    assert not any(key.startswith("dev") for key in seen[0][1])
    # epochs have their objective, but for those that were taken back; where logged it is the one logged
    trace = dict(map(tuple, record["trace"]))
    assert len(trace) > 0.8 * record["epochs"]
    assert max(trace.values()) <= trace[0] + 1e-9  # what rose above the start was taken back
    assert set(trace) <= set(range(record["epochs"] + 1))
    for row in record["curve"]:
        assert trace[row["epoch"]] == pytest.approx(row["objective"], rel=1e-9)
    # at the start δ = 0: the objective is the loss of the network as it was, up to the penalty of A
    assert record["curve"][0]["train_loss"] == pytest.approx(record["curve"][0]["objective"], abs=LAM)
    real = run_real(prepared, sets, Cell("lora", 2, LAM))
    assert real["slug"] == record["slug"]
    assert set(real["real"]) == set(record["linearised"])
    assert real["real_network"]["sets"]["test"]["real_loss"] == pytest.approx(real["real"]["test_loss"])
    assert record["real"] is record["real_network"] is None
    assert record["without_f0"] is None


def test_the_published_loop_is_also_scored_without_the_pretrained_outputs(
    prepared: Prepared, sets: Sequence[LinearisedSet]
) -> None:
    longer = replace(prepared, settings=replace(prepared.settings, epochs=600))
    record = run_cell(longer, sets, Cell("published", 2, LAM))
    assert record["real"] is None
    assert set(record["without_f0"]) == {"test_accuracy", "test_loss"}
    assert record["without_f0"]["test_loss"] != pytest.approx(record["linearised"]["test_loss"], abs=1e-4)
    plain = run_cell(longer, sets, Cell("lora", 2, LAM))
    assert record["linearised"]["train_loss"] < plain["linearised"]["train_loss"]  # nothing holds it back
    assert record["objective"] > plain["objective"]


def test_the_certified_cell_is_certified_and_below_the_others(
    prepared: Prepared, sets: Sequence[LinearisedSet]
) -> None:
    best = run_cell(prepared, sets, Cell("certified", None, LAM))
    assert best["certified"]
    assert best["trace"] == []
    for cell in (Cell("lora", 1, LAM), Cell("full", None, LAM)):
        assert run_cell(prepared, sets, cell)["objective"] >= best["lower_bound"]
    larger = run_cell(prepared, sets, Cell("certified", None, 4 * LAM))
    assert larger["objective"] > best["objective"]


def test_trained_parameters_are_counted(prepared: Prepared) -> None:
    shapes = list(prepared.problem.jacobian.shapes.values())
    assert trained_parameters(Cell("full", None, LAM), prepared.problem) == sum(m * n for m, n in shapes)
    assert trained_parameters(Cell("lora", 3, LAM), prepared.problem) == 3 * sum(m + n for m, n in shapes)
    assert trained_parameters(Cell("frozen-a", 3, LAM), prepared.problem) == 3 * sum(m for m, _ in shapes)


def test_lam_is_chosen_by_dev_accuracy_then_loss_then_size() -> None:
    def record(lam: float, accuracy: float, loss: float, variant: str = "certified") -> dict[str, Any]:
        return {"variant": variant, "lam": lam, "linearised": {"dev_accuracy": accuracy, "dev_loss": loss}}

    records = [
        record(0.1, 0.7, 0.5),
        record(0.2, 0.8, 0.9),
        record(0.3, 0.8, 0.6),
        record(0.4, 0.9, 0.1, "lora"),
    ]
    assert chosen_by_dev(records) == 0.3
    assert chosen_by_dev([*records, record(0.25, 0.8, 0.6), record(1.0, 0.8, 0.6)]) == 1.0
    assert (
        chosen_by_dev([{"variant": "certified", "lam": 0.1, "linearised": {"train_accuracy": 1.0}}]) is None
    )
