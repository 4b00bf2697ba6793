"""The run folder: typed readers, whole writes, and one sentence for what cannot be read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from report import run_folders
from tangentlora.errors import InputError
from tangentlora.report.folder import RunFolder
from tangentlora.report.record import CertificateRecord


def test_what_was_written_is_read_with_its_types(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path, run_folders.demo(), run_folders.certificate())
    run = folder.read_run()
    assert [a.rank for a in run.answers] == [1, 2, 4, 8, 16, None, None]
    assert run.main.name == "certified"
    assert run.main.adapter == "adapter"
    assert run.answers[0].adapter == "LoRA-r1/adapter"
    assert run.main.singular_values[run_folders.VALUE] == (2.1, 1.3, 0.41)
    assert run.main.spectrum(run_folders.VALUE) == (2.1, 1.3, 0.41)
    assert run.main.spectrum("elsewhere") == ()
    assert run.main.layer_rank == 3
    assert run.before.test_accuracy == pytest.approx(188 / 336)
    assert run.lower_bound == run_folders.BOUND
    metrics = folder.read_metrics()
    assert len(metrics) == 6 * len(run_folders.EPOCHS) + 2
    assert metrics[0].measures["test_accuracy"] == pytest.approx(0.56)
    certificate = folder.read_certificate()
    assert certificate is not None
    assert certificate.spectral_norms[run_folders.QUERY] == 0.0712345


def test_the_certificate_holds_the_fields_that_are_read() -> None:
    from tangentlora.theory.certificate import Certificate

    written = {field.name for field in dataclasses.fields(Certificate)}
    assert {field.name for field in dataclasses.fields(CertificateRecord)} <= written


def test_without_metrics_certificate_or_adapter_there_is_less_to_read(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path, run_folders.demo())
    (tmp_path / "metrics.jsonl").unlink()
    assert folder.read_metrics() == []
    assert folder.read_certificate() is None
    assert folder.read_adapter_config(folder.read_run().main) is None


def test_numbers_that_are_not_finite_become_none(tmp_path: Path) -> None:
    values = run_folders.demo()
    values["runs"][0] |= {"objective": float("nan"), "gap": float("inf"), "relative_gap": None}
    answer = run_folders.write(tmp_path, values).read_run().answers[0]
    assert (answer.objective, answer.gap, answer.relative_gap, answer.layer_rank) == (None, None, None, None)


def test_json_is_written_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "new").write_json(
        "a/b.json", {"x": [1.0, float("nan")], "y": (float("-inf"), True)}
    )
    assert json.loads(path.read_text()) == {"x": [1.0, None], "y": [None, True]}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write_text("page.html", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_text("page.html", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_a_missing_run_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"run\.json does not exist, expected a run folder; name the --output-dir"
    ):
        RunFolder(tmp_path / "nowhere").read_run()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "is not an object"),
        ('{"format": 2}', "in format 2, expected format 1"),
        ('{"format": 1}', "KeyError"),
        (json.dumps(run_folders.demo() | {"runs": []}), "it lists no runs"),
        (json.dumps(run_folders.demo() | {"data": {"task": "x"}}), "label_names"),
        (json.dumps(run_folders.run([]) | {"runs": [3]}), "3 is not an object"),
        (json.dumps(run_folders.run([run_folders.certified(gap="small")])), "'small' is not a number"),
        (json.dumps(run_folders.run([run_folders.certified() | {"ranks": 3}])), "3 is not an object"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_told_with_the_remedy(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=told) as error:
        RunFolder(tmp_path).read_run()
    assert "run fit or demo again" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        RunFolder(tmp_path).read_run()


def test_damaged_metrics_and_certificates_are_told(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path, run_folders.demo(), {"certified": True})
    with pytest.raises(InputError, match=r"certificate\.json, which is damaged \(KeyError"):
        folder.read_certificate()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"run": "LoRA')
    lines = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line {lines}, which is damaged"):
        folder.read_metrics()


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = "('matplotlib', 'jinja2', 'torch')"
    code = f"import sys, tangentlora.report; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
