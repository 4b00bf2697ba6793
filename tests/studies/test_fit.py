from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from small_runs import small_settings
from tangentlora.errors import InputError
from tangentlora.studies.fit import compare, fit
from tangentlora.theory.verify import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitted")


@pytest.fixture(scope="module")
def compared(folder: Path) -> dict[str, Any]:
    return compare(
        small_settings(folder, solver="sgd", epochs=150, lam=0.05), folder / "compared", (1, 2, 64)
    )


def test_a_comparison_writes_every_answer_figures_page_and_card(
    folder: Path, compared: dict[str, Any]
) -> None:
    run = folder / "compared"
    assert [entry["folder"] for entry in compared["runs"]] == ["lora-r1", "lora-r2", "full", "."]
    assert {path.suffix for path in (run / "figures").iterdir()} == {".svg", ".png"}
    assert "LoRA r=2" in (run / "report.html").read_text()
    assert (run / "README.md").read_text().startswith("---\n")
    for entry in compared["runs"]:
        assert verify(run / entry["folder"]).valid


def test_all_answers_of_a_comparison_are_to_one_problem(compared: dict[str, Any]) -> None:
    optimum = compared["runs"][-1]
    assert optimum["certified"]
    for entry in compared["runs"]:
        assert entry["objective"] >= optimum["lower_bound"]
        assert entry["lower_bound"] <= optimum["objective"] + 1e-12
    assert compared["runs"][1]["objective"] <= compared["runs"][0]["objective"] + 1e-9
    assert compared["command"] == "demo"


def test_a_rank_that_no_matrix_can_hold_is_left_out(compared: dict[str, Any]) -> None:
    assert [entry["rank"] for entry in compared["runs"]] == [1, 2, None, None]


def test_one_fit_writes_one_answer(folder: Path) -> None:
    record = fit(small_settings(folder, solver="lbfgs", rank=2, epochs=30), folder / "one")
    assert record["command"] == "fit"
    assert [(entry["folder"], entry["name"]) for entry in record["runs"]] == [(".", "LoRA r=2")]
    assert record["runs"][0]["adapter_error"] < 1e-4
    assert (folder / "one" / "report.html").exists()
    assert verify(folder / "one").valid


@pytest.mark.parametrize("verb", [fit, compare])
def test_an_output_folder_that_is_a_file_is_told_before_any_work(tmp_path: Path, verb: Any) -> None:
    (tmp_path / "file").write_text("kept")
    settings = small_settings(tmp_path, model="never loaded")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            InputError, match=r"but .*file is a file, expected a folder .* another --output-dir"
        ):
            verb(settings, output)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_output_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentlora.places.os.access", lambda *_: False)
    with pytest.raises(InputError, match="cannot be written, expected a folder that can be written"):
        fit(small_settings(tmp_path, model="never loaded"), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_comparison_needs_a_penalty_and_says_so_before_any_work(tmp_path: Path) -> None:
    settings = small_settings(tmp_path, model="never loaded", lam=0.0, solver="sgd")
    with pytest.raises(InputError, match="got λ = 0 for the certified solver"):
        compare(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
