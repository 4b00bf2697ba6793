"""A run whose rows do not fit in memory leaves them in the store and ends where it would have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_runs import small_settings
from tangentlora.studies.fit import fit
from tangentlora.studies.plan import Plan
from tangentlora.studies.prepare import prepare
from tangentlora.tangent.centred import CentredJacobian
from tangentlora.tangent.stored import StoredJacobian
from tangentlora.theory.verify import verify


@pytest.mark.parametrize("solver", ["certified", "sgd", "proximal"])
def test_a_run_in_blocks_is_the_run_in_memory(
    solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {} if solver == "certified" else {"epochs": 30}
    settings = small_settings(tmp_path, "bert", solver=solver, lam=0.05, **epochs)
    whole = fit(settings, tmp_path / "memory")
    monkeypatch.setattr(Plan, "reads_blocks", property(lambda plan: True))
    prepared = prepare(settings)
    for jacobian in (prepared.train.jacobian, prepared.problem.jacobian):
        assert isinstance(jacobian, CentredJacobian)
        assert isinstance(jacobian.contrasts, StoredJacobian)
    blocks = fit(settings, tmp_path / "blocks")
    ours, theirs = blocks["runs"][0], whole["runs"][0]
    near = 1e-8 if solver == "certified" else 1e-4  # the first-order runs take steps in other coordinates
    assert ours["objective"] == pytest.approx(theirs["objective"], rel=near)
    assert ours["linearised"]["train_accuracy"] == theirs["linearised"]["train_accuracy"]
    assert verify(tmp_path / "blocks").valid
    if solver == "certified":
        assert ours["certified"]
        assert verify(tmp_path / "blocks").certified
