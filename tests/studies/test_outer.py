"""Gauss–Newton steps on real networks: P never rises, and where they settle it is first-order optimal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from random_factors import random_factors
from small_runs import small_settings
from tangentlora.adapters import loaded_outputs
from tangentlora.belongs import used_only
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.problem.losses import CrossEntropy
from tangentlora.problem.objective import nuclear_norm
from tangentlora.report import RunFolder
from tangentlora.report.verdict import verdict
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.solution import Solution, Status
from tangentlora.studies.fit import fit
from tangentlora.studies.outer import Ending, blend, gauss_newton
from tangentlora.studies.outer_folder import outer_table
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.reopen import reopen
from tangentlora.studies.settings import Settings
from tangentlora.tangent.gradient import weight_gradients
from tangentlora.theory.verify import verify


def real_objective(prepared: Prepared, factors: Any) -> float:
    with attached(prepared.network.module, prepared.targets, factors):
        z = prepared.network.predict(prepared.splits.train.inputs).double()
    loss = CrossEntropy().value(z, torch.tensor(prepared.splits.train.labels)).mean()
    return float(loss) + prepared.problem.lam * nuclear_norm(factors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outer")


def settling(folder: Path) -> Settings:
    return small_settings(folder, "roberta", lam=0.15, outer=20, tolerance=1e-5)


@pytest.fixture(scope="module")
def settled(folder: Path) -> dict[str, Any]:
    """A run on a network whose steps settle."""
    return fit(settling(folder), folder / "run")


@pytest.mark.parametrize(("kind", "lam"), [("bert", 0.02), ("gpt2", 0.05)])
def test_the_real_objective_never_rises_and_ends_below_that_of_one_solve(
    folder: Path, kind: str, lam: float
) -> None:
    prepared = prepare(small_settings(folder, kind, lam=lam, outer=4))
    outer = gauss_newton(prepared, Certified())
    for one, following in zip(outer.steps, outer.steps[1:], strict=False):
        assert one.after == following.before
    for step in outer.steps:
        assert step.after < step.before
        assert step.promised < step.before
        assert step.gap > 0
        assert step.solved_gap < 1e-5
    assert outer.objective == pytest.approx(real_objective(prepared, outer.factors), abs=1e-7)
    once = Certified().solve(prepared.problem).factors
    assert outer.objective < real_objective(prepared, once) - 1e-3


def test_where_the_steps_settle_the_real_network_is_first_order_optimal(
    folder: Path, settled: dict[str, Any]
) -> None:
    assert settled["outer"]["ending"] == Ending.SETTLED.name
    prepared = prepare(settling(folder))
    outer = gauss_newton(prepared, Certified(tolerance=1e-7))
    assert any(u.shape[1] for u, _ in outer.factors.values())
    y = torch.tensor(prepared.splits.train.labels)
    with attached(prepared.network.module, prepared.targets, outer.factors):
        found = weight_gradients(
            prepared.network, prepared.splits.train.inputs, y, prepared.targets, CrossEntropy()
        )
    lam = prepared.problem.lam
    for name, (u, v) in outer.factors.items():
        M = found.gradients[name].double()
        assert float(torch.linalg.matrix_norm(M, 2)) <= lam * 1.02
        assert float((M @ v + lam * u).norm()) <= 0.02 * lam * max(1.0, float(u.norm()))
        assert float((M.T @ u + lam * v).norm()) <= 0.02 * lam * max(1.0, float(v.norm()))


def test_the_folder_s_certificate_is_that_of_the_network_linearised_at_its_answer(
    folder: Path, settled: dict[str, Any]
) -> None:
    run = folder / "run"
    found = verify(run)
    assert found.valid
    assert found.certified
    (entry,) = settled["runs"]
    assert entry["solver"] == "gauss-newton"
    assert entry["objective"] == pytest.approx(settled["outer"]["objective"], abs=1e-6)
    assert entry["linearised"]["test_loss"] == entry["real"]["test_loss"]
    assert entry["linearised"]["train_loss"] == pytest.approx(entry["real"]["train_loss"], abs=1e-5)
    assert (
        settled["tangent"]["key"]
        != fit(replace(settling(folder), outer=0), folder / "once")["tangent"]["key"]
    )
    said = outer_table(settled["outer"])
    assert Ending.SETTLED.value in said
    assert said.count("\n") == len(settled["outer"]["steps"]) + 3
    assert any("the network linearised at this answer" in line for line in verdict(RunFolder(run).read_run()))
    assert not any("linearised at this answer" in s for s in verdict(RunFolder(folder / "once").read_run()))
    with pytest.raises(InputError, match=r"a run of fit --outer, .* use tangentlora audit on its adapter"):
        reopen(run)


def test_an_altered_answer_is_rejected(folder: Path, settled: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "run", tmp_path / "run")
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    (tmp_path / "run" / "certificate.json").write_text(json.dumps(certificate | {"gap": 0.0}))
    assert not verify(tmp_path / "run").valid


def test_a_solver_that_promises_nothing_ends_the_steps_where_they_began(folder: Path) -> None:
    class Idle(Certified):
        def solve(self, problem: Any, *_: Any, **__: Any) -> Solution:
            return Solution(problem, problem.zero(), Status.EPOCHS_SPENT, (), 0)

    prepared = prepare(small_settings(folder, lam=0.02, outer=3))
    outer = gauss_newton(prepared, Idle())
    assert outer.ending is Ending.STALLED
    assert [step.length for step in outer.steps] == [0.0]
    assert outer.objective == outer.steps[0].before
    assert outer.steps[0].gap > 1e-3


def test_steps_start_from_an_adapter(folder: Path) -> None:
    settings = small_settings(folder, lam=0.02, outer=1)
    first = fit(settings, folder / "first")
    again = fit(replace(settings, init_from=str(folder / "first" / "adapter"), outer=2), folder / "again")
    assert again["outer"]["steps"][0]["before"] == pytest.approx(first["outer"]["objective"], abs=1e-5)
    assert again["outer"]["objective"] < first["outer"]["objective"]
    assert verify(folder / "again").valid


def test_a_blend_is_the_convex_combination(folder: Path) -> None:
    prepared = prepare(small_settings(folder))
    one, other = (random_factors(prepared.targets, ranks) for ranks in ((2, 1), (1, 0)))
    for t in (0.25, 0.5):
        mixed = blend(prepared.problem, one, other, t)
        for name, (u, v) in mixed.items():
            expected = (1 - t) * one[name][0] @ one[name][1].T + t * other[name][0] @ other[name][1].T
            torch.testing.assert_close(u @ v.T, expected)
            torch.testing.assert_close(u.T @ u, v.T @ v)


@pytest.mark.parametrize("changes", [{"outer": -1}, {"outer": 2, "solver": "sgd"}])
def test_steps_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"got -?\d outer steps with the solver .*: change --outer or"):
        Settings(**changes)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> str:
    """An adapter of rank 2 to begin from."""
    started = folder / "started"
    fit(small_settings(folder, solver="lbfgs", rank=2, epochs=60, layers="all", lam=0.05), started)
    return str(started / "adapter")


@pytest.mark.parametrize("solver", ["certified", "proximal", "sgd", "lbfgs"])
def test_a_fit_continues_from_an_adapter_with_its_layers(folder: Path, adapter: str, solver: Any) -> None:
    prepared = prepare(small_settings(folder, lam=0.05, init_from=adapter))
    assert prepared.start is not None
    assert set(prepared.start) == {target.name for target in prepared.targets}
    assert len(prepared.targets) == 4
    given = used_only({"rank": 3, "epochs": 3}, {"solver": solver})
    record = fit(small_settings(folder, solver=solver, lam=0.05, init_from=adapter, **given), folder / solver)
    begun = json.loads((folder / solver / "metrics.jsonl").read_text().splitlines()[0])
    at_start = prepared.problem.objective(prepared.start)
    cold = prepared.problem.objective(prepared.problem.zero())
    assert begun["objective"] <= at_start + 0.01 * (cold - at_start)
    assert record["runs"][0]["objective"] <= begun["objective"] + 1e-9
    assert record["configuration"]["init_from"] == adapter
    loaded = loaded_outputs(prepared.network, folder / solver / "adapter", prepared.splits.train.inputs)
    assert loaded.isfinite().all()
    assert verify(folder / solver).valid


def test_a_start_above_the_rank_or_beside_another_is_refused(folder: Path, adapter: str) -> None:
    with pytest.raises(InputError, match="got a start of rank 2 for LoRA of rank 1, expected at most that"):
        fit(small_settings(folder, solver="sgd", rank=1, init_from=adapter), folder / "no")
    assert not (folder / "no").exists()
    with pytest.raises(InputError, match="leave out --initialisation or --init-from"):
        Settings(init_from=adapter, initialisation="spectral", solver="sgd")


@pytest.mark.parametrize("lam", [0.15, 0.02])
def test_descent_settles_where_the_network_bends_strongly(folder: Path, lam: float) -> None:
    prepared = prepare(small_settings(folder, "bert", lam=lam, outer=8, dtype="float64"))
    outer = gauss_newton(prepared, Certified(tolerance=1e-8))
    assert outer.ending is Ending.SETTLED
    for step in outer.steps:
        assert step.after <= step.reached <= step.before
    assert outer.steps[0].after < outer.steps[0].reached - 0.02
