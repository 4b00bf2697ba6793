"""Answers of tiny networks put to the real network: where they do not hold, that is told first everywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Captured, Shell, status_of
from small_runs import small_settings
from tangentlora.models.network import Network
from tangentlora.models.update import updated
from tangentlora.report.folder import RunFolder
from tangentlora.report.standing import describe_standing, parse_standing
from tangentlora.studies.fit import fit
from tangentlora.studies.measure import linearised_sets, real_outputs
from tangentlora.studies.outer_network import RealNetwork
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.reopen import reopen
from tangentlora.studies.standing import standing_of
from tangentlora.theory.standing import Holds

GOOD, BAD = 0.1, 1e-4
"""λ at which the tiny BERT's answer holds on the real network, and at which its training loss rises."""

FAILS = "The answer does not hold on the real network: its training loss rises from"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which both are fitted, the bad one in the folder `bad`."""
    made = Shell(tmp_path_factory.mktemp("standing"))
    assert status_of(made.fit("--lam", str(GOOD), "--quiet", "--strict")) == 0
    assert status_of(made.fit("--lam", str(BAD), "--quiet", output=made.folder / "bad")) == 0
    return made


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_the_numbers_are_those_of_the_network(shell: Shell) -> None:
    opened = reopen(shell.folder / "bad")
    prepared, factors = opened.prepared, opened.factors
    (entry,) = read(shell.folder / "bad")["runs"]
    found = entry["real_network"]
    assert found["verdict"] == "LOSS_RISES"
    assert not found["holds"]
    before = prepared.network.predict(prepared.splits.train.inputs)
    with updated(prepared.network, prepared.targets, factors):
        after = prepared.network.predict(prepared.splits.train.inputs)
    y = torch.tensor(prepared.splits.train.labels)
    train = found["sets"]["train"]
    assert train["n"] == len(y)
    assert train["lost"] == int(((before.argmax(1) == y) & (after.argmax(1) != y)).sum())
    assert train["gained"] == int(((before.argmax(1) != y) & (after.argmax(1) == y)).sum())
    assert train["real_loss"] == pytest.approx(entry["real"]["train_loss"], rel=1e-6)
    assert train["linear_loss"] == pytest.approx(entry["linearised"]["train_loss"], rel=1e-6)
    assert found["objective"] == pytest.approx(RealNetwork(prepared).objective(factors), rel=1e-5)
    reach = found["reach"]
    assert 0 < reach["tau"] < 1
    scaled = {name: (reach["tau"] * u, v) for name, (u, v) in factors.items()}
    with updated(prepared.network, prepared.targets, scaled):
        there = prepared.network.predict(prepared.splits.train.inputs)
    expected = torch.nn.functional.cross_entropy(there.double(), y)
    assert reach["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert reach["loss"] < train["before_loss"] < train["real_loss"]


def test_what_is_read_back_is_judged_the_same(shell: Shell) -> None:
    for folder in (shell.run, shell.folder / "bad"):
        written = read(folder)["real_network"]
        found = parse_standing(written)
        assert found is not None
        assert found.verdict.name == written["verdict"]
        assert json.loads(json.dumps(describe_standing(found))) == written


def test_it_comes_first_in_all_that_is_written(shell: Shell, capsys: Captured) -> None:
    bad = shell.fit("--lam", str(BAD), "--quiet", output=shell.folder / "bad")
    capsys.readouterr()
    assert status_of(bad) == 0
    out = capsys.readouterr().out
    assert out.startswith(FAILS)
    assert "found the best answer" not in out
    assert "The certificate is about the linearised network alone" in out
    assert "Use a larger λ than 0.0001, or steps on the real network (fit --outer 4)." in " ".join(
        out.split()
    )
    assert status_of([*bad, "--strict", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["headline"].startswith(FAILS)
    assert said["real_network"]["holds"] is False
    assert said["runs"][0]["certified"]  # a statement about the linearised problem, which stays true
    card = (shell.folder / "bad" / "README.md").read_text()
    body = card.split("---\n", 2)[2].strip().splitlines()
    assert body[2].startswith(f"**{FAILS}")
    page = (shell.folder / "bad" / "report.html").read_text()
    verdict = page[page.index('<section class="verdict no"') :]
    assert verdict.index("Does not hold on the real network") < verdict.index(FAILS) < verdict.index("</p>")
    assert "found the best answer" not in page + card


def test_an_answer_that_holds_keeps_its_headline(shell: Shell, capsys: Captured) -> None:
    capsys.readouterr()
    assert status_of(shell.fit("--lam", str(GOOD), "--quiet", "--strict")) == 0
    out = capsys.readouterr().out
    assert out.startswith("The certified solver found the best answer: its objective")
    assert "of the linearised problem" in " ".join(out.split("\n\n")[0].split())
    assert "It holds on the real network" in out
    assert read(shell.run)["real_network"]["reach"] is None  # nothing was looked for
    assert '<section class="verdict yes"' in (shell.run / "report.html").read_text()


def test_no_update_holds_without_an_error(shell: Shell, tmp_path: Path) -> None:
    run = fit(small_settings(shell.folder, lam=5.0), tmp_path / "run")
    assert run["real_network"]["verdict"] == "YES"
    assert run["real_network"]["error"] == 0.0


def test_passes_are_taken_only_where_the_answer_fails(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    predict = Network.predict

    def counted(self: Network, inputs: Any, batch_size: int = 32) -> torch.Tensor:
        passes.append(len(inputs))
        return predict(self, inputs, batch_size)

    taken = {}
    for folder in (shell.run, shell.folder / "bad"):
        opened = reopen(folder)
        real = real_outputs(opened.prepared, opened.factors)
        sets = [part for part in linearised_sets(opened.prepared) if part.which != "train"]
        objective = opened.prepared.problem.objective(opened.factors)
        monkeypatch.setattr(Network, "predict", counted)
        passes.clear()
        found = standing_of(opened.prepared, sets, opened.factors, real, objective)
        monkeypatch.undo()
        assert found.verdict.name == read(folder)["real_network"]["verdict"]
        taken[folder.name] = len(passes)
        assert set(passes) <= {len(opened.prepared.splits.train)}
    assert taken["run"] == 0
    assert 0 < taken["bad"] <= 10


def test_examine_and_audit_say_it_first(shell: Shell, capsys: Captured) -> None:
    bad = str(shell.folder / "bad")
    for parts in ("stationarity", "regime"):
        capsys.readouterr()
        assert status_of(["examine", bad, "--only", parts, "--strict"]) == 1
        out = capsys.readouterr().out
        assert out.startswith(FAILS)
    assert "The real training loss falls up to τ =" in " ".join(out.split("in the NTK regime")[1].split())
    assert status_of(["examine", bad, "--only", "regime", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["real_network"]["verdict"] == "LOSS_RISES"
    assert said["headline"].startswith(FAILS)
    assert said["regime"]["reach"] == said["real_network"]["reach"]
    assert said["real_network"]["reach"] == read(shell.folder / "bad")["real_network"]["reach"] or (
        said["real_network"]["reach"]["tau"] > 0  # more τ are tried there, in steps of a quarter
    )
    assert status_of(["examine", str(shell.run), "--only", "regime", "--strict"]) == 0
    assert capsys.readouterr().out.startswith("The certified solver found the best answer")
    assert status_of(["audit", f"{bad}/adapter", "--strict"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("The adapter does not hold on the real network: its training loss rises from")
    assert "Use a larger λ than 0.0001" in " ".join(out.split())
    assert status_of(["audit", f"{bad}/adapter", "--no-local", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["real_network"]["holds"] is False
    assert said["headline"].startswith("The adapter does not hold")
    assert status_of(["audit", f"{shell.run}/adapter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["real_network"]["holds"] is True


def test_verify_keeps_to_the_proof_and_tells_what_was_recorded(shell: Shell, capsys: Captured) -> None:
    bad = shell.folder / "bad"
    capsys.readouterr()
    assert status_of(["verify", str(bad), "--strict"]) == 0  # the proof is right: it is of another network
    out = " ".join(capsys.readouterr().out.split())
    proof, recorded = out.split(" That is about the linearised network. ")
    assert proof.startswith("Valid: the answer is within")
    assert "real network" not in proof
    assert recorded.startswith(
        "By the run's record, not measured again, the answer does not hold on the real network: its training "
        "loss rises from"
    )
    assert status_of(["verify", str(bad), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["real_network"] == read(bad)["real_network"]
    assert status_of(["verify", str(shell.run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Valid")
    assert "real network" not in out


def test_a_record_that_is_rejected_is_not_repeated(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(shell.folder / "bad", tmp_path / "bad"))
    values = read(forged)
    values["runs"][0]["lower_bound"] += 1e-3
    (forged / "run.json").write_text(json.dumps(values))
    capsys.readouterr()
    assert status_of(["verify", str(forged)]) == 1
    assert "By the run's record" not in " ".join(capsys.readouterr().out.split())


def test_report_says_it_first(shell: Shell, capsys: Captured) -> None:
    capsys.readouterr()
    assert status_of(["report", str(shell.folder / "bad")]) == 0
    assert capsys.readouterr().out.startswith(FAILS)
    assert status_of(["report", str(shell.run)]) == 0
    assert capsys.readouterr().out.startswith("Wrote")
    assert status_of(["verify", str(shell.folder / "bad")]) == 0  # the pages are sealed again


def test_compress_says_it_first(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    bad, written = f"{shell.folder / 'bad'}/adapter", ("--output-dir", str(tmp_path / "less"))
    capsys.readouterr()
    assert status_of(["compress", bad, *written, "--strict"]) == 1
    assert capsys.readouterr().out.startswith("The given adapter does not hold on the real network: its")
    assert status_of(["compress", f"{shell.run}/adapter", *written, "--strict", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["real_network"]["holds"]
    assert said["headline"] == said["message"]
    record = json.loads((tmp_path / "less" / "compression.json").read_text())
    assert record["headline"] == said["headline"]


def test_a_path_says_it_of_the_answer_that_it_chooses(
    shell: Shell, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = shell.fit("--quiet", "--strict", output=tmp_path / "path")
    arguments = ["path", *options[1:], "--points", "2"]
    capsys.readouterr()
    status = status_of(arguments)
    out = capsys.readouterr().out
    path = json.loads((tmp_path / "path" / "path.json").read_text())
    assert " ".join(out.split("\n\n")[0].split()) == path["headline"]
    assert status == (0 if path["certified"] and path["real_network"]["holds"] else 1)
    # the verdict is made to fail by its own rule: an error of more than nothing
    monkeypatch.setattr("tangentlora.theory.standing.LEFT", -1.0)
    assert status_of(arguments) == 1
    assert capsys.readouterr().out.startswith("The answer does not hold on the real network: its outputs")


def test_steps_on_the_real_network_hold_where_one_linearisation_does_not(
    shell: Shell, tmp_path: Path
) -> None:
    settings = small_settings(shell.folder, lam=0.01)
    once = fit(settings, tmp_path / "once")
    assert not once["real_network"]["holds"]
    outer = fit(replace(settings, outer=2), tmp_path / "outer")
    found = outer["real_network"]
    assert found["holds"]
    assert found["error"] is None  # the network is linearised at the answer itself
    assert found["objective"] < found["objective_before"]
    assert found["objective"] == pytest.approx(outer["outer"]["objective"], rel=1e-5)


def test_outputs_that_are_no_numbers_do_not_hold(shell: Shell) -> None:
    opened = reopen(shell.folder / "bad")
    huge = {name: (1e30 * u, 1e30 * v) for name, (u, v) in opened.factors.items()}
    real = real_outputs(opened.prepared, huge)
    assert not all(bool(z.isfinite().all()) for z in real.values())
    found = standing_of(opened.prepared, linearised_sets(opened.prepared)[1:], huge, real, 1.0)
    assert found.verdict is Holds.NOT_FINITE
    again = parse_standing(describe_standing(found))
    assert again is not None
    assert again.verdict is Holds.NOT_FINITE


def test_a_record_without_it_is_judged_by_its_losses(shell: Shell, tmp_path: Path) -> None:
    values = read(shell.folder / "bad")
    del values["real_network"], values["headline"], values["runs"][0]["real_network"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    failing = RunFolder(tmp_path).read_run().failing
    assert failing is not None
    assert failing.standing is not None
    assert failing.standing.verdict is Holds.LOSS_RISES


def test_the_prepared_network_is_left_as_it_was(shell: Shell) -> None:
    prepared: Prepared = prepare(small_settings(shell.folder, lam=BAD))
    before = prepared.network.predict(prepared.splits.train.inputs)
    opened = reopen(shell.folder / "bad")
    real = real_outputs(prepared, opened.factors)
    standing_of(prepared, [], opened.factors, real, 1.0)
    torch.testing.assert_close(prepared.network.predict(prepared.splits.train.inputs), before, rtol=0, atol=0)
