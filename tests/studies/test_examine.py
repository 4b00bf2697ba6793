"""What is said of a run folder, on tiny networks: every part, what it lacks, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import small_settings
from small_studies import small_plan
from tangentlora.blocks import padded
from tangentlora.errors import InputError
from tangentlora.report.columns import WIDTH
from tangentlora.solvers.certified import Certified
from tangentlora.studies.examination import Examination, StationarityPart
from tangentlora.studies.examine import PARTS, chosen_lam, examine
from tangentlora.studies.fit import compare, fit
from tangentlora.studies.rates import rates
from tangentlora.studies.reopen import reopen
from tangentlora.studies.settings import Settings
from tangentlora.theory.bounds import generalisation
from tangentlora.theory.rates import local_rate
from tangentlora.theory.stationarity import Kind


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A k-shot problem of the tiny BERT with a dev and a test set."""
    case = small_plan(tmp_path_factory.mktemp("examined")).cases[0]
    return replace(case.settings, lam=0.25, solver="sgd", rank=2, epochs=100, perturbation=0.0)


@pytest.fixture(scope="module")
def folder(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs") / "run"
    fit(settings, made)
    return made


@pytest.fixture(scope="module")
def examination(folder: Path) -> Examination:
    return examine(folder)


def described(examination: Examination) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(json.dumps(examination.describe()))
    return said


def test_every_part_is_there_in_text_and_in_json(examination: Examination, folder: Path) -> None:
    text = examination.text()
    assert max(map(len, text.splitlines())) <= WIDTH
    said = described(examination)
    assert tuple(said)[-4:] == PARTS
    assert said["answer"] == "LoRA r=2"
    assert said["folder"] == str(folder)
    for part in examination.parts.values():
        assert f"\n\n{part.title}\n{'-' * len(part.title)}\n" in text
    assert "tolerance 1e-06" in text
    assert "at most 10% everywhere, nearly linear at most 50%" in " ".join(text.split())
    assert said["rate"]["tolerance"] == 0.1


def test_the_kind_of_point_stands_beside_the_gap(folder: Path, examination: Examination) -> None:
    said = described(examination)["stationarity"]
    run = json.loads((folder / "run.json").read_text())["runs"][0]
    assert said["certificate"]["gap"] == run["gap"]
    assert said["kind"] in examination.parts["stationarity"].describe()["kind"]
    assert not said["perturbed"]
    assert said["perturbed_gap"] is None


def test_the_bounds_stand_beside_three_lambdas(folder: Path, examination: Examination) -> None:
    said = described(examination)["bounds"]
    opened = reopen(folder, dev=True)
    assert said["lam"]["run"] == 0.25
    assert said["lam"]["chosen_by_dev"] == chosen_lam(opened.prepared)
    assert said["lam"]["prescribed"] == said["recalled"]["lam"]
    again = generalisation(opened.prepared.problem, opened.factors, draws=200)
    assert said["train_loss"] == pytest.approx(again.train_loss)
    assert said["vacuous"] == {"measured": True, "recalled": True}
    assert said["held_out_loss"] <= said["measured"]["bound"]
    assert examination.text().count("(vacuous)") == 3
    assert chosen_lam(replace(opened.prepared, dev=None)) is None


def test_the_regime_is_that_of_the_answer(examination: Examination) -> None:
    said = described(examination)["regime"]
    assert [step["tau"] for step in said["regime"]["train"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert len(said["regime"]["held_out"]) == 5
    assert said["message"][:30] in examination.text()


def test_rates_are_predicted_and_measured_by_rank_and_start(examination: Examination) -> None:
    runs = described(examination)["rate"]["runs"]
    assert {run["initialisation"] for run in runs} == {"paper", "spectral"}
    assert {run["rank"] for run in runs} >= {2}
    for run in runs:
        assert 0 < run["predicted"]["factor"] < 1
        assert run["momentum"] == 0.9
        assert run["measured"] == pytest.approx(0.9, abs=0.01)
    # a large λ and momentum: F − F* swings as it falls, at a rate of β
    assert [run["predicted"]["factor"] for run in runs] == pytest.approx([0.9] * len(runs))
    agree = sum(run["verdict"] == "agrees" for run in runs)
    assert agree == len(runs)
    assert f"{agree} of {len(runs)} runs close in at the rate" in examination.text()


def test_a_run_that_is_slower_than_predicted_is_called_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentlora.studies.rates.MOST_EPOCHS", 30)
    optimum = Certified(tolerance=1e-12).solve(reopen(folder).prepared.problem)
    run = rates(optimum, [2], momentum=0.9)[0]
    assert (run.measured, run.epochs, run.verdict) == (None, 30, "epochs spent")  # too few of them
    factor = run.predicted.factor
    verdicts = [replace(run, measured=factor**power).verdict for power in (0.89, 0.91, 1.09, 1.11)]
    assert verdicts == ["slower", "agrees", "agrees", "faster"]
    assert replace(run, measured=1.1).verdict == "slower"
    assert replace(run, predicted=replace(run.predicted, factor=1.0)).ratio is None
    hasty = rates(optimum, [2], learning_rate=1e4)[0]
    assert hasty.predicted.factor > 1
    assert (hasty.measured, hasty.verdict) == (None, "diverged")
    wide = local_rate(optimum.problem, padded(optimum.factors, 5), 0.1)
    assert rates(optimum, [5], learning_rate=0.1)[0].predicted == wide
    with pytest.raises(InputError, match=r"got the ranks \[0\], expected ranks of at least 1, that of the"):
        rates(optimum, [0])
    poor = Certified(tolerance=1e-1, max_rounds=0).solve(optimum.problem)
    with pytest.raises(InputError, match=r"got an optimum with the relative gap .*expected at most 1e-09"):
        rates(poor, [2])


def test_a_certified_run_that_still_moves_is_not_told_to_train_on(examination: Examination) -> None:
    part = examination.parts["stationarity"]
    assert isinstance(part, StationarityPart)
    moving = replace(part.found, kind=Kind.NOT_STATIONARY, gradient=2e-4)
    told = {
        proved: " ".join(
            replace(part, found=moving, certificate=replace(part.certificate, certified=proved)).lines()
        )
        for proved in (True, False)
    }
    assert "train for longer" in told[False]
    assert "train for longer" not in told[True]
    assert "not quite zero (relative size 2.0e-04, tolerance 1e-06)" in told[True]


def test_a_perturbed_run_is_judged_by_its_own_objective(settings: Settings, tmp_path: Path) -> None:
    changes = {"perturbation": 1e-2, "rank": 3, "epochs": 600, "tolerance": 1e-12}
    perturbed = settings.solved_by("lbfgs", **changes)
    fit(perturbed, tmp_path / "run")
    said = described(examine(tmp_path / "run", which=("stationarity", "rate")))
    assert said["stationarity"]["perturbed"]
    assert said["stationarity"]["gradient"] < 1e-5  # it came to rest in F_Π, with that Π and no other
    assert -1e-9 <= said["stationarity"]["perturbed_gap"] < 1e-4
    path = tmp_path / "run" / "run.json"
    run = json.loads(path.read_text())
    for changes in ({"perturbation": 0.0}, {"seed": 1}):
        path.write_text(json.dumps(run | {"configuration": run["configuration"] | changes}))
        other = described(examine(tmp_path / "run", which=("stationarity",)))["stationarity"]
        assert other["gradient"] > 1e-4
        assert other["kind"] == "NOT_STATIONARY"
    reason = said["rate"]["missing"]
    assert "the solver was lbfgs and the objective was perturbed" in reason


def test_any_answer_of_a_comparison_can_be_named(settings: Settings, tmp_path: Path) -> None:
    compare(replace(settings, epochs=20), tmp_path / "run", (1, 2))
    main = examine(tmp_path / "run", which=("rate", "stationarity"))
    assert (main.answer, tuple(main.parts)) == ("certified", ("stationarity", "rate"))
    assert "In this run the solver was certified" in " ".join(main.text().split())
    assert described(main)["stationarity"]["certificate"]["certified"]
    # a free rank is judged with a column to spare, so that to second order all ranks are seen
    assert described(main)["stationarity"]["kind"] == "RANK_DEFICIENT_SOSP"
    other = described(examine(tmp_path / "run", which=("stationarity",), answer="LoRA r=1"))
    assert other["answer"] == "LoRA r=1"
    assert other["stationarity"]["kind"] == "NOT_STATIONARY"
    assert not other["stationarity"]["certificate"]["certified"]
    with pytest.raises(InputError, match=r"'LoRA r=9', expected one of LoRA r=1, LoRA r=2, .* and certified"):
        examine(tmp_path / "run", answer="LoRA r=9")


def test_a_rank_below_the_optimum_s_has_no_predicted_rate(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, lam=0.02, solver="sgd", rank=1, epochs=5)  # its optimum has rank 2
    fit(settings, tmp_path / "run")
    said = described(examine(tmp_path / "run", which=("rate", "bounds")))
    assert "expected ranks of at least 2" in said["rate"]["missing"]
    assert said["bounds"]["lam"]["chosen_by_dev"] is None  # no dev set


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (("regime", "luck"), "got the parts luck, expected some of stationarity, regime, bounds and rate"),
        ((), r"got the parts \(none\), expected some of stationarity"),
    ],
)
def test_unknown_parts_are_refused(tmp_path: Path, which: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        examine(tmp_path, which=which)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json does not exist, expected a run folder"):
        examine(tmp_path)


def test_the_settings_are_those_of_the_run(folder: Path, settings: Settings) -> None:
    assert asdict(reopen(folder).prepared.settings) == asdict(settings)


def damaged(folder: Path, target: Path, **configuration: Any) -> Path:
    """Return a copy of the folder whose run.json has another configuration."""
    shutil.copytree(folder, target)
    run = json.loads((target / "run.json").read_text())
    run["configuration"] |= configuration
    (target / "run.json").write_text(json.dumps(run))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 4}, "whose data, network or libraries have changed since it was written"),
        ({"data_seed": 21}, "whose data, network or libraries have changed since it was written"),
        ({"readout": {"readout": "tarot"}}, "whose configuration cannot be read"),
        ({"readout": "prompt"}, "whose configuration cannot be read"),
        ({"lam": -1.0}, "whose configuration cannot be read .*got λ = -1"),
    ],
)
def test_a_run_whose_problem_has_changed_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        examine(damaged(folder, tmp_path / "copy", **changes), which=("stationarity",))


def test_a_damaged_answer_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = damaged(folder, tmp_path / "copy")
    path = copy / "solution.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"labels": torch.flip(tensors["labels"], (0,)) + 1}, path)
    with pytest.raises(InputError, match="have changed since it was written"):
        examine(copy, which=("stationarity",))
    name = next(key for key in tensors if key.endswith("/u"))
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, path)
    with pytest.raises(InputError, match=r"of a layer of the problem with .*: run fit again"):
        examine(copy, which=("stationarity",))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="which cannot be read"):
        examine(copy, which=("stationarity",))
