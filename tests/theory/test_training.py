"""The verdict on a trained update: planted runs on linearised problems, and numbers at every threshold."""

from __future__ import annotations

import pytest
import torch

from random_problems import random_problem
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.newton import newton
from tangentlora.theory.first_order import Escape, FirstOrder, LayerFirstOrder, escape_factors, first_order
from tangentlora.theory.training import REST, WASTE, WORTH, Judgement, TrainingVerdict, judge
from tangentlora.theory.update_spectrum import UpdateSpectrum


def planted() -> Problem:
    """Return a problem whose optimum needs several columns."""
    return random_problem(3, lam=0.02, n_examples=12, shapes=((6, 8), (9, 7)))


def measured(problem: Problem, factors: Factors) -> FirstOrder:
    M = problem.jacobian.adjoint(problem.dual_point(problem.outputs(factors)))
    return first_order(M, factors, problem.lam)


def fall(problem: Problem, start: Factors, end: Factors) -> float:
    """Return by how much F is lower at the end, relative to F at the start."""
    before = problem.factored_objective(start)
    return (before - problem.factored_objective(end)) / before


def test_a_run_of_few_epochs_is_undertrained() -> None:
    problem = planted()
    factors = Descent(rank=6, epochs=5).solve(problem).factors
    judged = judge(measured(problem, factors))
    assert judged.verdict is TrainingVerdict.UNDERTRAINED
    assert judged.slope > 2 * REST
    best = Certified().solve(problem).factors
    assert fall(problem, factors, best) > 10 * WORTH  # so it is


def test_a_run_at_rest_at_rank_one_is_limited_by_its_rank() -> None:
    problem = planted()
    start = {
        t: tuple(0.3 * torch.randn(size, 1, dtype=torch.float64) for size in shape)
        for t, shape in problem.jacobian.shapes.items()
    }
    factors = newton(problem, start, tolerance=1e-12).factors
    assert max(Certified().solve(problem).ranks.values()) >= 3
    found = measured(problem, factors)
    M = problem.jacobian.adjoint(problem.dual_point(problem.outputs(factors)))
    above = sum(int((torch.linalg.svdvals(block) > 1.05 * problem.lam).sum()) for block in M.values())
    escaped = max(fall(problem, factors, escape_factors(factors, found, 2.0**-k)) for k in range(12))
    for judged in (judge(found), judge(found, remaining=0.0, gain=escaped)):
        assert judged.verdict is TrainingVerdict.RANK_LIMITED
        assert judged.directions == above >= 2
    assert escaped > WORTH


def test_the_optimum_is_converged_and_wasteful_in_wide_factors() -> None:
    problem = planted()
    factors = Certified(tolerance=1e-8).solve(problem).factors
    judged = judge(measured(problem, factors))
    assert judged.verdict is TrainingVerdict.CONVERGED
    assert judged.needed == judged.rank
    turned = {}
    for t, (u, v) in factors.items():
        R = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64)).Q[: u.shape[1]]
        turned[t] = (u @ R, v @ R)
    zeros = {t: tuple(torch.cat([w, w.new_zeros(len(w), 61)], 1) for w in p) for t, p in factors.items()}
    for wide in (turned, zeros):
        found = judge(measured(problem, wide))
        assert found.verdict is TrainingVerdict.WASTEFUL
        assert found.needed == judged.needed
        assert found.rank >= 61
    assert judge(measured(problem, factors), needed_rank=1).verdict is TrainingVerdict.WASTEFUL


def test_a_saddle_with_unused_columns_is_undertrained_and_not_limited_by_its_rank() -> None:
    problem = planted()
    zero = {t: tuple(torch.zeros(k, 4).double() for k in s) for t, s in problem.jacobian.shapes.items()}
    found = measured(problem, zero)
    assert found.force == 0.0
    assert found.directions > 0
    assert judge(found).verdict is TrainingVerdict.UNDERTRAINED
    assert judge(measured(problem, problem.zero())).verdict is TrainingVerdict.RANK_LIMITED


def made(
    slope: float = 0.0, directions: int = 0, used: int = 4, rank: int = 4, lam: float = 1.0
) -> FirstOrder:
    escape = Escape(torch.ones(1), torch.ones(1), 1.0) if directions else None
    spectrum = UpdateSpectrum((1.0,) * used)
    layer = LayerFirstOrder(lam, slope, 2.0, 1.0, 1.0, 1.0, directions, escape, 0.0, rank, used, spectrum)
    return FirstOrder({"layer": layer}, 0.05)


V = TrainingVerdict


@pytest.mark.parametrize(
    ("found", "remaining", "gain", "verdict"),
    [
        (made(), None, None, V.CONVERGED),
        (made(slope=REST), None, None, V.CONVERGED),
        (made(slope=1.01 * REST), None, None, V.UNDERTRAINED),
        (made(slope=1.01 * REST), 1.01 * WORTH, None, V.UNDERTRAINED),
        (made(slope=1.01 * REST), 0.0, None, V.UNDERTRAINED),
        (made(), 1.01 * WORTH, None, V.UNDERTRAINED),
        (made(), WORTH, None, V.CONVERGED),
        (made(directions=3), None, None, V.RANK_LIMITED),
        (made(directions=3), WORTH, 1.01 * WORTH, V.RANK_LIMITED),
        (made(directions=3), None, 0.0, V.RANK_LIMITED),  # one step is a lower bound: it takes nothing back
        (made(), None, WORTH, V.CONVERGED),
        (made(), None, 1.01 * WORTH, V.RANK_LIMITED),
        (made(directions=3, used=3), None, None, V.UNDERTRAINED),
        (made(directions=3, slope=1.01 * REST), None, 1.01 * WORTH, V.UNDERTRAINED),
        (made(used=3), None, None, V.CONVERGED),
        (made(used=4 // WASTE), None, None, V.WASTEFUL),
        (made(used=0, rank=1), None, None, V.CONVERGED),
        (made(slope=2 * REST, lam=0.0), None, WORTH, V.UNDECIDED),  # the slope is relative to steepest = 2
        (made(slope=2 * REST, lam=0.0), None, 1.01 * WORTH, V.RANK_LIMITED),
        (made(slope=2.02 * REST, lam=0.0), None, 0.0, V.UNDERTRAINED),
        (made(directions=3, lam=0.0), None, None, V.UNDECIDED),
        (made(directions=3, lam=0.0), None, 1.01 * WORTH, V.RANK_LIMITED),
        (made(slope=float("nan")), None, None, V.UNDECIDED),
        (made(), float("nan"), None, V.UNDECIDED),
        (made(), None, float("inf"), V.UNDECIDED),
    ],
)
def test_each_threshold_decides_on_both_of_its_sides(
    found: FirstOrder, remaining: float | None, gain: float | None, verdict: TrainingVerdict
) -> None:
    judged = judge(found, remaining=remaining, gain=gain)
    assert judged.verdict is verdict


def test_the_sentence_states_numbers_and_thresholds() -> None:
    judged = judge(made(directions=3), remaining=0.002, gain=0.25)
    assert judged.sentence() == (
        f"{V.RANK_LIMITED.value} (Uncancelled force 0.000, at rest up to 0.02; further directions 3, a step "
        "along the gradient gains at least 0.20% (threshold 1%), a further direction gains at least 25.00% "
        "(threshold 1%); rank 4, needed 4, wasteful from 2 times.)"
    )
    assert isinstance(judged, Judgement)
    assert "gains" not in judge(made()).sentence().removeprefix(V.CONVERGED.value)
    # what a step gained is a lower bound: rounded down, and told as it is where it is no number
    assert "gains at least 0.19% (" in judge(made(), remaining=0.00199).sentence()
    assert "gains at least nan (" in judge(made(), remaining=float("nan")).sentence()
