from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest

from known_problems import largest_lam
from random_problems import random_problem
from spurious_problems import SPURIOUS, Planted
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.landscape import Landscape, Outcome
from tangentlora.studies.rest import Start, rest
from tangentlora.studies.survey import survey
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


def test_the_study_says_so_where_its_starts_do_not_find_the_planted_minima() -> None:
    for case in PLANTED:
        blind = survey(case.problem, (1,), size=1e-4, starts=[Start.SPECTRAL, Start.ZERO])
        assert blind.counts(1) == {Outcome.RANK_LIMITED: 2}
        assert "no run was made: ask for rank 3 too; below, 0 of 2 rested at" in blind.sentence()


def test_a_run_above_the_threshold_that_proves_nothing_is_not_passed_over() -> None:
    stuck = survey(SPURIOUS.problem, (3,), size=1e-4, starts=[Start.ZERO], escapes=0)
    assert stuck.counts(3) == {Outcome.SADDLE: 1}
    assert "while 1 came to no minimum that could be proved" in stuck.sentence()


def test_minima_table_and_description_tell_the_same(planted: list[Landscape]) -> None:
    landscape, case = planted[0], PLANTED[0]
    lower, upper = landscape.minima(1)
    assert (lower.outcome, upper.outcome) == (Outcome.RANK_LIMITED, Outcome.SPURIOUS_MINIMUM)
    assert lower.value == pytest.approx(case.value(1), abs=1e-3)
    assert upper.value == pytest.approx(case.value(-1), abs=1e-3)
    assert lower.runs + upper.runs == len(Start)
    table = landscape.table()
    assert all(len(line) <= 100 for line in table.splitlines())
    assert f"rank 1: {upper.value:.6f}, spurious minimum ({upper.runs} run" in table
    assert f"rank 3: {landscape.minima(3)[0].value:.6f}, global optimum (5 runs)" in table
    assert landscape.sentence() in " ".join(table.split())
    for threshold in ("at most 1e-6·max(1, F_Π)", "no curvature below −1e-6", "‖Π‖₂ = 0.0001"):
        assert threshold in " ".join(table.split())
    described = json.loads(json.dumps(landscape.describe(), allow_nan=False))
    first, last = described["ranks"]
    assert not first["theorem_applies"]
    assert first["outcomes"]["spurious minimum"] == upper.runs
    assert first["minima"][1]["value"] == upper.value
    assert last["theorem_applies"]
    assert last["outcomes"]["global optimum"] == len(Start)
    assert described["against"] == 0
    assert [run["rank"] for run in described["runs"]] == [1] * 5 + [3] * 5


def test_an_unknown_error_of_the_curvature_is_written_as_null(planted: list[Landscape]) -> None:
    run = planted[0].runs[0]
    unknown = replace(run, point=replace(run.point, error=math.inf))
    described = replace(planted[0], runs=(unknown,)).describe()
    assert described["runs"][0]["curvature_error"] is None


def test_only_random_starts_are_repeated() -> None:
    landscape = survey(SPURIOUS.problem, (1, 2), size=1e-4, repeats=2)
    found = Counter((run.rank, run.start) for run in landscape.runs)
    repeated = {pair for pair, count in found.items() if count == 2}
    random = {(r, start) for r in (1, 2) for start in (Start.PAPER, Start.LARGE)} | {(2, Start.SADDLE)}
    assert repeated == random
    assert len(landscape.runs) == 15


@pytest.mark.parametrize(
    ("ranks", "size", "repeats", "lam", "message"),
    [
        ((), 1e-4, 1, 0.02, "got the ranks (none), expected at least one"),
        ((2, 0), 1e-4, 1, 0.02, "none below 1: change --ranks"),
        ((1,), 0.0, 1, 0.02, "got ‖Π‖₂ = 0.0, expected a positive number"),
        ((1,), math.nan, 1, 0.02, "got ‖Π‖₂ = nan, expected a positive number"),
        ((1,), 1e-4, 0, 0.02, "got 0 repeats of each random start, expected at least 1"),
        ((1,), 1e-4, 1, 0.0, "got λ = 0, expected λ > 0"),
    ],
)
def test_a_survey_refuses_what_it_cannot_do(
    ranks: tuple[int, ...], size: float, repeats: int, lam: float, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        survey(SPURIOUS.problem.with_lam(lam), ranks, size=size, repeats=repeats)


def test_what_has_not_come_to_rest_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentlora.studies import survey as module

    monkeypatch.setattr(module, "rest", lambda problem, factors, noise: factors)
    found = survey(SPURIOUS.problem, (3,), size=1e-4, repeats=1, starts=[Start.LARGE])
    assert found.counts(3) == {Outcome.UNDECIDED: 1}
