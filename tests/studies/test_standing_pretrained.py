"""A pretrained network whose certified answer destroys it: that is told first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import Captured, status_of

SHARED = Path(__file__).parents[2] / "../shared"
WHISPER = SHARED / "models/whisper-tiny-encoder"
RECORDINGS = SHARED / "data/spoken-digits"


def recordings() -> list[str]:
    """The speakers of recordings, three of each."""
    pattern = r"^\d+_([a-z]+)_"
    return [
        *("--model", str(WHISPER), "--data", str(RECORDINGS), "--label-pattern", pattern),
        *("--shots", "3", "--test-limit", "30", "--target-modules", "q_proj", "v_proj"),
    ]


@pytest.mark.skipif(not (WHISPER.exists() and RECORDINGS.exists()), reason="the network is not here")
def test_a_certified_answer_that_destroys_the_network_is_not_called_the_best(
    tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["fit", *recordings(), "--readout", "head", "--lam", "0.01", "--quiet", "--strict"]
    store = ["--tangent-dir", str(tmp_path / "tangents"), "--output-dir", str(tmp_path / "run")]
    capsys.readouterr()
    assert status_of([*arguments, *store]) == 1
    out = capsys.readouterr().out
    assert out.startswith("The answer does not hold on the real network: its training loss rises from")
    assert "found the best answer" not in " ".join(out.split())
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (answer,) = run["runs"]
    assert answer["certified"]  # which stays true, of the linearised problem
    assert answer["linearised"]["train_loss"] < run["before"]["train_loss"] < answer["real"]["train_loss"]
    reach = run["real_network"]["reach"]
    assert reach["tau"] < 1
    assert reach["loss"] <= run["before"]["train_loss"]
