"""`fit --init-from` and `fit --outer`, as the command line runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Captured, Shell, assert_bad_input, status_of

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("shell"))
    descent = ("--solver", "lbfgs", "--rank", "3", "--epochs", "20", "--lam", "0.05")
    assert status_of(made.fit(*descent, "--quiet")) == 0
    return made


def test_a_fit_continues_with_the_adapter_s_network_and_rank(shell: Shell) -> None:
    arguments = shell.fit("--init-from", str(shell.run / "adapter"), "--solver", "lbfgs", "--epochs", "3")
    where = arguments.index("--model")
    unnamed = [*arguments[:where], *arguments[where + 2 :]]  # which the adapter then says
    output = shell.folder / "again"
    assert status_of([*unnamed, "--quiet", "--lam", "0.05", "--output-dir", str(output)]) == 0
    run, first = (json.loads((where / "run.json").read_text()) for where in (output, shell.run))
    assert run["configuration"]["model"] == first["configuration"]["model"]
    assert run["configuration"]["rank"] == 3
    assert run["runs"][0]["objective"] <= first["runs"][0]["objective"] + 1e-6
    assert status_of(["verify", str(output)]) == 0


def test_outer_steps_are_told_one_by_one(shell: Shell, capsys: Captured) -> None:
    output = shell.folder / "outer"
    capsys.readouterr()
    assert status_of(shell.fit("--outer", "2", "--lam", "0.05", "--quiet", output=output)) == 0
    out = capsys.readouterr().out
    record = json.loads((output / "run.json").read_text())
    first, steps, *_ = out.split("\n\n")
    assert " ".join(first.split()) == record["headline"]
    assert steps.split()[:5] == ["step", "P", "before", "gap", "P"]
    assert "At the end: P = " in out
    assert "linearised at this answer" in " ".join(out.split())
    assert len(record["outer"]["steps"]) == 2
    assert status_of(["verify", str(output)]) == 0
    assert_bad_input(["examine", str(output)], "a run of fit --outer", capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--init-from", "nowhere"), "got the adapter 'nowhere', which is no folder here"),
        (("--outer", "2", "--solver", "adamw"), "got outer steps with the solver adamw"),
        (("--outer", "-2"), "got -2 outer steps"),
    ],
)
def test_mistakes_are_told(
    shell: Shell, capsys: Captured, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    assert_bad_input(shell.fit(*options, output=tmp_path / "no"), message, capsys)
