"""The verb compress, as the command line runs it on an adapter that fit wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Captured, Shell, assert_bad_input, status_of

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("shell"))
    descent = ("--solver", "lbfgs", "--rank", "8", "--epochs", "40", "--lam", "0.01", "--layers", "all")
    assert status_of(made.fit(*descent, "--quiet")) == 0
    return made


def compress(shell: Shell, name: str, *options: str) -> list[str]:
    return [
        "compress",
        str(shell.run / "adapter"),
        *("--output-dir", str(shell.folder / name), "--quiet"),
        *options,
    ]


def test_an_adapter_of_a_run_needs_no_more_than_its_folder(shell: Shell, capsys: Captured) -> None:
    assert status_of(compress(shell, "least")) == 0
    out = capsys.readouterr().out
    assert "energy, same size" in out
    assert "(tolerance 1.0e-6: met)" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100 + len(str(shell.folder))
    record = json.loads((shell.folder / "least" / "compression.json").read_text())
    assert record["theorem_count"] <= record["constraints"]
    assert (shell.folder / "least" / "adapter" / "adapter_model.safetensors").is_file()


def test_json_rank_and_tolerance_are_respected(shell: Shell, capsys: Captured) -> None:
    assert status_of(compress(shell, "one", "--rank", "1", "--json")) == 0
    values = json.loads(capsys.readouterr().out)
    assert max(values["rows"][3]["ranks"].values()) == 1
    assert values["adapter"] == str(shell.folder / "one" / "adapter")
    assert status_of(compress(shell, "near", "--tolerance", "0.05", "--no-polish", "--json")) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["rows"][2]["name"] == "by outputs"
    assert values["rows"][2]["train"]["largest_change"] <= 0.05
    assert values["tolerance"] == 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", "0"), "got rank 0, expected at least 1: change --rank"),
        (("--tolerance", "-1"), "got tolerance -1.0, expected a positive number: change --tolerance"),
        (("--tolerance", "1e-13", "--rank", "1"), "got the tolerance 1.0e-13, expected one that can be met"),
    ],
)
def test_what_cannot_be_is_refused(
    shell: Shell, capsys: Captured, options: tuple[str, ...], message: str
) -> None:
    assert_bad_input(compress(shell, "no", *options), message, capsys)
    assert not (shell.folder / "no").exists()


def test_a_folder_without_an_adapter_is_refused(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    arguments = ["compress", str(tmp_path), "--output-dir", str(tmp_path / "less")]
    assert_bad_input(arguments, "a folder without adapter_config.json", capsys)
