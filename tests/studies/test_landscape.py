from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from known_problems import largest_lam
from random_problems import random_problem
from spurious_problems import SPURIOUS, Planted
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.landscape import Landscape, Outcome, survey
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.stationarity import Kind, classify

PLANTED = [SPURIOUS, Planted(seed=1, m=5, n=4), Planted(w=0.1, t=0.3, lam=0.01, seed=2)]


@pytest.fixture(scope="module")
def planted() -> list[Landscape]:
    return [survey(case.problem, (1, 3), size=1e-4, repeats=1) for case in PLANTED]


def hard_problem(loss: str, seed: int, shapes: tuple[tuple[int, int], ...] = ((5, 5),)) -> Problem:
    problem = random_problem(
        seed, loss, n_examples=3, n_outputs=2 if loss == "cross_entropy" else 1, shapes=shapes
    )
    return problem.with_lam(0.05 * largest_lam(problem))


def test_below_the_threshold_planted_minima_are_found_and_named(planted: list[Landscape]) -> None:
    for case, landscape in zip(PLANTED, planted, strict=True):
        assert landscape.constraints == 4
        assert landscape.threshold == 3
        spurious = [run for run in landscape.runs if run.outcome is Outcome.SPURIOUS_MINIMUM]
        assert spurious
        for run in spurious:
            assert run.rank == 1
            assert run.point.kind is Kind.FULL_RANK_SOSP
            assert run.value == pytest.approx(case.value(-1), abs=1e-3)
            assert run.gap > 1e-3
        lowest = min(run.value for run in landscape.runs if run.rank == 1)
        assert lowest == pytest.approx(case.value(1), abs=1e-3)
        assert landscape.counts(1)[Outcome.SPURIOUS_MINIMUM] == len(spurious)


@pytest.mark.parametrize("case", PLANTED)
def test_a_small_perturbation_moves_a_planted_minimum_and_does_not_remove_it(case: Planted) -> None:
    problem, point = case.problem, case.at(-1)
    noise = perturbation(problem.jacobian.shapes, 1e-4, 0, problem.f0)
    rested = rest(problem, point, noise)
    found = classify(problem, rested, noise=noise)
    assert found.kind is Kind.FULL_RANK_SOSP
    assert found.curvature > 1e-3
    assert 0 < float((rested["layer"][0] - point["layer"][0]).norm()) < 1e-2


def test_above_the_threshold_they_are_gone(planted: list[Landscape]) -> None:
    for landscape in planted:
        assert landscape.counts(3) == {Outcome.GLOBAL_OPTIMUM: len(Start)}
        assert landscape.against == ()
        assert 0 <= landscape.excess <= landscape.cost
        assert "5 of 5 runs reached the optimum and 0 rested at another" in landscape.sentence()
        # and the study says so where the count of the theorem is wrong
        wrong = replace(landscape, threshold=1)
        assert wrong.against
        assert f"and {len(wrong.against)} rested at another minimum" in wrong.sentence()


@pytest.mark.parametrize("shapes", [((5, 5),), ((4, 3), (3, 4))])
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_above_the_threshold_every_run_reaches_the_optimum(
    loss: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    problem = hard_problem(loss, 1, shapes)
    landscape = survey(problem, (3,), size=1e-3 * problem.lam, repeats=1)
    assert landscape.threshold == 3  # 3·4/2 > c = 3
    assert landscape.counts(3) == {Outcome.GLOBAL_OPTIMUM: len(Start)}
    for run in landscape.runs:
        assert run.point.gradient < 1e-9
        assert run.point.perturbed
        assert (run.left > 0) or run.start is not Start.ZERO


def test_a_run_that_may_not_leave_saddles_ends_at_one() -> None:
    stuck = survey(SPURIOUS.problem, (2,), size=1e-4, repeats=1, starts=[Start.ZERO, Start.SADDLE], escapes=0)
    assert stuck.counts(2) == {Outcome.SADDLE: 2}
    assert all(run.left == 0 for run in stuck.runs)
    assert stuck.against == ()
    moving = survey(SPURIOUS.problem, (2,), size=1e-4, repeats=1, starts=[Start.ZERO, Start.SADDLE])
    assert moving.counts(2) == {Outcome.GLOBAL_OPTIMUM: 2}
    assert all(run.left > 0 for run in moving.runs)


def test_a_minimum_with_nothing_lower_at_its_rank_is_limited_by_rank_and_not_spurious() -> None:
    landscape = survey(SPURIOUS.problem, (1,), size=1e-4, repeats=1, starts=[Start.SPECTRAL])
    assert landscape.counts(1) == {Outcome.RANK_LIMITED: 1}
    assert replace(landscape, threshold=1).against == landscape.runs


def test_what_has_not_come_to_rest_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.studies import landscape as module

    monkeypatch.setattr(module, "rest", lambda problem, factors, noise: factors)
    found = survey(SPURIOUS.problem, (3,), size=1e-4, repeats=1, starts=[Start.LARGE])
    assert found.counts(3) == {Outcome.UNDECIDED: 1}


@pytest.mark.parametrize("start", Start)
def test_starts_are_what_they_say_and_repeat(start: Start) -> None:
    problem = hard_problem("squared", 2)
    noise = perturbation(problem.jacobian.shapes, 1e-3 * problem.lam, 0, problem.f0)
    first, again = (begin(problem, noise, 3, start, 7) for _ in range(2))
    for t, (u, v) in first.items():
        assert (u.shape[1], v.shape[1]) == (3, 3)
        assert torch.equal(u, again[t][0])
        assert torch.equal(v, again[t][1])
    gradient = float(Hessian(problem, first, noise).gradient.norm())
    assert (gradient < 1e-12) == (start in (Start.ZERO, Start.SADDLE))
    size = max(float(u.abs().max()) for u, _ in first.values())
    assert (size == 0) == (start in (Start.PAPER, Start.ZERO))


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_runs_come_to_rest_to_the_last_digits_and_no_higher_than_they_began(loss: str) -> None:
    problem = hard_problem(loss, 3, ((4, 3), (3, 4)))
    noise = perturbation(problem.jacobian.shapes, 1e-3 * problem.lam, 0, problem.f0)
    start = begin(problem, noise, 2, Start.LARGE, 0)
    before = Hessian(problem, start, noise)
    after = Hessian(problem, rest(problem, start, noise), noise)
    assert float(after.gradient.norm()) < 1e-12 * float(before.gradient.norm())
    assert after.value < before.value
