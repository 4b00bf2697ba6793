"""A study from end to end: one linearisation per case, records found again, the same bytes after kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from small_studies import small_plan
from tangentlora.errors import InputError
from tangentlora.studies import cells as cells_module, grid as grid_module
from tangentlora.studies.grid import run_study

RESULTS = "results.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    run_study(small_plan(folder), folder / "undisturbed")
    return folder / "undisturbed"


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((path / RESULTS).read_text())
    return value


def test_every_case_and_cell_is_there_with_its_numbers(undisturbed: Path) -> None:
    results = read(undisturbed)
    assert [case["name"] for case in results["cases"]] == ["sst2-13", "sst2-21", "mr-13", "mr-21"]
    for case in results["cases"]:
        assert (case["n_train"], case["n_dev"], case["n_test"]) == (8, 8, 24)
        assert [cell["slug"] for cell in case["cells"]] == [
            "certified-lam0.05",
            "certified-lam0.2",
            "lora-r1-lam0.05",
            "lora-r2-lam0.05",
            "full-lam0.05",
            "published-r2-lam0.05",
            "zero-shot",
        ]
        best, _, *trained, _ = case["cells"]
        assert best["certified"]
        assert best["real"]["test_accuracy"] >= 0
        assert all(run["relative_excess"] >= -1e-9 for run in trained)
        zero = case["cells"][-1]["real"]
        assert zero["test_loss"] == pytest.approx(case["before"]["test_loss"], abs=1e-5)
    timings = json.loads((undisturbed / "timings.json").read_text())
    assert list(timings) == [case["name"] for case in results["cases"]]
    assert all(times["linearise"] > 0 and len(times["cells"]) == 7 for times in timings.values())


def test_a_second_run_computes_nothing_and_writes_the_same(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (undisturbed / RESULTS).read_bytes(), (undisturbed / "timings.json").read_bytes()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a cell that is done was run again")

    monkeypatch.setattr(grid_module, "run_cell", never)
    run_study(small_plan(folder), undisturbed)
    assert ((undisturbed / RESULTS).read_bytes(), (undisturbed / "timings.json").read_bytes()) == before


def test_an_interrupted_study_goes_on_and_ends_with_the_same_bytes(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = folder / "interrupted"
    run = cells_module.run_cell
    left = 5

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return run(*arguments, **named)

    monkeypatch.setattr(grid_module, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(small_plan(folder), output)
    assert not (output / RESULTS).exists()
    left = 9
    with pytest.raises(KeyboardInterrupt):
        run_study(small_plan(folder), output)
    assert len(read(output)["cases"]) == 2
    left = 1000
    run_study(small_plan(folder), output)
    assert (output / RESULTS).read_bytes() == (undisturbed / RESULTS).read_bytes()
    assert left == 1000 - 10  # 4 cases of 6 solved cells, 14 of which were done


def test_a_killed_process_leaves_what_another_can_use(folder: Path, undisturbed: Path) -> None:
    output = folder / "killed"
    small_plan(folder, {"tangent_dir": folder / "others"})
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from small_studies import small_plan\n"
        "from tangentlora.studies.grid import run_study\n"
        "folder = Path(sys.argv[2])\n"
        "run_study(small_plan(folder, {'tangent_dir': folder / 'others'}), folder / 'killed')\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[1]), str(folder)]
    for records in (1, 9):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(output.glob("cells/*/*-*.json"))) < records and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert all(json.loads(path.read_text()) for path in output.glob("cells/*/*.json"))
    run_study(small_plan(folder, {"tangent_dir": folder / "others"}), output)
    assert (output / RESULTS).read_bytes() == (undisturbed / RESULTS).read_bytes()


def test_a_longer_study_keeps_what_it_can_and_another_problem_is_solved_anew(
    folder: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = folder / "changed"
    one = {"seeds": (13,), "variants": ("certified", "lora"), "dev_lams": ()}
    run_study(small_plan(folder, grid=one), output)
    run, solved = cells_module.run_cell, []

    def counted(prepared: Any, sets: Any, cell: Any, *more: Any) -> Any:
        solved.append(cell.slug)
        return run(prepared, sets, cell, *more)

    monkeypatch.setattr(grid_module, "run_cell", counted)
    run_study(small_plan(folder, grid=one | {"ranks": (1, 2, 3)}), output)
    assert solved == ["lora-r3-lam0.05"] * 2
    solved.clear()
    run_study(small_plan(folder, {"epochs": 20}, one), output)
    assert len(solved) == 6
    expected = {cell["slug"]: cell["objective"] for cell in read(undisturbed)["cases"][0]["cells"]}
    assert read(output)["cases"][0]["cells"][0]["objective"] == expected["certified-lam0.05"]


def test_ranks_that_no_matrix_has_are_left_out(folder: Path) -> None:
    grid = {"seeds": (13,), "ranks": (1, 10_000), "variants": ("lora",)}
    results = run_study(small_plan(folder, {"epochs": 3}, grid), folder / "ranks")
    assert [cell["rank"] for cell in results["cases"][0]["cells"]] == [1]


def test_a_damaged_record_is_named(folder: Path) -> None:
    output = folder / "damaged"
    grid = {"seeds": (13,), "ranks": (1,), "variants": ("lora",)}
    run_study(small_plan(folder, {"epochs": 3}, grid), output)
    (output / "cells" / "mr-13" / "lora-r1-lam0.05.json").write_text("{")
    with pytest.raises(InputError, match=r"lora-r1-lam0\.05\.json, which is not JSON .* delete it"):
        run_study(small_plan(folder, {"epochs": 3}, grid), output)


def test_scalars_are_written_for_tensorboard(folder: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    grid = {"seeds": (13,), "ranks": (1,), "variants": ("lora",)}
    output = folder / "scalars"
    results = run_study(small_plan(folder, {"epochs": 3}, grid), output, tensorboard=True)
    run = loader.EventAccumulator(str(output / "tensorboard" / "mr-13" / "lora-r1-lam0.05"))
    run.Reload()
    curve = results["cases"][1]["cells"][0]["curve"]
    logged = [(event.step, event.value) for event in run.Scalars("objective")]
    assert [step for step, _ in logged] == [row["epoch"] for row in curve]
    assert [value for _, value in logged] == pytest.approx([row["objective"] for row in curve], rel=1e-6)
    assert {"gap", "train_loss", "test_accuracy"} <= set(run.Tags()["scalars"])
