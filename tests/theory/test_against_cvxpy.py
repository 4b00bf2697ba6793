"""Optimum, objective and lower bound against cvxpy's interior-point and operator-splitting solvers."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
import torch

from random_jacobians import random_factors
from random_problems import random_problem
from tangentlora import Certified, Problem, certify

SHAPES = {1: ((6, 5),), 2: ((6, 5), (4, 7)), 3: ((4, 5), (5, 3), (3, 4))}
SOLVERS = {
    "CLARABEL": {"solver": cp.CLARABEL, "tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10},
    "SCS": {"solver": cp.SCS, "eps_abs": 1e-9, "eps_rel": 1e-9, "max_iters": 100_000},
}


def problem_of(kind: str, layers: int, seed: int) -> Problem:
    """Return a small random problem with λ at a fifth of the value from which 0 is optimal."""
    problem = random_problem(seed, kind, shapes=SHAPES[layers])
    M = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    largest = max(float(torch.linalg.matrix_norm(block, 2)) for block in M.values())
    return replace(problem, lam=0.2 * largest)


def reference(problem: Problem, options: dict) -> float:
    """Return min P by cvxpy, stated from the dense Jacobian."""
    n, k = problem.f0.shape
    deltas = {name: cp.Variable(shape) for name, shape in problem.jacobian.shapes.items()}
    z = problem.f0.numpy().reshape(-1)
    for name, blocks in problem.jacobian.dense().items():
        z = z + blocks.numpy().reshape(n * k, -1) @ cp.vec(deltas[name], order="C")
    y = problem.y.numpy()
    if problem.loss.name == "cross_entropy":
        rows = cp.reshape(z, (n, k), order="C")
        losses = cp.log_sum_exp(rows, axis=1) - cp.sum(cp.multiply(rows, np.eye(k)[y]), axis=1)
    elif problem.loss.name == "logistic":
        losses = cp.logistic(cp.multiply(-y, z))
    else:
        losses = 0.5 * cp.square(z - y.reshape(-1))
    penalty = sum(cp.normNuc(delta) for delta in deltas.values())
    objective = cp.Problem(cp.Minimize(cp.sum(losses) / n + problem.lam * penalty))
    return float(objective.solve(**options))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("layers", SHAPES)
@pytest.mark.parametrize("kind", ["cross_entropy", "logistic", "squared"])
def test_certified_objective_and_bound_are_the_optimum(kind, layers, solver):
    problem = problem_of(kind, layers, seed=10 * layers)
    optimum = reference(problem, SOLVERS[solver])
    solution = Certified().solve(problem)
    certificate = certify(problem, solution)
    assert certificate.certified
    assert abs(certificate.objective - optimum) <= 1e-6
    assert abs(certificate.lower_bound - optimum) <= 1e-6
    assert sum(certificate.ranks.values()) > 0


@pytest.mark.parametrize("kind", ["cross_entropy", "logistic", "squared"])
def test_the_gap_bounds_the_true_distance_anywhere(kind):
    problem = problem_of(kind, 2, seed=5)
    optimum = reference(problem, SOLVERS["CLARABEL"])
    for scale in (0.0, 1e-3, 0.1, 1.0):
        drawn = random_factors(problem.jacobian, ranks=(2, 3))
        factors = {name: (scale * u, scale * v) for name, (u, v) in drawn.items()}
        certificate = certify(problem, factors)
        distance = certificate.objective - optimum
        assert certificate.gap + certificate.rounding >= distance - 1e-8
        assert certificate.factored_gap >= distance - 1e-8
        assert certificate.lower_bound <= optimum + 1e-8
        assert certificate.certified == (distance <= 1e-6)


def test_a_wrong_answer_is_not_certified():
    problem = problem_of("cross_entropy", 1, seed=1)
    factors = Certified().solve(problem).factors
    assert certify(problem, factors).certified
    assert not certify(problem, {name: (1.01 * u, v) for name, (u, v) in factors.items()}).certified
