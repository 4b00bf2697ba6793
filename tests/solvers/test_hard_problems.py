"""Every solver on problems at the ends of float64: an answer or an honest status, never anything else."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from hard_problems import common_gradients, hard_problems, one_example, separate_layers
from random_problems import random_problem
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.path import solve_path
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Solution, Solver, Status
from tangentlora.theory.certificate import certify

SOLVERS: dict[str, Solver] = {
    "certified": Certified(),
    "proximal": Proximal(epochs=40),
    "lbfgs": Descent(rank=3, method="lbfgs", epochs=40),
    "sgd": Descent(rank=3, epochs=40),
    "adamw": Descent(rank=3, method="adamw", epochs=40),
}
NAMES = list(hard_problems())

table = cache(hard_problems)


def assert_honest(solution: Solution, tolerance: float = 1e-6) -> None:
    """Check the answer's numbers, that it is the best of the history, and its status by a certificate."""
    certificate = certify(solution.problem, solution, tolerance)
    assert math.isfinite(solution.objective)
    assert not math.isnan(certificate.gap)
    assert all(u.isfinite().all() and v.isfinite().all() for u, v in solution.factors.values())
    objectives = [record.objective for record in solution.history]
    assert all(map(math.isfinite, objectives))
    proved = solution.status is Status.GLOBAL_OPTIMUM
    slack = 1e-12 * max(1.0, min(objectives)) + certificate.rounding
    slack += tolerance * max(1.0, certificate.objective) if proved else 0.0
    assert solution.objective <= min(objectives) + slack
    if proved:
        assert certificate.certified


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_or_an_honest_status(name: str, solver: str) -> None:
    assert_honest(SOLVERS[solver].solve(table()[name]))


@pytest.mark.parametrize("name", NAMES[::4])
def test_a_path_to_there(name: str) -> None:
    problem = table()[name]
    lams = [lam for lam in (100 * problem.lam, 10 * problem.lam, problem.lam) if math.isfinite(lam)]
    for solution in solve_path(problem, lams):
        assert_honest(solution)


@pytest.mark.parametrize("lam", [1e-15, 1e-16, 1e-17, 1e-18])
@pytest.mark.parametrize("seed", range(6))
def test_one_example_at_tiny_penalties_is_solved(seed: int, lam: float) -> None:
    solution = Certified().solve(one_example(seed, lam))
    assert_honest(solution)
    assert solution.status is Status.GLOBAL_OPTIMUM
    assert solution.objective < 1e-12


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
@pytest.mark.parametrize("scale", [1e-6, 1e8])
def test_layers_of_other_scales_are_not_cut_off(loss: str, scale: float) -> None:
    # each layer alone sees half of the examples, so min P is the sum of two problems of one layer each
    problem = separate_layers(loss, scale, 0.01 if scale > 1 else 1e-8)
    solution = Certified().solve(problem)
    assert_honest(solution)
    halves = 0.0
    for t, name in enumerate(problem.jacobian.shapes):
        index = [i for i in range(len(problem.f0)) if i % 2 == t]
        rows = problem.jacobian.select(index).only([name])
        half = Problem(rows, problem.f0[index], problem.y[index], problem.loss, 2 * problem.lam)
        halves += 0.5 * Certified(1e-9).solve(half).objective
    assert solution.objective == pytest.approx(halves, abs=1e-6 * max(1.0, halves))
    used = {t: u.shape[1] for t, (u, _) in solution.factors.items()}
    assert solution.ranks == certify(problem, solution).ranks == used
    assert all(r > 0 for r in used.values())


@pytest.mark.parametrize("size", [1e3, 1e6, 1e8])
@pytest.mark.parametrize("lam", [0.05])
def test_the_status_waits_for_the_certificate(size: float, lam: float) -> None:
    problem = common_gradients("cross_entropy", size, lam)
    solution = Certified().solve(problem)
    certified = certify(problem, solution).certified
    assert (solution.status is Status.GLOBAL_OPTIMUM) == certified
    for other in solve_path(problem, (2 * lam, lam)):
        assert_honest(other)


@pytest.mark.parametrize("solver", SOLVERS)
def test_numbers_that_float64_has_no_objective_for_are_refused(solver: str) -> None:
    problem = random_problem(0, "squared")
    beyond = Problem(problem.jacobian, 1e300 * problem.f0, problem.y, problem.loss, problem.lam)
    with pytest.raises(
        InputError, match="expected a finite number: the outputs, labels or λ times the start"
    ):
        SOLVERS[solver].solve(beyond)


def test_newton_s_method_never_leaves_for_a_saddle_where_rounding_hides_its_steps() -> None:
    solution = Certified().solve(one_example(0, 1e-18))
    best = min(record.objective for record in solution.history)
    assert solution.objective == pytest.approx(best)
    assert best < 1e-12 < float(solution.history[0].objective)
    assert torch.isfinite(torch.tensor([record.gap for record in solution.history])).all()
