"""`tangentlora reproduce` by the command line: the hub studies on local folders, through the same code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from small_runs import checkpoint, write_images, write_sentences, write_sounds
from small_studies import write_kshot
from tangentlora.cli import main
from tangentlora.studies.study import study_names

SMALL = ("--seeds", "13", "--ranks", "1", "2", "--epochs", "8", "--quiet")
FIGURES = ("loss", "accuracy", "trade-off", "optimality", "singular-values", "published")


pytestmark = pytest.mark.usefixtures("restored_logging")


def reproduce(folder: Path, study: str, *options: str) -> dict[str, Any]:
    """Run a study into `folder/STUDY` and return its results, which must also be on stdout with --json."""
    assert main(["reproduce", study, "--output-dir", str(folder / study), *SMALL, *options]) == 0
    results: dict[str, Any] = json.loads((folder / study / "results.json").read_text())
    return results


def assert_complete(folder: Path, study: str, results: dict[str, Any]) -> None:
    (case,) = results["cases"]
    assert case["name"] == f"{study}-13"
    variants = [cell["variant"] for cell in case["cells"]]
    assert variants == ["certified", "lora", "lora", "full", "published"]
    best = case["cells"][0]
    assert best["certified"]
    assert best["real"]["test_accuracy"] >= 0
    assert all(cell["excess"] >= -1e-9 for cell in case["cells"])
    for name in FIGURES:
        assert (folder / study / "figures" / f"{name}.svg").stat().st_size > 1000
        assert (folder / study / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_local_roberta_and_a_kshot_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, data = checkpoint(tmp_path, "roberta-mlm"), write_kshot(tmp_path / "k-shot", (13,))
    options = ("--model", str(network), "--data", str(data), "--shots", "4", "--max-length", "60", "--json")
    results = reproduce(tmp_path, "sst2", *options)
    assert json.loads(capsys.readouterr().out) == results
    assert_complete(tmp_path, "sst2", results)
    (case,) = results["cases"]
    assert (case["readout"], case["model"]) == ("mask-prompt", "roberta-mlm")
    assert (case["n_train"], case["n_dev"], case["n_test"], case["n_outputs"]) == (8, 8, 24, 2)
    assert all(name.startswith("roberta.encoder.layer.1.") for name in case["shapes"])


def test_beans_from_a_folder_of_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "leaves", ("blight", "healthy", "rust"), each=8)
    options = ("--model", str(checkpoint(tmp_path, "vit")), "--data", str(images), "--shots", "3")
    results = reproduce(tmp_path, "beans", *options)
    assert_complete(tmp_path, "beans", results)
    (case,) = results["cases"]
    assert case["label_names"] == ["blight", "healthy", "rust"]
    assert (case["n_train"], case["n_dev"], case["n_test"]) == (9, 9, 6)


def test_superb_from_a_folder_of_recordings(tmp_path: Path) -> None:
    sounds = write_sounds(tmp_path / "sounds", each=8)
    options = ("--model", str(checkpoint(tmp_path, "wav2vec2")), "--data", str(sounds), "--shots", "3")
    results = reproduce(tmp_path, "superb", *options)
    assert_complete(tmp_path, "superb", results)


def test_a_file_of_ones_own_and_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_sentences(tmp_path / "mine.csv")
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(
        "title: Mine\nabout: A table.\n"
        f"settings: {{data: {data}, shots: 3}}\ngrid: {{variants: [certified, lora], lams: [0.1]}}\n"
    )
    command = ["reproduce", str(yaml), "--model", str(checkpoint(tmp_path, "bert")), *SMALL]
    command += ["--max-length", "64"]
    assert main([*command, "--output-dir", str(tmp_path / "out"), "--lams", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "LoRA r=2" in out
    assert str(tmp_path / "out") in out
    (case,) = json.loads((tmp_path / "out" / "results.json").read_text())["cases"]
    assert {cell["lam"] for cell in case["cells"]} == {0.2}


def test_the_list_has_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == study_names()
    assert main(["reproduce", "--list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["studies"]) == study_names()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "got no study, expected one of"),
        (("sst3",), "got the study 'sst3'"),
        (("sst2", "--size", "huge"), "got the size 'huge'"),
        (("sst2", "--lams", "0"), "expected positive ones"),
        (("sst2", "--variants", "magic"), "got the variants magic"),
        (("sst2", "--data", "./nowhere"), "there is no file or folder './nowhere'"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["reproduce", "--quiet", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
