from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import small_settings
from tangentlora.adapters import loaded_outputs
from tangentlora.errors import InputError
from tangentlora.models.update import updated
from tangentlora.problem.ranks import ranks
from tangentlora.report import RunFolder
from tangentlora.solvers.descent import Descent
from tangentlora.studies import measure as measure_module, run as run_module
from tangentlora.studies.prepare import Prepared, prepare, scores
from tangentlora.studies.run import run_trials
from tangentlora.studies.trials import Trial, trial
from tangentlora.studies.versions import versions
from tangentlora.theory.certificate import certify, read_certificate
from tangentlora.theory.verify import verify


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_settings(tmp_path_factory.mktemp("shared"), lam=0.05))


def descent(name: str, folder: str, **settings: Any) -> Trial:
    solver = Descent(**({"rank": 2, "epochs": 20} | settings))
    return Trial(name, folder, "sgd", solver.rank, solver)


@pytest.fixture(scope="module")
def made(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a short LoRA training, one that diverges, and the certified optimum."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    trials = [
        descent("short", "short"),
        descent("absurd", "absurd", learning_rate=1e9),
        trial(prepared.settings),
    ]
    return folder, run_trials(prepared, trials, folder, "demo")


def test_the_folder_holds_the_files_of_every_answer(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    answer = {
        "solution.safetensors",
        "certificate.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    expected = {
        "run.json",
        "metrics.jsonl",
        "seal.json",
        *answer,
        *(f"{sub}/{name}" for sub in ("short", "absurd") for name in answer),
    }
    assert files == expected
    assert json.loads((folder / "run.json").read_text()) == record
    assert [entry["folder"] for entry in record["runs"]] == ["short", "absurd", "."]


def test_the_report_reads_what_was_written(made: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = made
    read = RunFolder(folder).read_run()
    assert read.main.name == "certified"
    assert read.main.certified
    assert [answer.name for answer in read.answers] == ["short", "absurd", "certified"]
    assert {metric.run for metric in RunFolder(folder).read_metrics()} == {"short", "absurd", "certified"}
    assert RunFolder(folder).read_certificate() is not None


def test_every_answer_is_what_its_files_say(prepared: Prepared, made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    for entry in record["runs"]:
        place = folder / entry["folder"]
        for name, digest in entry["sha256"].items():
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest
        tensors = load_file(place / "solution.safetensors")
        assert tensors["labels"].tolist() == list(prepared.splits.train.labels)
        factors = {t.name: (tensors[f"{t.name}/u"], tensors[f"{t.name}/v"]) for t in prepared.targets}
        assert read_certificate(place / "certificate.json") == certify(prepared.problem, factors)
        assert entry["objective"] == prepared.problem.objective(factors)
        exact = read_certificate(place / "certificate.json").ranks
        assert entry["ranks"] == (
            exact if entry["solver"] == "certified" else ranks(prepared.problem, factors, 1e-3)
        )
        assert entry["rank_reached"] == sum(entry["ranks"].values())
        z = prepared.problem.outputs(factors)
        assert entry["linearised"].items() >= scores(z, prepared.splits.train.labels, "train").items()
        with updated(prepared.network, prepared.targets, factors):
            real = prepared.network.predict(prepared.splits.train.inputs)
        assert entry["real"].items() >= scores(real, prepared.splits.train.labels, "train").items()
        adapted = loaded_outputs(prepared.network, place / "adapter", prepared.splits.train.inputs)
        torch.testing.assert_close(adapted, real, rtol=1e-4, atol=1e-4)
        for values in entry["singular_values"].values():
            assert values == sorted(values, reverse=True)
        assert {"test_accuracy", "test_loss"} <= entry["linearised"].keys() & entry["real"].keys()


def test_every_answer_is_verified(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    for entry in record["runs"]:
        result = verify(folder / entry["folder"])
        assert result.valid, result.sentence()
        assert result.certified == entry["certified"] == (entry["folder"] == ".")


def test_a_diverged_trial_is_recorded_and_loses_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    _, record = made
    short, absurd, certified = record["runs"]
    assert absurd["status"] == "DIVERGED"
    assert absurd["message"].endswith("lower the learning rate.")
    assert not absurd["certified"]
    assert short["status"] == "EPOCHS_SPENT"
    assert certified["certified"]
    assert certified["lower_bound"] <= certified["objective"] <= short["objective"] < absurd["objective"]


def test_what_the_run_records_of_its_problem(prepared: Prepared, made: tuple[Path, dict[str, Any]]) -> None:
    _, record = made
    assert record["command"] == "demo"
    assert record["versions"] == versions()
    assert record["configuration"]["lam"] == 0.05
    assert record["configuration"]["loss"] == "cross_entropy"
    assert record["configuration"]["readout"] == prepared.network.reader.describe()
    assert record["data"]["n_train"] == record["tangent"]["n_examples"] == 18
    assert record["data"]["n_test"] == 6
    assert record["data"]["label_names"] == ["bad", "good"]
    assert record["tangent"]["dense_bytes"] == 4 * 18 * 2 * 2 * 32 * 32
    assert record["tangent"]["bytes"] < record["tangent"]["dense_bytes"]
    assert record["tangent"]["constraints"] == prepared.problem.constraints
    assert Path(record["tangent"]["store"]).name == record["tangent"]["key"]
    z = prepared.network.predict(prepared.splits.train.inputs)
    before = {name: value for name, value in record["before"].items() if name.startswith("train")}
    assert before == pytest.approx(scores(z, prepared.splits.train.labels, "train"), rel=1e-5)


def test_the_metrics_are_those_of_the_history(made: tuple[Path, dict[str, Any]]) -> None:
    folder, record = made
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    short = [row for row in rows if row["run"] == "short"]
    assert [row["epoch"] for row in short][:3] == [0, 1, 2]
    assert short[-1]["epoch"] == 20
    assert short[-1]["objective"] == pytest.approx(record["runs"][0]["factored_objective"], rel=1e-12)
    assert short[-1]["measures"] == pytest.approx(record["runs"][0]["linearised"])
    assert short[0]["measures"]["train_loss"] == pytest.approx(record["before"]["train_loss"], rel=1e-4)


def test_numbers_that_are_not_finite_become_null(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (run_module, measure_module):
        monkeypatch.setattr(module, "scores", lambda *_: {"train_accuracy": 0.5, "train_loss": math.nan})
    record = run_trials(prepared, [descent("short", ".", epochs=2)], tmp_path)
    for name in ("run.json", "metrics.jsonl"):
        assert "NaN" not in (tmp_path / name).read_text()
    assert record["runs"][0]["real"]["train_loss"] is None
    assert record["command"] == "fit"
    assert (
        json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["measures"]["train_loss"] is None
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_settings_that_do_not_suit_are_refused_before_anything_is_replaced(
    prepared: Prepared, made: tuple[Path, dict[str, Any]]
) -> None:
    folder, _ = made
    before = contents(folder)
    for wrong in (descent("wide", ".", rank=33), descent("none", ".", epochs=0)):
        with pytest.raises(InputError):
            run_trials(prepared, [descent("short", "short", epochs=3), wrong], folder)
        assert contents(folder) == before


def test_an_adapter_that_says_something_else_is_refused_before_anything_is_replaced(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trials(prepared, [descent("short", ".", epochs=2)], tmp_path)
    before = contents(tmp_path)
    shifted = lambda network, adapter, inputs: network.predict(inputs) + 0.1  # noqa: E731
    monkeypatch.setattr(run_module, "loaded_outputs", shifted)
    with pytest.raises(
        InputError, match=r"got outputs that differ by .* after loading the adapter .*: update peft"
    ):
        run_trials(prepared, [descent("short", ".", epochs=3)], tmp_path)
    assert contents(tmp_path) == before
    # in bfloat16 W + δ is rounded to three digits, so nothing can be concluded
    coarse = replace(prepared, settings=replace(prepared.settings, dtype="bfloat16"))
    record = run_trials(coarse, [descent("short", ".", epochs=3)], tmp_path)
    assert record["runs"][0]["adapter_error"] > 0.01


def test_an_answer_of_rank_zero_has_no_adapter(prepared: Prepared, tmp_path: Path) -> None:
    problem = replace(prepared.problem, lam=50.0)
    nothing = replace(prepared, problem=problem, settings=replace(prepared.settings, lam=50.0))
    record = run_trials(nothing, [trial(nothing.settings)], tmp_path)
    assert record["runs"][0]["adapter_error"] is None
    assert record["runs"][0]["rank_reached"] == 0
    assert not (tmp_path / "adapter").exists()
    assert record["runs"][0]["real"] == pytest.approx(record["before"], rel=1e-5)
    assert verify(tmp_path).certified


def test_each_answer_is_written_before_the_next_trial_starts(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = Descent.solve

    def failing(self: Descent, *arguments: Any, **options: Any) -> Any:
        if self.rank == 3:
            raise KeyboardInterrupt
        return solve(self, *arguments, **options)

    monkeypatch.setattr(Descent, "solve", failing)
    trials = [descent("one", "one", epochs=2), descent("two", "two", epochs=2, rank=3)]
    with pytest.raises(KeyboardInterrupt):
        run_trials(prepared, trials, tmp_path)
    assert [answer.name for answer in RunFolder(tmp_path).read_run().answers] == ["one"]
    assert verify(tmp_path / "one").valid
