"""The data as the command line takes them: which rows train, the data check, and pairs of texts."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from command_line import Captured, Shell, assert_bad_input, status_of

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which a fit on every row is done."""
    made = Shell(tmp_path_factory.mktemp("shell"))
    assert status_of(made.fit("--test-fraction", "0", "--tolerance", "1e-4", "--quiet")) == 0
    return made


_PHRASES = ("the movie is great", "a dull plot", "it is a funny story")


def write_pairs(path: Path) -> Path:
    """Write pairs of texts under unusual names, with a number for each."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "left", "right", "label"])
        for i in range(16):
            texts = [
                " ".join(draw.choices(("the movie is great", "a dull plot", "funny"), k=2)) for _ in "ab"
            ]
            writer.writerow([i, *texts, ("no", "yes")[i % 2]])
    return path


def test_all_rows_train_and_no_score_is_called_held_out(shell: Shell, capsys: Captured) -> None:
    run = json.loads((shell.run / "run.json").read_text())
    assert (run["data"]["n_train"], run["data"]["n_test"]) == (24, 0)
    assert run["data"]["check"]["held_out_rows"] == 0
    assert run["data"]["check"]["parts"]["train"]["labels"] == {"bad": 12, "good": 12}
    assert not any("test" in name for scores in ("linearised", "real") for name in run["runs"][0][scores])
    output = shell.folder / "told"
    assert status_of(shell.fit("--test-fraction", "0", "--tolerance", "1e-4", output=output)) == 0
    out, err = capsys.readouterr()
    told = " ".join(err.split())
    assert f"train 24 rows (all of {shell.data})" in told
    assert "test none: no held-out rows, so accuracies are on the training rows" in told
    assert told.startswith(f"Data: {shell.data}")
    for text in (out, (output / "README.md").read_text(), (output / "report.html").read_text()):
        assert "No held-out rows" in text
        assert "held-out accuracy" not in text
        assert "held-out loss" not in text


def test_an_adapter_is_judged_on_every_row_that_is_given(
    shell: Shell, capsys: Captured, tmp_path: Path
) -> None:
    adapter = str(shell.run / "adapter")
    more = tmp_path / "more.csv"
    more.write_text(shell.data.read_text() + "the movie is dull and bright,bad\n" * 6)
    capsys.readouterr()
    assert status_of(["audit", adapter, "--data", str(more), "--no-local", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_examples"] == 30
    assert found["data_check"]["parts"]["train"]["rows"] == 30
    assert found["data_check"]["parts"]["train"]["duplicates"] >= 5
    assert status_of(["audit", adapter, "--no-local"]) == 0
    out, err = capsys.readouterr()
    assert out.index("24 training examples") > 0
    assert err.startswith(f"Data: {shell.data}")


def test_a_compression_holds_out_only_what_is_asked_for(
    shell: Shell, capsys: Captured, tmp_path: Path
) -> None:
    arguments = ["compress", str(shell.run / "adapter"), "--no-polish", "--quiet", "--json"]
    assert status_of([*arguments, "--output-dir", str(tmp_path / "all")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == {"train": 24}
    assert "Nothing was held out" in found["message"]
    assert found["data_check"]["held_out_rows"] == 0
    record = json.loads((tmp_path / "all" / "compression.json").read_text())
    assert record["data_check"] == found["data_check"]
    held = tmp_path / "held.csv"
    held.write_text("text,label\nthe movie is bright,good\nthe movie is slow,bad\n")
    options = ("--test-data", str(held), "--output-dir", str(tmp_path / "some"))
    assert status_of([*arguments, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == {"train": 24, "test": 2}
    assert "On 2 examples held out of this compression" in found["message"]


def test_two_columns_make_a_pair_and_one_is_refused(shell: Shell, capsys: Captured, tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "pairs.csv")
    options = ("--data", str(source), "--readout", "head", "--tolerance", "1e-4", "--quiet", "--json")
    named = ("--text-column", "left", "--text-column", "right")
    assert status_of(shell.fit(*options, *named, output=tmp_path / "run")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["check"]["text_columns"] == ["left", "right"]
    assert found["data"]["check"]["columns_not_used"] == ["id"]
    adapter = str(tmp_path / "run" / "adapter")
    assert status_of(["audit", adapter, "--no-local", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data_check"]["text_columns"] == ["left", "right"]
    source.write_text(source.read_text().replace("left", "text"))
    assert_bad_input(
        shell.fit(*options), "has texts in 'right' beside 'text', which would not be read", capsys
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--test-fraction", "1"), "got the test fraction 1.0"),
        (("--test-fraction", "0.5", "--test-data", "x.csv"), "expected a fraction .* or test data, not both"),
        (
            ("--test-fraction", "0", "--test-data", "no/where.csv"),
            "there is no file or folder 'no/where.csv'",
        ),
        (("--test-fraction", "0", "--dev-data", "no/where.csv"), "there is no file or folder 'no/where.csv'"),
    ],
)
def test_rows_that_cannot_be_held_out_are_refused(
    options: tuple[str, ...], message: str, shell: Shell, capsys: Captured
) -> None:
    assert_bad_input(shell.fit(*options), message, capsys)
