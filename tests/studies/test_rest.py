from __future__ import annotations

from typing import Any

import pytest
import torch

from known_problems import largest_lam
from random_problems import random_problem
from spurious_problems import SPURIOUS
from tangentlora.problem.objective import Problem
from tangentlora.solvers.factored import perturbation
from tangentlora.studies import rest as module
from tangentlora.studies.landscape import Outcome
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.studies.survey import survey
from tangentlora.theory import curvature
from tangentlora.theory.hessian import Hessian


def hard_problem(loss: str, seed: int, shapes: tuple[tuple[int, int], ...] = ((5, 5),)) -> Problem:
    """Return a problem of c = 3 at a λ small enough that its landscape is curved."""
    problem = random_problem(
        seed, loss, n_examples=3, n_outputs=2 if loss == "cross_entropy" else 1, shapes=shapes
    )
    return problem.with_lam(0.05 * largest_lam(problem))


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


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_without_the_matrix_runs_rest_where_they_rest_with_it(
    loss: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = hard_problem(loss, 3, ((4, 3), (3, 4)))
    noise = perturbation(problem.jacobian.shapes, 1e-3 * problem.lam, 0, problem.f0)
    start = begin(problem, noise, rank, Start.LARGE, 0)
    exact = rest(problem, start, noise)
    monkeypatch.setattr(module, "DENSE", 0)
    found = rest(problem, start, noise)
    for t, (u, v) in exact.items():  # the factors themselves may differ by a rotation
        torch.testing.assert_close(found[t][0] @ found[t][1].T, u @ v.T, rtol=0, atol=1e-9)
    before = Hessian(problem, start, noise)
    assert float(Hessian(problem, found, noise).gradient.norm()) < 1e-12 * float(before.gradient.norm())


def test_without_the_matrix_a_study_names_the_same_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = (Start.PAPER, Start.LARGE, Start.ZERO)
    exact = survey(SPURIOUS.problem, (1, 3), size=1e-4, repeats=1, starts=starts)
    monkeypatch.setattr(module, "DENSE", 0)
    monkeypatch.setattr(curvature, "DENSE", 0)
    found = survey(SPURIOUS.problem, (1, 3), size=1e-4, repeats=1, starts=starts)
    assert [run.outcome for run in found.runs] == [run.outcome for run in exact.runs]
    assert Outcome.SPURIOUS_MINIMUM in found.counts(1)
    for one, other in zip(exact.runs, found.runs, strict=True):
        assert other.value == pytest.approx(one.value, abs=1e-12)
        assert other.point.kind is one.point.kind
        assert other.point.curvature == pytest.approx(one.point.curvature, abs=1e-6)


def test_a_matrix_free_polish_that_is_cut_short_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = hard_problem("squared", 3, ((4, 3), (3, 4)))
    noise = perturbation(problem.jacobian.shapes, 1e-3 * problem.lam, 0, problem.f0)
    start = begin(problem, noise, 2, Start.LARGE, 0)
    monkeypatch.setattr(module, "DENSE", 0)
    monkeypatch.setattr(module, "_POLISH", 0)
    rough = Hessian(problem, rest(problem, start, noise), noise)
    assert float(rough.gradient.norm()) > 1e-12 * float(Hessian(problem, start, noise).gradient.norm())


def test_a_descent_that_ends_short_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = hard_problem("logistic", 3)
    noise = perturbation(problem.jacobian.shapes, 1e-3 * problem.lam, 0, problem.f0)
    start = begin(problem, noise, 2, Start.LARGE, 0)
    minimize, ends = module.minimize, []

    def short(*args: Any, options: dict[str, Any], **kwargs: Any) -> Any:
        ends.append(minimize(*args, options=options | {"maxiter": 12}, **kwargs))
        return ends[-1]

    monkeypatch.setattr(module, "minimize", short)
    after = Hessian(problem, rest(problem, start, noise), noise)
    assert len(ends) > 2
    assert abs(ends[0].jac).max() > 1e-6  # the first of them was not at rest
    assert float(after.gradient.norm()) < 1e-10


def test_a_run_whose_line_search_failed_is_decided() -> None:
    problem = random_problem(143, "logistic", n_examples=6, shapes=((4, 5), (5, 4)))
    problem = problem.with_lam(0.02 * largest_lam(problem))
    size = 1e-3 * problem.lam
    (run,) = survey(problem, [4], size=size, starts=(Start.ZERO,), seed=43).runs
    assert run.outcome is Outcome.GLOBAL_OPTIMUM
