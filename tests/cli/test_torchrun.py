"""The command line run by several processes: the same answer, one voice, and an end where one is lost."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Shell, contents, status_of
from command_steps import be_ended, die_linearising, die_solving, drift, share_all
from process_groups import Ended, Step, run_command
from tangentlora.tangent.jacobian import in_memory
from tangentlora.tangent.store import load_tangent

pytestmark = pytest.mark.usefixtures("restored_logging")

SMALL = ("--batch-size", "4")
"""So that there are five batches to share."""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which one process has done a fit."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    assert status_of(made.fit(*SMALL, "--quiet")) == 0
    return made


def fit(
    shell: Shell, count: int, folder: Path, *options: str, before: Step | None = None, store: str = "store"
) -> list[Ended]:
    """Fit with several processes; the run folder is `run`, and everything is kept in `folder`."""
    tangents = ("--tangent-dir", str(folder / store))
    arguments = shell.fit(*SMALL, *tangents, *options, output=folder / "run")
    return run_command(count, folder / "printed", arguments, before)


def certificate(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "certificate.json").read_text())
    return found


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Require the same certificate to 1e-10."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name in ("gap", "relative_gap", "factored_gap", "rounding"):
            assert abs(ours[name] - value) <= 1e-10 * max(1.0, theirs["objective"])
        elif isinstance(value, float):
            assert math.isclose(ours[name], value, rel_tol=1e-10)
        elif name == "spectral_norms":
            assert ours[name] == pytest.approx(value, rel=1e-10)
        else:
            assert ours[name] == value


def assert_one_voice(ended: list[Ended], status: int, *messages: str) -> None:
    """Require that the processes left end with the status, and that one of them says one such line."""
    alive = [process for process in ended if process.status != -9]
    assert {process.status for process in alive} == {status}
    assert [process.out for process in alive] == [""] * len(alive)
    spoken = [line for process in alive for line in process.err.splitlines() if "tangentlora: " in line]
    assert len(spoken) == 1
    assert any(message in spoken[0] for message in messages), spoken[0]
    assert not any("Traceback" in process.err for process in alive)


def assert_same_rows(ours: Path, theirs: Path) -> None:
    """Require that two stores hold the same tangents, to the last bit."""
    names = [path.name for path in sorted(theirs.iterdir())]
    assert [path.name for path in sorted(ours.iterdir())] == names
    for name in names:
        one, other = load_tangent(ours / name), load_tangent(theirs / name)
        assert torch.equal(one.f0, other.f0)
        whole, again = (in_memory(tangent.jacobian, "a test") for tangent in (one, other))
        for layer, rows in again.layers.items():
            own = whole.layers[layer]
            assert all(torch.equal(getattr(own, part), getattr(rows, part)) for part in ("x", "g", "counts"))


def test_a_process_that_is_killed_while_linearising_and_the_run_after_it(
    shell: Shell, tmp_path: Path
) -> None:
    ended = fit(shell, 3, tmp_path, before=die_linearising)
    assert ended[1].status == -9
    assert_one_voice(ended, 3, "got no answer from another process")
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "store").iterdir()) == []
    ended = fit(shell, 2, tmp_path, "--json")
    assert [process.status for process in ended] == [0, 0]
    assert json.loads(ended[0].out)["runs"][0]["certified"]
    assert "linearising: 100%" in ended[0].err
    assert (ended[1].out, ended[1].err) == ("", "")
    assert_same(certificate(tmp_path / "run"), certificate(shell.run))
    assert contents(tmp_path / "run").keys() == contents(shell.run).keys()
    assert_same_rows(tmp_path / "store", shell.folder / "tangents")
    for store in (tmp_path / "store").iterdir():  # a part from each
        assert {path.name[:9] for path in store.glob("shard-*")} == {"shard-000", "shard-001"}


def test_a_process_that_is_killed_while_solving_and_the_runs_after_it(shell: Shell, tmp_path: Path) -> None:
    ended = fit(shell, 3, tmp_path, before=die_solving)
    assert ended[1].status == -9
    assert_one_voice(ended, 3, "got no answer from another process")
    assert not (tmp_path / "run").exists()
    written = contents(tmp_path / "store")
    for count in (4, 1):  # another number of processes reads what three have written
        ended = fit(shell, count, tmp_path, before=share_all)
        assert [process.status for process in ended] == [0] * count
        assert "linearising" not in ended[0].err
        assert contents(tmp_path / "store") == written
        assert_same(certificate(tmp_path / "run"), certificate(shell.run))
    assert_same_rows(tmp_path / "store", shell.folder / "tangents")
    assert status_of(["verify", str(tmp_path / "run"), "--strict"]) == 0


def test_a_run_of_descent_is_the_same(shell: Shell, tmp_path: Path) -> None:
    options = ("--solver", "sgd", "--rank", "2", "--epochs", "8", "--quiet")
    assert status_of(shell.fit(*SMALL, *options, output=tmp_path / "one")) == 0
    ended = fit(shell, 2, tmp_path, *options, store=str(shell.folder / "tangents"))
    assert [process.status for process in ended] == [0, 0]
    for name in ("solution.safetensors", "certificate.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_a_path_is_the_same(shell: Shell, tmp_path: Path) -> None:
    def path(run: str) -> list[str]:
        where = shell.fit(*SMALL, output=tmp_path / run)
        return ["path", *where[1:], "--points", "2", "--folds", "2", "--quiet"]

    assert status_of(path("one")) == 0
    assert [process.status for process in run_command(2, tmp_path / "printed", path("two"))] == [0, 0]
    for name in ("path.json", "certificate.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_launcher_ends_a_process(shell: Shell, tmp_path: Path) -> None:
    scratch = Path(tempfile.gettempdir())
    before = set(scratch.iterdir())
    ended = fit(shell, 2, tmp_path, before=be_ended)
    assert not [path for path in set(scratch.iterdir()) - before if path.name.startswith("tangentlora-")]
    assert_one_voice(ended, 3, "got the launcher's signal to end", "got no answer from another process")
    assert list((tmp_path / "store").iterdir()) == []


def test_processes_that_drift_apart_certify_nothing(shell: Shell, tmp_path: Path) -> None:
    ended = fit(shell, 2, tmp_path, before=drift, store=str(shell.folder / "tangents"))
    assert_one_voice(ended, 3, "got other numbers in process 1 than in process 0 at the step")
    assert not (tmp_path / "run").exists()


def test_bad_input_is_told_once(shell: Shell, tmp_path: Path) -> None:
    assert_one_voice(fit(shell, 3, tmp_path, "--lam", "-1"), 2, "got λ = -1.0, expected")
    # what process 0 alone meets: the others keep no run folder
    (tmp_path / "run").write_text("a file")
    ended = fit(shell, 3, tmp_path, store=str(shell.folder / "tangents"))
    assert ended[0].status == 2
    assert "is a file, expected a folder" in ended[0].err
    assert all(process.status in (2, 3) and process.err == "" for process in ended[1:])


def test_what_is_not_shared(shell: Shell, tmp_path: Path) -> None:
    advise = ["advise", *shell.fit()[1:]]
    where = advise.index("--output-dir")
    del advise[where : where + 2]
    ended = run_command(2, tmp_path, advise)
    assert_one_voice(ended, 2, "got 2 processes for advise, expected one, since only demo, fit, path share")
    ended = run_command(2, tmp_path, ["verify", str(shell.run), "--strict"])
    assert [process.status for process in ended] == [0, 0]
    assert ended[0].out.startswith("Valid: ")
    assert (ended[1].out, ended[1].err) == ("", "")
    ended = run_command(2, tmp_path, ["fit", "--frobnicate"])
    assert [process.status for process in ended] == [2, 0]  # process 0 has the say
    assert "--frobnicate" in ended[0].err
    assert ended[1].err == ""
    ended = run_command(2, tmp_path, ["--help"])
    assert ended[0].out.startswith("usage: tangentlora")
    assert ended[1].out == ""


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=240)


def test_torchrun_itself(shell: Shell, tmp_path: Path) -> None:
    ended = torchrun("-m", "tangentlora", *shell.fit(*SMALL, "--quiet", "--json", output=tmp_path / "run"))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["runs"][0]["certified"]
    assert_same(certificate(tmp_path / "run"), certificate(shell.run))
    ended = torchrun("--no-python", "tangentlora", "--version")
    assert (ended.returncode, ended.stdout.count("\n")) == (0, 1)
