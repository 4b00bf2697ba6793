"""The command line's contract: exit codes, one JSON object on stdout, one line on stderr for bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from command_line import Captured, Shell, assert_bad_input, contents, status_of
from small_runs import checkpoint, write_images, write_sounds
from tangentlora import __version__
from tangentlora.cli import VERBS, _parser
from tangentlora.cli.result import Result
from tangentlora.options import settings_of
from tangentlora.studies.settings import Settings

HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "scipy", "numpy")

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which one certified fit is done."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    assert status_of(made.fit("--quiet")) == 0
    return made


def test_a_fit_prints_the_verdict_and_says_where_the_report_is(shell: Shell, capsys: Captured) -> None:
    output = shell.folder / "printed"
    assert status_of(shell.fit("--strict", output=output)) == 0
    out, err = capsys.readouterr()
    assert "certified" in out
    assert out.rstrip().endswith(f"Report: {output / 'report.html'}")
    assert "certifying" in err
    assert (output / "report.html").is_file()
    assert (output / "README.md").is_file()
    assert status_of(["verify", str(output), "--strict"]) == 0
    assert capsys.readouterr().out.startswith("Valid: the answer is within ")


def test_json_is_one_object_on_stdout_for_every_verb(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    common = shell.fit("--tolerance", "1e-2", "--json", output=tmp_path / "run")
    capsys.readouterr()
    where = common.index("--output-dir")
    expected = {
        "fit": "runs",
        "demo": "runs",
        "path": "points",
        "advise": "rules",
        "verify": "valid",
        "examine": "stationarity",
        "landscape": "runs",
        "reproduce": "studies",
        "audit": "verdict",
        "compress": "rows",
        "report": "report",
        "doctor": "checks",
    }
    problem = [*common[1:where], *common[where + 2 :]]
    calls = {
        "fit": [*common, "--solver", "sgd", "--rank", "2", "--epochs", "3"],
        "demo": ["demo", *common[1:]],
        "path": ["path", *problem, "--output-dir", str(tmp_path / "path"), "--points", "2"],
        "advise": ["advise", *problem, "--ranks", "1", "2"],
        "verify": ["verify", str(shell.run), "--json"],
        "examine": ["examine", str(shell.run), "--only", "stationarity", "--json"],
        "landscape": ["landscape", *problem, "--ranks", "1", "--repeats", "1"],
        "reproduce": ["reproduce", "--list", "--json"],
        "audit": ["audit", str(shell.run / "adapter"), "--json"],
        "compress": [
            "compress",
            str(shell.run / "adapter"),
            *("--output-dir", str(tmp_path / "less"), "--json"),
        ],
        "report": ["report", str(tmp_path / "run"), "--json"],
        "doctor": ["doctor", "--json"],
    }
    assert calls.keys() == VERBS.keys()
    for verb, arguments in calls.items():
        assert status_of(arguments) in ((0, 1) if verb == "doctor" else (0,))
        out, _ = capsys.readouterr()
        assert out.count("\n") == 1
        assert expected[verb] in json.loads(out, parse_constant=lambda name: pytest.fail(name))
    demo = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [entry["folder"] for entry in demo["runs"]][-2:] == ["full", "."]


def test_json_has_null_for_what_is_not_finite(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Result({"checks": [float("nan"), {"deep": float("inf")}]}, "")
    monkeypatch.setitem(VERBS, "doctor", (VERBS["doctor"][0], lambda _: found))
    assert status_of(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checks": [None, {"deep": None}]}


def test_progress_goes_to_stderr_unless_it_is_quiet(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    fresh = shell.fit("--tangent-dir", str(tmp_path / "fresh"), "--json", output=tmp_path / "run")
    capsys.readouterr()
    assert status_of(fresh) == 0
    out, err = capsys.readouterr()
    assert out.startswith("{")
    assert "linearising" in err
    # the second fit reads the tangent that the first has stored
    (store,) = (path for path in (tmp_path / "fresh").iterdir() if len(load_tensors(path)["f0"]) == 18)
    before = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert status_of(fresh) == 0
    assert "linearising" not in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert status_of([*fresh, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def load_tensors(store: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(store / "shard-000-00000.safetensors"))


def test_the_same_seed_gives_the_same_files(shell: Shell, tmp_path: Path) -> None:
    options = ("--solver", "sgd", "--rank", "3", "--epochs", "12", "--minibatch-size", "5", "--quiet")
    options += ("--perturbation", "0.01", "--seed", "4")
    for run in ("one", "two"):
        tangents = ("--tangent-dir", str(tmp_path / f"tangents of {run}"))
        assert status_of(shell.fit(*options, *tangents, output=tmp_path / run)) == 0
    for name in ("solution.safetensors", "certificate.json", "metrics.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_strict_makes_an_answer_that_is_not_certified_a_no(
    shell: Shell, capsys: Captured, tmp_path: Path
) -> None:
    short = shell.fit("--solver", "sgd", "--rank", "2", "--epochs", "2", "--quiet", output=tmp_path / "run")
    assert status_of(short) == 0
    assert status_of([*short, "--strict"]) == 1
    run = str(tmp_path / "run")
    assert status_of(["verify", run]) == 0
    assert status_of(["verify", run, "--strict"]) == 1
    assert "Valid, but not a global optimum" in capsys.readouterr().out


def test_a_rejected_certificate_is_a_no(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    run = shutil.copytree(shell.run, tmp_path / "run")
    claimed = json.loads((run / "certificate.json").read_text())
    (run / "certificate.json").write_text(json.dumps(claimed | {"gap": 0.0}))
    assert status_of(["verify", str(run)]) == 1
    assert capsys.readouterr().out.startswith("Rejected: certificate.json is not the file that was written")
    assert status_of(["verify", str(run), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["certified"]) == (False, False)
    assert found["reasons"]


def test_the_report_is_made_again_from_the_other_files(
    shell: Shell, capsys: Captured, tmp_path: Path
) -> None:
    run = shutil.copytree(shell.run, tmp_path / "run")
    for made in (run / "figures").iterdir():
        made.unlink()
    (run / "report.html").unlink()
    (run / "README.md").unlink()
    assert status_of(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"Wrote {run / 'report.html'}.\n"
    assert {path.name for path in (run / "figures").iterdir()} == {
        p.name for p in (shell.run / "figures").iterdir()
    }
    assert (run / "report.html").exists()
    assert (run / "README.md").exists()


@pytest.mark.parametrize(("kind", "write"), [("vit", write_images), ("wav2vec2", write_sounds)])
def test_a_folder_of_images_or_sounds_end_to_end(
    shell: Shell, tmp_path: Path, capsys: Captured, kind: str, write: Callable[[Path], Path]
) -> None:
    data = write(tmp_path / "data")
    fit = shell.fit("--data", str(data), "--strict", "--json", kind=kind, output=tmp_path / "run")
    capsys.readouterr()
    assert status_of(fit) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["configuration"]["readout"]["modality"] == {"vit": "image", "wav2vec2": "audio"}[kind]
    assert record["configuration"]["head_init"] == "probe"
    assert record["before"]["train_accuracy"] > 0.7
    (answer,) = record["runs"]
    assert answer["certified"]
    assert answer["objective"] <= record["before"]["train_loss"] + 1e-9
    assert answer["adapter_error"] is None or answer["adapter_error"] < 1e-3
    assert status_of(["verify", str(tmp_path / "run"), "--strict"]) == 0


def settings_from(*options: str) -> Settings:
    return settings_of(_parser().parse_args(["fit", *options]))


def test_what_is_not_given_keeps_its_default() -> None:
    assert settings_from() == Settings()


def test_every_option_of_fit_arrives(tmp_path: Path) -> None:
    given: dict[str, object] = {
        "model": "owner/m",
        "revision": "v1",
        "dtype": "float64",
        "device": "cuda:1",
        "data": "owner/d",
        "task": "sst2",
        "text_column": "t",
        "label_column": "l",
        "label_pattern": None,
        "shots": 3,
        "data_seed": 5,
        "test_limit": 7,
        "test_data": "owner/e",
        "dev_data": "owner/f",
        "test_fraction": 0.0,
        "readout": "auto",
        "template": None,
        "label_words": (),
        "prototypes": (),
        "head_init": "probe",
        "max_length": 9,
        "target_modules": ("key",),
        "layers": "0,1",
        "batch_size": 2,
        "tangent_dir": Path("somewhere"),
        "memory": 10**9,
        "lam": 0.5,
        "solver": "sgd",
        "rank": 3,
        "epochs": 11,
        "learning_rate": 0.25,
        "momentum": 0.5,
        "minibatch_size": 4,
        "initialisation": "paper",
        "init_scale": 4.0,
        "init_from": None,
        "outer": 0,
        "freeze_a": True,
        "perturbation": 0.125,
        "seed": 13,
        "tolerance": 1e-4,
    }
    assert set(given) == set(Settings.__dataclass_fields__)
    assert settings_from(*as_options(given)) == Settings(**given)  # type: ignore[arg-type]
    # which do not go with those above
    others: list[dict[str, object]] = [
        {"outer": 3},
        {"solver": "lbfgs", "initialisation": "spectral"},
        {"readout": "prompt", "template": "{text} {mask}", "label_words": ("a", "b")},
        {"readout": "prototypes", "prototypes": ("c.", "d.")},
        {"readout": "head", "head_init": "random"},
        {"data": str(write_images(tmp_path / "images")), "label_pattern": "(.)", "model": "owner/vit"},
    ]
    for other in others:
        assert settings_from(*as_options(other)) == Settings(**other)  # type: ignore[arg-type]
    found = settings_from(*as_options({"init_from": "owner/adapter"}))
    assert found == Settings(init_from="owner/adapter")


def as_options(given: dict[str, object]) -> list[str]:
    options = []
    for name, value in given.items():
        if value in (None, ()):
            continue
        options.append(f"--{name.replace('_', '-')}")
        if value is not True:
            options += [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
    return options


@pytest.mark.parametrize(
    ("options", "lam"),
    [
        (("--weight-decay", "0.02"), 0.02),
        (("--weight-decay", "0.02", "--lora-alpha", "16"), 0.02 * 8 / 16),
        (("--weight-decay", "0.02", "--lora-alpha", "16", "--rank", "4"), 0.02 * 4 / 16),
        (("--weight-decay", "0.02", "--rank", "4"), 0.02),
        (("--solver", "certified", "--weight-decay", "0.02", "--lora-alpha", "16", "--rank", "4"), 0.005),
    ],
)
def test_a_weight_decay_becomes_lambda_through_the_scaling(options: tuple[str, ...], lam: float) -> None:
    assert settings_from("--solver", "sgd", *options).lam == pytest.approx(lam, rel=1e-15)


def spoiled(folder: Path, source: Path, spoil: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Copy a checkpoint and change the first weight of its last layer."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if "layer.1.attention.self.query.weight" in key)
    tensors[name] = spoil(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def table(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


MLM = ("--label-words", "terrible", "great")

BAD_FITS: dict[str, tuple[Callable[[Shell, Path], list[str]], str]] = {
    "a missing column": (
        lambda shell, _: shell.fit("--text-column", "review"),
        r"review.* text",
    ),
    "a label out of range": (
        lambda shell, tmp: shell.fit(
            "--task", "mr", "--data", table(tmp / "d.csv", "text,label", "one,0", "two,1", "three,2")
        ),
        r"2.*expected.*0",
    ),
    "one class only": (
        lambda shell, tmp: shell.fit("--data", table(tmp / "d.csv", "text,label", *["fine,good"] * 9)),
        r"good",
    ),
    "an empty set": (
        lambda shell, tmp: shell.fit("--data", table(tmp / "d.csv", "text,label")),
        r"empty|no ",
    ),
    "an empty file": (
        lambda shell, tmp: shell.fit("--data", table(tmp / "d.csv")),
        r"is empty; expected rows",
    ),
    "no such file": (lambda shell, tmp: shell.fit("--data", str(tmp / "d.csv")), r"correct the path"),
    "weights that are not finite": (
        lambda shell, tmp: shell.fit(
            "--model", spoiled(tmp / "nan", checkpoint(shell.folder), lambda w: w * float("nan"))
        ),
        r"not finite in the weight .*query.weight.* export the checkpoint again",
    ),
    "no such model": (
        lambda shell, tmp: shell.fit("--model", str(tmp / "no")),
        r"does not exist.*correct the",
    ),
    "an unknown module": (
        lambda shell, _: shell.fit("--target-modules", "querry"),
        r"got the module name 'querry', expected .*name one of these",
    ),
    "an unknown layer": (lambda shell, _: shell.fit("--layers", "7"), r"got layers '7', expected .*use last"),
    "a rank larger than the matrix": (
        lambda shell, _: shell.fit("--solver", "sgd", "--rank", "33"),
        r"got rank 33, expected 1 to 32, .*change --rank",
    ),
    "a mask that is truncated away": (
        lambda shell, _: shell.fit(*MLM, "--max-length", "5", kind="bert-mlm"),
        r"alone takes more than 5 tokens, expected room for a text; shorten it or raise",
    ),
    "a mask in the text": (
        lambda shell, tmp: shell.fit(
            *(*MLM, "--data", table(tmp / "d.csv", "text,label", *["a [MASK],bad", "b,good"] * 4)),
            kind="bert-mlm",
        ),
        r"contains '\[MASK\]', expected .*take it out",
    ),
    "a word too many": (
        lambda shell, _: shell.fit(*MLM, "okay", kind="bert-mlm"),
        r"got 3 label words for the 2 labels bad, good, expected one for each.*correct --label-words",
    ),
    "a negative lambda": (
        lambda shell, _: shell.fit("--lam", "-0.1"),
        r"got λ = -0.1, expected .*give --lam",
    ),
    "no lambda for the certified solver": (lambda shell, _: shell.fit("--lam", "0"), r"use --solver sgd"),
    "lambda twice": (
        lambda shell, _: shell.fit("--lam", "0.1", "--weight-decay", "0.1"),
        r"got both --lam and --weight-decay, expected one .*leave one out",
    ),
    "a scaling of nothing": (lambda shell, _: shell.fit("--lora-alpha", "8"), r"without --weight-decay"),
    "a scaling by zero": (
        lambda shell, _: shell.fit("--lora-alpha", "0", "--weight-decay", "0.1"),
        r"--lora-alpha 0.0, expected positive",
    ),
    "no epochs": (
        lambda shell, _: shell.fit("--solver", "sgd", "--rank", "2", "--epochs", "0"),
        r"change --epochs",
    ),
    "no tolerance": (lambda shell, _: shell.fit("--tolerance", "0"), r"change --tolerance"),
    "an unknown device": (
        lambda shell, _: shell.fit("--device", "abacus"),
        r"got the device 'abacus'.*use cpu",
    ),
    "an unknown dtype": (
        lambda shell, _: shell.fit("--dtype", "int8"),
        r"got the dtype 'int8', expected one of float32.*change --dtype",
    ),
    "an unknown solver": (
        lambda shell, _: shell.fit("--solver", "magic"),
        r"invalid choice.*see .*fit --help",
    ),
    "a rank that is no number": (
        lambda shell, _: shell.fit("--rank", "many"),
        r"invalid int.*see .*fit --help",
    ),
    "an output folder that is a file": (
        lambda shell, _: shell.fit(output=shell.data),
        r"is a file, expected a folder that can be written: choose another --output-dir",
    ),
    "a tangent folder that is a file": (
        lambda shell, _: shell.fit("--tangent-dir", str(shell.data)),
        r"got the tangent folder .* is a file, expected .*: choose another --tangent-dir",
    ),
}


@pytest.mark.parametrize("case", BAD_FITS)
def test_bad_input_takes_one_line_and_leaves_what_was_written(
    shell: Shell, tmp_path: Path, capsys: Captured, case: str
) -> None:
    arguments, message = BAD_FITS[case]
    before = contents(shell.run)
    data = shell.data.read_bytes()
    assert_bad_input([*arguments(shell, tmp_path), "--quiet"], message, capsys)
    assert contents(shell.run) == before
    assert shell.data.read_bytes() == data
    assert status_of(["verify", str(shell.run), "--strict"]) == 0


STORE_DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda store: cut(store / "shard-000-00000.safetensors"),
    "without its shard": lambda store: (store / "shard-000-00000.safetensors").unlink(),
    "without its manifest": lambda store: (store / "manifest.json").unlink(),
    "unreadable": lambda store: (store / "manifest.json").write_bytes(b"\xff\xfe{"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", STORE_DAMAGES)
def test_a_damaged_store_takes_one_line_and_leaves_what_was_written(
    shell: Shell, tmp_path: Path, capsys: Captured, damage: str
) -> None:
    tangents = Path(shutil.copytree(shell.folder / "tangents", tmp_path / "tangents"))
    key = json.loads((shell.run / "run.json").read_text())["tangent"]["key"]
    STORE_DAMAGES[damage](tangents / key)
    before = contents(shell.run)
    fit = shell.fit("--tangent-dir", str(tangents), "--quiet")
    assert_bad_input(fit, r"delete that folder and run again to make it anew", capsys)
    verify = ["verify", str(shell.run), "--store", str(tangents / key)]
    assert_bad_input(verify, r"name the folder of the run's tangent with --store", capsys)
    assert contents(shell.run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"tangentlora: .*required.*: see tangentlora --help"),
        (["conjure"], r"tangentlora: .*invalid choice: 'conjure'.*: see tangentlora --help"),
        (["verify"], r"tangentlora verify: .*required: folder: see tangentlora verify --help"),
        (["verify", "nowhere"], r"got nowhere, where run.json does not exist.* name the --output-dir"),
        (["report", "nowhere"], r"got nowhere, where run.json does not exist.* name the --output-dir"),
        (["fit", "--no-such-option"], r"unrecognized arguments: --no-such-option: see tangentlora --help"),
    ],
)
def test_other_mistakes_take_one_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_bad_input(arguments, message, capsys)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_ends_as_the_shell_expects(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "doctor", (VERBS["doctor"][0], interrupted))
    assert status_of(["doctor"]) == 130
    assert capsys.readouterr() == ("", "tangentlora: interrupted; what was written stays as it is\n")


def test_the_doctor_says_no_where_a_check_fails(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.studies import doctor

    monkeypatch.setattr("tangentlora.models.load.load_config", lambda *_: None)
    assert status_of(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok    ") for line in lines)
    assert lines[-1].startswith("ok    solve and certify: ")
    monkeypatch.setattr(doctor, "examine", lambda _: [doctor.Check("sky", False, "falling: take cover")])
    assert status_of(["doctor"]) == 1
    assert capsys.readouterr().out == "FAIL  sky: falling: take cover\n"


EARLY = (
    "fit --rank 8",
    "fit --solver sgd --rank 0",
    "fit --solver adamw --momentum 0.5",
    "fit --revision main",
    "fit --template x",
    "fit --data nowhere.csv",
    "fit --model ./nowhere",
    "fit --init-from ./nowhere",
    "fit --task nonsense",
    "fit --label-pattern (.)",
    "fit --output-dir /dev/null",
    "fit --tangent-dir /dev/null/below",
    "fit --lam nan",
    "demo --data nowhere.csv",
    "path --output-dir /dev/null",
    "path --points 1",
    "advise --momentum 0.5",
    "landscape --repeats 0",
    "examine nowhere",
    "report nowhere",
    "audit ./nowhere",
    "audit owner/adapter --data nowhere.csv",
    "compress ./nowhere",
    "compress owner/adapter --output-dir /dev/null",
    "reproduce nothing.yaml",
    "reproduce sst2 --data nowhere.csv",
    "reproduce sst2 --output-dir /dev/null",
    "reproduce --list --seeds 3",
)
"""Mistakes that a look at names and paths can tell."""


def test_help_and_mistakes_in_arguments_import_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
from tangentlora.cli import main
for arguments in {
        [
            ["--help"],
            *([verb, "--help"] for verb in VERBS),
            ["examine", "nowhere", "--only", "everything"],
            ["--version"],
            [],
            ["fit", "--rank", "x"],
            ["nothing"],
            ["fit", "--lam", "-1"],
            ["fit", "--lora-alpha", "2"],
            ["fit", "--tolerance", "0"],
            ["demo", "--batch-size", "0"],
            ["verify", "nowhere"],
            *[case.split() for case in EARLY],
        ]
    }:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(arguments)
        except SystemExit as left:
            status = left.code
    print(status, arguments, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early = done.stdout.splitlines()
    assert len(early) == 11 + len(VERBS) + len(EARLY)
    for line in early:
        expected = 0 if "--help" in line or "--version" in line else 2
        assert line.startswith(f"{expected} ")
        assert line.endswith(" []"), line


def test_help_names_every_verb_and_the_version_is_the_packages(capsys: Captured) -> None:
    assert status_of(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb}" in shown for verb in VERBS)
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out == f"tangentlora {__version__}\n"
