"""The λ path: every point is the cold answer, starts are near it, and bad grids are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from known_problems import KNOWN, known_problem, largest_lam
from random_problems import LOSSES, random_problem
from tangentlora.blocks import Factors, multiply
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.path import corrected, extrapolated, solve_path, spaced
from tangentlora.solvers.solution import Status


def test_the_grid_is_even_in_the_logarithm() -> None:
    lams = spaced(2.0, 1e-3, 4)
    assert lams == pytest.approx([2.0, 0.2, 0.02, 0.002])
    assert lams[0] == 2.0


@pytest.mark.parametrize(
    ("largest", "fraction", "points", "message"),
    [
        (0.0, 0.1, 5, "got 0.0 as the largest λ"),
        (math.inf, 0.1, 5, "got inf as the largest λ"),
        (1.0, 0.1, 1, "got 1 points down to the fraction 0.1, expected at least 2 points"),
        (1.0, 1.0, 5, "got 5 points down to the fraction 1.0"),
        (1.0, 0.0, 5, "expected at least 2 points and a fraction between 0 and 1"),
    ],
)
def test_impossible_grids_are_refused(largest: float, fraction: float, points: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        spaced(largest, fraction, points)


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.n_outputs != 5])
def test_every_point_is_the_optimum_of_a_cold_start(name: str) -> None:
    problem = known_problem(name)
    lams = spaced(largest_lam(problem) * (1 + 1e-12), 1e-2, 12)
    solutions = list(solve_path(problem, lams))
    assert [solution.problem.lam for solution in solutions] == list(lams)
    assert sum(solutions[0].ranks.values()) == 0
    for solution in solutions:
        cold = Certified().solve(problem.with_lam(solution.problem.lam))
        assert solution.status is Status.GLOBAL_OPTIMUM
        assert problem.with_lam(solution.problem.lam).gap(solution.factors) <= 1e-6 * max(1, cold.objective)
        assert solution.objective == pytest.approx(cold.objective, abs=2e-6)
    objectives = [solution.objective for solution in solutions]
    assert objectives == sorted(objectives, reverse=True)  # min P is increasing in λ


def test_between_changes_of_rank_one_or_two_newton_steps_do() -> None:
    problem = random_problem(1, n_examples=16, shapes=((20, 24), (16, 18)))
    path = list(solve_path(problem, spaced(largest_lam(problem), 1e-2, 30)))
    entered = {
        after.problem.lam
        for before, after in pairwise(path)
        if sum(after.ranks.values()) > sum(before.ranks.values())
    }
    alone = [one for one in path if len(one.history) == 1]
    assert len(alone) >= 30 - 2 * len(entered)
    assert len(entered) >= 3


@pytest.mark.parametrize("verdict", [math.inf, math.nan])
def test_the_judge_decides_when_the_solver_goes_on(verdict: float) -> None:
    problem = known_problem("cross_entropy, one layer")
    lams = spaced(largest_lam(problem), 0.1, 12)
    asked: list[float] = []

    def never(at: Problem, factors: Factors) -> float:
        asked.append(at.lam)
        return verdict

    def always(at: Problem, factors: Factors) -> float:
        return 0.0

    strict, lenient = (list(solve_path(problem, lams, judge=judge)) for judge in (never, always))
    assert len(asked) >= 6
    assert set(asked) <= set(lams)
    free = list(solve_path(problem, lams))
    for ours, other in zip(strict, free, strict=True):
        assert ours.status is Status.GLOBAL_OPTIMUM
        assert ours.history[-1].gap <= 1e-6 * max(1.0, ours.objective)  # the solver's own, not the judge's
        assert ours.objective == pytest.approx(other.objective, abs=1e-6)
    # nobody would let the second column in
    assert max(sum(solution.ranks.values()) for solution in free) > 1
    assert max(sum(solution.ranks.values()) for solution in lenient) == 1


def test_newton_without_safeguard_is_exact_or_says_that_it_failed() -> None:
    problem = random_problem(3, lam=0.1)
    optimum = Certified(1e-12).solve(problem).factors
    near = {name: (1.01 * u, 0.98 * v) for name, (u, v) in optimum.items()}
    found, products = corrected(problem, near, 1e-10)
    assert found is not None
    assert products > 0
    for name, block in multiply(optimum).items():
        torch.testing.assert_close(multiply(found)[name], block, rtol=1e-7, atol=1e-8)
        u, v = found[name]
        torch.testing.assert_close(u.T @ u, v.T @ v)
    assert corrected(problem, problem.zero(), 1e-10) == (None, 0)
    far = {name: (30 * u, 0.1 * v) for name, (u, v) in optimum.items()}
    lost, _ = corrected(problem, far, 1e-10)
    assert lost is None or problem.gap(lost) > -1e-9
    assert corrected(problem, near, 1e-300)[0] is None


def test_columns_that_vanish_are_dropped() -> None:
    problem = random_problem(3, lam=0.1)
    optimum = Certified(1e-12).solve(problem).factors
    wider = {
        name: tuple(torch.cat([w, 1e-3 * torch.ones(len(w), 1, dtype=torch.float64)], 1) for w in pair)
        for name, pair in optimum.items()
    }
    found, _ = corrected(problem, wider, 1e-10)  # type: ignore[arg-type]
    assert found is not None
    assert {name: u.shape[1] for name, (u, _) in found.items()} == {
        name: u.shape[1] for name, (u, _) in optimum.items()
    }


def test_a_tolerance_out_of_reach_is_said() -> None:
    problem = known_problem("squared, three layers")
    *_, last = solve_path(problem, (problem.lam, 0.5 * problem.lam), Certified(tolerance=1e-30))
    assert last.status is Status.PRECISION_REACHED


@pytest.mark.parametrize("lams", [(), (0.1, 0.2), (0.1, 0.1), (0.1, 0.0), (0.1, -1.0)])
def test_paths_that_do_not_fall_are_refused(lams: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="expected positive values, each below the one before"):
        list(solve_path(random_problem(), lams))


@pytest.mark.parametrize("known", [2, 3, 4])
def test_extrapolation_is_exact_for_polynomials_whatever_the_rotation(known: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # orthonormal columns that only grow keep Q_jᵀQ_k diagonal: the nearest rotation undoes the one made
    u0, v0 = (torch.linalg.qr(normal(side, 2)).Q for side in (7, 5))
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)

    def at(t: float) -> tuple[torch.Tensor, torch.Tensor]:
        scale = 1 + rates * t + (0.02 * t**2 if known > 2 else 0.0)
        return u0 * scale, v0 * scale

    points: list[tuple[float, Factors]] = []
    for j in range(known):
        turn = torch.linalg.qr(normal(2, 2)).Q
        u, v = at(float(j))
        points.append((float(j), {"layer": (u @ turn, v @ turn)}))
    found = multiply(extrapolated(points, float(known)))["layer"]
    u, v = at(float(known))
    torch.testing.assert_close(found, u @ v.T)


def test_extrapolation_forgets_what_was_before_a_change_of_rank() -> None:
    one, two = torch.ones(3, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:, :2]
    known = [(0.0, {"layer": (9 * one, one)}), (1.0, {"layer": (two, two)}), (2.0, {"layer": (2 * two, two)})]
    u, v = extrapolated(known, 3.0)["layer"]
    torch.testing.assert_close(u, 3 * two)
    torch.testing.assert_close(v, two)
    u, v = extrapolated(known[:2], 3.0)["layer"]
    torch.testing.assert_close(u, two)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_solver_arrives_from_any_start(loss: str) -> None:
    problem = random_problem(2, loss)
    problem = replace(problem, lam=0.1 * largest_lam(problem))
    cold = Certified().solve(problem)
    generator = torch.Generator().manual_seed(1)
    for r in (0, 1, 4):
        start = {
            name: tuple(torch.randn(side, r, generator=generator, dtype=torch.float64) for side in shape)
            for name, shape in problem.jacobian.shapes.items()
        }
        warm = Certified().solve(problem, start=start)  # type: ignore[arg-type]
        assert warm.status is Status.GLOBAL_OPTIMUM
        assert warm.objective == pytest.approx(cold.objective, abs=1e-6)
    again = Certified().solve(problem, start=cold.factors)
    assert again.epochs == 0
    assert len(again.history) == 1
