"""The verbs path, examine and landscape, and `--initialisation`, as the command line runs them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from command_line import Captured, Shell, assert_bad_input, contents, status_of
from small_studies import write_kshot
from tangentlora.report.path_record import LambdaPath
from tangentlora.studies import examine as examine_module, landscape_study, path as path_module, path_folder
from tangentlora.studies.landscape import Landscape

pytestmark = pytest.mark.usefixtures("restored_logging")

SPACING = ("--points", "6", "--fraction", "0.02")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which a certified fit and a path over a k-shot folder, which has a dev set, are done."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    made.data = write_kshot(made.folder / "k-shot", seeds=(13,)) / "SST-2" / "4-13"
    task = ("--task", "sst2", "--readout", "prototypes", "--quiet")
    assert status_of(made.fit(*task)) == 0
    assert status_of(path(made, *SPACING, "--quiet", "--strict")) == 0
    return made


def problem(shell: Shell, *options: str) -> list[str]:
    """Return the arguments that state the shell's problem, without an output folder."""
    fit = shell.fit("--task", "sst2", "--readout", "prototypes")[1:]
    where = fit.index("--output-dir")
    return [*fit[:where], *fit[where + 2 :], *options]


def path(shell: Shell, *options: str, output: Path | None = None) -> list[str]:
    return ["path", *problem(shell), "--output-dir", str(output or shell.folder / "path"), *options]


def read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "path.json").read_text())
    return values


def test_a_path_s_folder_holds_the_points_and_the_run_at_the_chosen_lam(
    shell: Shell, capsys: Captured
) -> None:
    folder = shell.folder / "path"
    said, run = read(folder), json.loads((folder / "run.json").read_text())
    assert {"solution.safetensors", "certificate.json", "report.html", "README.md"} <= contents(folder).keys()
    assert (folder / "figures" / "path.svg").is_file()
    assert (folder / "figures" / "path.png").is_file()
    assert len(said["points"]) == said["configuration"]["points"] == 6
    assert said["certified"]
    assert said["configuration"]["fraction"] == 0.02
    assert said["tangent"] == run["tangent"]["key"]
    assert run["command"] == "path"
    assert run["configuration"]["lam"] == said["chosen"]
    (best,) = [point for point in said["points"] if point["lam"] == said["chosen"]]
    (answer,) = run["runs"]
    assert answer["certified"]
    assert answer["objective"] == pytest.approx(best["objective"], abs=2e-6)
    assert answer["linearised"]["dev_accuracy"] == best["scores"]["dev_accuracy"]
    assert status_of(["verify", str(folder), "--strict"]) == 0
    assert capsys.readouterr().out.startswith("Valid: ")


def test_a_path_prints_its_table_or_what_path_json_says(
    shell: Shell, tmp_path: Path, capsys: Captured
) -> None:
    few = path(shell, "--points", "3", output=tmp_path)
    capsys.readouterr()
    assert status_of([*few, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == read(tmp_path)
    assert status_of(few) == 0
    record = read(tmp_path)
    first, rest = capsys.readouterr().out.split("\n\n", 1)
    assert " ".join(first.split()) == record["headline"]
    assert rest == f"{LambdaPath.parse(record).table()}\n\nReport: {tmp_path / 'report.html'}\n"


def test_a_path_with_a_point_that_is_not_certified_is_a_no_when_strict(
    shell: Shell, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_fails(*arguments: Any, **options: Any) -> LambdaPath:
        found = path_module.lambda_path(*arguments, **options)
        first, *others = found.points
        failed = first if first.lam != found.chosen else others[0]
        points = (replace(p, certified=False) if p is failed else p for p in found.points)
        return replace(found, points=tuple(points))

    monkeypatch.setattr(path_folder, "lambda_path", one_fails)
    few = path(shell, "--points", "3", "--quiet", output=tmp_path)
    assert status_of(few) == 0
    assert not read(tmp_path)["certified"]
    assert " no " in capsys.readouterr().out
    assert "hollow: not certified" in (tmp_path / "figures" / "path.svg").read_text()
    assert status_of([*few, "--strict"]) == 1


def test_the_report_shows_the_path_again_until_the_folder_is_another_s(shell: Shell, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shell.folder / "path", tmp_path / "path"))  # the page names its folder
    before = contents(run)
    (run / "figures" / "path.svg").unlink()
    assert status_of(["report", str(run)]) == 0
    assert contents(run) == before
    assert "The λ path" in (run / "report.html").read_text()
    fit = ["fit", *problem(shell), "--output-dir", str(run), "--lam", "0.0123", "--quiet"]
    assert status_of(fit) == 0  # which leaves a path.json that chose another λ
    assert (run / "path.json").exists()
    assert not (run / "figures" / "path.svg").exists()
    assert "The λ path" not in (run / "report.html").read_text()


def test_a_damaged_path_is_told(shell: Shell, tmp_path: Path, capsys: Captured) -> None:
    run = Path(shutil.copytree(shell.folder / "path", tmp_path / "run"))
    said = read(run)
    for damage in ({"chosen": 7.0}, {"points": [{}]}, {"points": 3}):
        (run / "path.json").write_text(json.dumps(said | damage))
        assert_bad_input(["report", str(run)], r"path.json, which is damaged .*run path again", capsys)
    (run / "path.json").write_text("{")
    assert_bad_input(["report", str(run)], r"path.json, which is damaged", capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--points", "1"), r"got 1 points from λ_max to 0.001 of it, expected 2 to 10000 points"),
        (("--fraction", "1"), r"to 1.0 of it, expected .* a fraction of at least 1e-12 and below 1"),
        (("--fraction", "nan"), r"to nan of it, expected"),
        (("--folds", "1"), r"got 1 folds, expected at least 2: change --folds"),
        (("--tolerance", "0"), r"change --tolerance"),
        (("--output-dir", __file__), r"is a file, expected a folder that can be written"),
        (("--lam", "0.1"), r"unrecognized arguments: --lam"),
    ],
)
def test_bad_input_to_path_is_told_before_the_work(
    shell: Shell, capsys: Captured, options: tuple[str, ...], message: str
) -> None:
    before = contents(shell.folder / "path")
    assert_bad_input(path(shell, "--model", "never loaded", *options), message, capsys)
    assert contents(shell.folder / "path") == before


def test_more_folds_than_examples_are_refused_before_any_solve(
    shell: Shell, tmp_path: Path, capsys: Captured
) -> None:
    plain = Shell(tmp_path)  # sentences without a dev set
    folder = tmp_path / "path"
    arguments = ["path", *plain.fit("--folds", "99", "--quiet", output=folder)[1:]]
    assert_bad_input(arguments, r"got 99 folds for 18 examples, expected 2 to 18", capsys)
    assert not folder.exists()


def test_the_initialisation_changes_the_start_and_nothing_else(
    shell: Shell, tmp_path: Path, capsys: Captured
) -> None:
    objective = {}
    for start in ((), ("--initialisation", "spectral")):
        run = tmp_path / "-".join(start)
        options = ("--solver", "sgd", "--rank", "2", "--epochs", "2", "--lam", "0.01", "--quiet", *start)
        assert status_of(["fit", *problem(shell), "--output-dir", str(run), *options]) == 0
        first, *_ = (run / "metrics.jsonl").read_text().splitlines()
        objective[start[1:]] = json.loads(first)["objective"]
        record = json.loads((run / "run.json").read_text())
        assert record["configuration"]["initialisation"] == (start[1] if start else "paper")
        before = record["before"]["train_loss"]
    assert objective[()] == pytest.approx(before, abs=1e-2)
    assert objective["spectral",] < before - 0.01
    capsys.readouterr()
    bad = ["fit", *problem(shell), "--initialisation", "golden"]
    assert_bad_input(bad, r"invalid choice: 'golden'.*see .*fit --help", capsys)


@pytest.mark.parametrize("verb", ["advise", "reproduce"])
def test_other_verbs_take_the_initialisation(verb: str) -> None:
    from tangentlora.cli import _parser
    from tangentlora.options import settings_of

    given = _parser().parse_args([verb, "--initialisation", "spectral"])
    assert given.initialisation == "spectral"
    if verb == "advise":
        assert settings_of(given, "lbfgs").initialisation == "spectral"


def test_an_examination_says_the_parts_that_were_asked_for(shell: Shell, capsys: Captured) -> None:
    one = ["examine", str(shell.run), "--only", "stationarity", "--answer", "certified", "--quiet"]
    capsys.readouterr()
    assert status_of(one) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = examine_module.examine(shell.run, which=("stationarity",))
    assert out == f"{found.text()}\n"
    assert status_of([*one, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"] == "certified"
    assert set(examine_module.PARTS) & said.keys() == {"stationarity"}


def test_an_examination_says_every_part_unless_told(
    shell: Shell, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def recorded(folder: Path, **given: Any) -> examine_module.Examination:
        asked.update(given, folder=folder)
        return examine_module.Examination(str(folder), "certified", "sst2", 0.1, 8, "It holds.", None, {})

    monkeypatch.setattr("tangentlora.studies.examine.examine", recorded)
    assert status_of(["examine", str(shell.run)]) == 0
    assert asked == {
        "folder": shell.run,
        "which": examine_module.PARTS,
        "answer": None,
        "device": None,
        "progress": True,
    }
    options = ("--only", "rate", "bounds", "--answer", "LoRA r=2", "--device", "cuda", "--quiet")
    assert status_of(["examine", str(shell.run), *options]) == 0
    assert asked == {
        "folder": shell.run,
        "which": ["rate", "bounds"],
        "answer": "LoRA r=2",
        "device": "cuda",
        "progress": False,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--only", "everything"), r"invalid choice: 'everything'.*see .*examine --help"),
        (("--only",), r"expected at least one argument"),
        (("--answer", "LoRA r=3"), r"got the answer 'LoRA r=3', expected one of certified"),
    ],
)
def test_bad_input_to_examine_takes_one_line(
    shell: Shell, capsys: Captured, options: tuple[str, ...], message: str
) -> None:
    assert_bad_input(["examine", str(shell.run), *options], message, capsys)


def test_examine_wants_a_run_folder(tmp_path: Path, capsys: Captured) -> None:
    assert_bad_input(["examine", str(tmp_path)], r"where run.json does not exist", capsys)


def test_a_landscape_prints_its_table_and_is_a_no_when_a_run_speaks_against_the_theorem(
    shell: Shell, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = ["landscape", *problem(shell), "--ranks", "1", "--repeats", "1", "--quiet"]
    found: list[Landscape] = []

    def kept(*arguments: Any, **options: Any) -> Landscape:
        found.append(landscape_of(*arguments, **options))
        return found[-1]

    landscape_of = landscape_study.landscape_of
    monkeypatch.setattr(landscape_study, "landscape_of", kept)
    capsys.readouterr()
    assert status_of([*survey, "--perturbation", "0.002", "--strict"]) == 0
    assert capsys.readouterr().out == f"{found[0].table()}\n"
    assert found[0].size == 0.002
    assert {run.rank for run in found[0].runs} == {1}
    monkeypatch.setattr(landscape_study, "landscape_of", lambda *_, **__: found[0])
    monkeypatch.setattr(Landscape, "against", property(lambda self: self.runs[:1]))
    assert status_of(survey) == 0
    assert status_of([*survey, "--strict"]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ranks", "0"), r"--ranks"),
        (("--ranks", "many"), r"invalid int"),
        (("--repeats", "0"), r"--repeats"),
        (("--perturbation", "-1"), r"--perturbation"),
        (("--lam", "0"), r"got λ = 0"),
    ],
)
def test_bad_input_to_landscape_is_told_before_the_work(
    shell: Shell, capsys: Captured, options: tuple[str, ...], message: str
) -> None:
    assert_bad_input(["landscape", *problem(shell, "--model", "never loaded"), *options], message, capsys)
