from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from known_problems import known_problem
from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import product_singular_values
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.newton import newton
from tangentlora.theory.certificate import Certificate, certify
from tangentlora.theory.rank_rules import (
    RankRule,
    arrived,
    capacity_rank,
    least_rank,
    proved_distance,
    proved_height,
    rank_rules,
)


def by_name(rules: tuple[RankRule, ...], start: str) -> RankRule:
    (found,) = (rule for rule in rules if rule.name.startswith(start))
    return found


def test_the_least_rank_is_the_least() -> None:
    for count in range(400):
        rank = least_rank(count)
        assert rank * (rank + 1) // 2 > count >= (rank - 1) * rank // 2
    assert least_rank(32) == 8  # binary, 16 shots: 36 > 32, and 28 is not
    assert least_rank(10**18) * (least_rank(10**18) + 1) // 2 > 10**18


def test_the_capacity_is_the_dimension_of_the_matrices_of_a_rank() -> None:
    """The tangent space of the matrices of rank r, {Uvᵀ + uVᵀ}, has dimension r(m+n) − r²."""
    m, n = 5, 4
    for rank in range(1, 5):
        u, v = torch.randn(m, rank, dtype=torch.float64), torch.randn(n, rank, dtype=torch.float64)
        directions = [e @ v.T for e in units(m, rank)] + [u @ e.T for e in units(n, rank)]
        tangent = torch.stack([direction.flatten() for direction in directions])
        dimension = int(torch.linalg.matrix_rank(tangent))
        assert dimension == rank * (m + n) - rank**2
        assert capacity_rank([(m, n)], dimension - 1) == rank
        assert capacity_rank([(m, n)], dimension) == (rank + 1 if rank < 4 else None)


def units(side: int, rank: int) -> list[torch.Tensor]:
    return list(torch.eye(side * rank, dtype=torch.float64).reshape(-1, side, rank))


def test_layers_add_up_and_small_ones_stop_growing() -> None:
    assert capacity_rank([(5, 4), (5, 4)], 2 * 8 - 1) == 1
    assert capacity_rank([(5, 4), (2, 9)], 8 + 10 - 1) == 1
    assert capacity_rank([(5, 4), (2, 9)], 20 + 18 - 1) == 4  # all that there is
    assert capacity_rank([(5, 4), (2, 9)], 20 + 18) is None


def test_the_rules_count_what_they_name() -> None:
    problem = random_problem(0, n_examples=8, n_outputs=3)
    rules = rank_rules(problem)
    assert by_name(rules, "r(r+1)/2 > KN = 24").rank == 7
    assert by_name(rules, "r(r+1)/2 > (K−1)N = 16").rank == 6
    assert by_name(rules, f"r(r+1)/2 > c = {problem.constraints}").rank == least_rank(problem.constraints)
    assert by_name(rules, "r ≥ min(m, n)").rank == 5
    assert by_name(rules, "r(m+n) − r² > 1.35 KN = 32.4").rank == 2
    assert by_name(rules, "the rank of a certified optimum").rank is None
    assert by_name(rules, "the least rank of a run").rank is None
    assert all(rule.assumption and rule.proves for rule in rules)


@pytest.mark.parametrize("loss", ["logistic", "squared"])
def test_only_cross_entropy_has_contrasts(loss: str) -> None:
    assert not [rule for rule in rank_rules(random_problem(0, loss)) if "K−1" in rule.name]


def test_repeated_examples_are_seen_by_the_measured_count_only() -> None:
    problem = random_problem(0, n_examples=2)
    repeated = Problem(
        problem.jacobian.select([0, 1] * 20),
        problem.f0.repeat(20, 1),
        problem.y.repeat(20),
        problem.loss,
        0.1,
    )
    rules = rank_rules(repeated)
    assert by_name(rules, "r(r+1)/2 > KN = 120").rank == 16
    assert by_name(rules, "r(r+1)/2 > c = 4").rank == 3


def test_certificates_say_what_rank_is_enough() -> None:
    problem = known_problem("squared, three layers")
    optimum = certify(problem, Certified(tolerance=1e-10).solve(problem))
    poor = certify(problem, problem.zero())
    rules = rank_rules(problem, optimum, {1: poor, 4: optimum, 8: optimum})
    assert by_name(rules, "the rank of a certified optimum").rank == max(optimum.ranks.values()) == 2
    assert by_name(rules, "the least rank of a run").rank == 4
    assert by_name(rank_rules(problem, poor, {1: poor}), "the rank of a certified optimum").rank is None
    assert by_name(rank_rules(problem, poor, {1: poor}), "the least rank of a run").rank is None


def made(objective: float, lower_bound: float, rounding: float = 0.0) -> Certificate:
    """Return a certificate with these numbers."""
    problem = random_problem(0)
    gap = objective - lower_bound
    return replace(
        certify(problem, problem.zero()),
        objective=objective,
        lower_bound=lower_bound,
        gap=gap,
        rounding=rounding,
        tolerance=1e-3,
    )


def test_the_better_lower_bound_decides() -> None:
    optimum, run = made(0.5, 0.4999), made(0.5002, 0.4)
    assert proved_distance(run) == pytest.approx(0.1002)
    assert proved_distance(run, optimum) == pytest.approx(0.0003)
    assert proved_distance(made(0.5002, 0.50015), optimum) == pytest.approx(0.00005)
    assert arrived(optimum, {2: made(0.51, 0.5), 4: run, 8: run}) == 4
    assert arrived(None, {2: made(0.51, 0.5), 4: run, 8: run}) is None
    assert arrived(optimum, {}) is None


def test_a_better_answer_shows_how_high_a_run_is() -> None:
    assert proved_height(made(0.6, 0.4), made(0.5, 0.4999)) == pytest.approx(0.1)
    assert proved_height(made(0.6, 0.4, 0.01), made(0.5, 0.4999, 0.02)) == pytest.approx(0.07)
    assert proved_height(made(30.0, 4.0), made(27.0, 26.0)) == pytest.approx(0.1)
    assert proved_height(made(0.5, 0.4), made(0.6, 0.4)) == 0.0


def test_rounding_and_size_count() -> None:
    assert proved_distance(made(0.5, 0.4999, 0.002), made(0.5, 0.4999, 0.001)) == pytest.approx(0.0021)
    assert proved_distance(made(50.0, 49.0)) == pytest.approx(0.02)
    assert arrived(None, {1: made(0.5, 0.4995, 0.001)}) is None
    assert proved_distance(made(math.nan, 0.1)) == math.inf
    assert arrived(made(0.5, math.nan), {1: made(math.inf, 0.1)}) is None


@pytest.mark.parametrize("loss", ["cross_entropy", "logistic", "squared"])
def test_at_full_rank_a_point_of_second_order_is_the_optimum(loss: str) -> None:
    """The rule r ≥ min(m, n): Newton's method comes to rest at points of second order."""
    for seed in range(3):
        problem = random_problem(seed, loss, lam=0.1, shapes=((3, 5), (4, 3)))
        start = random_factors(problem.jacobian, (3, 3))
        rested = newton(problem.contrasted, start, tolerance=1e-10, max_steps=500).factors
        assert certify(problem, rested).gap <= 1e-7
        low = {name: (u[:, :1], v[:, :1]) for name, (u, v) in start.items()}
        short = newton(problem.contrasted, low, tolerance=1e-10, max_steps=500).factors
        assert all(len(product_singular_values(u, v)) == 1 for u, v in short.values())
        assert certify(problem, short).objective >= certify(problem, rested).objective - 1e-9
