"""The command line as a user runs it: a folder with a tiny network and data, and what a call gives back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from small_runs import checkpoint, write_sentences
from tangentlora.cli import main

Captured = pytest.CaptureFixture[str]


class Shell:
    """A folder with a tiny network, sentences and a tangent store, and the verbs run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = write_sentences(folder / "data.csv")
        self.run = folder / "run"

    def fit(self, *options: str, kind: str = "bert", output: Path | None = None) -> list[str]:
        """Return the arguments of a fit that holds a quarter out; options given here override the others."""
        data = Path(options[options.index("--data") + 1] if "--data" in options else self.data)
        whole = "--shots" in options or (data.is_dir() and any(data.glob("train*")))
        return [
            "fit",
            *("--model", str(checkpoint(self.folder, kind))),
            *("--data", str(self.data)),
            *("--tangent-dir", str(self.folder / "tangents")),
            *(() if whole else ("--test-fraction", "0.25")),
            *("--output-dir", str(output or self.run)),
            *options,
        ]


def status_of(arguments: list[str]) -> int:
    """Run the command line in this process; argparse leaves by SystemExit, as the shell would see it."""
    try:
        return main(arguments)
    except SystemExit as left:
        return int(left.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_bad_input(arguments: list[str], message: str, capsys: Captured) -> None:
    """Require exit 2, nothing on stdout and one line on stderr."""
    capsys.readouterr()
    assert status_of(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.startswith("tangentlora")
    assert re.search(message, err), err
