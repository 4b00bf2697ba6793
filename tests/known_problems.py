"""A table of small random problems whose optimum an interior-point method knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from random_problems import random_problem
from tangentlora.problem.objective import Problem

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Known:
    """What makes a problem; `share` is λ over the least λ at which δ = 0 is optimal."""

    loss: str
    n_examples: int
    n_outputs: int
    shapes: Shapes
    share: float


KNOWN: dict[str, Known] = {
    "cross_entropy, one layer": Known("cross_entropy", 7, 3, ((6, 5),), 0.2),
    "cross_entropy, two classes": Known("cross_entropy", 8, 2, ((5, 7), (3, 4)), 0.05),
    "cross_entropy, three layers": Known("cross_entropy", 6, 4, ((4, 5), (5, 3), (3, 4)), 0.3),
    "cross_entropy, five classes": Known("cross_entropy", 6, 5, ((6, 4), (4, 4)), 0.1),
    "cross_entropy, nearly zero": Known("cross_entropy", 7, 3, ((6, 5),), 0.95),
    "logistic, one layer": Known("logistic", 9, 1, ((6, 5),), 0.1),
    "logistic, three layers": Known("logistic", 8, 1, ((3, 8), (5, 5), (7, 2)), 0.3),
    "logistic, little penalty": Known("logistic", 6, 1, ((5, 4), (4, 3)), 0.01),
    "squared, one output": Known("squared", 8, 1, ((6, 5),), 0.1),
    "squared, five outputs": Known("squared", 6, 5, ((6, 7),), 0.2),
    "squared, three layers": Known("squared", 6, 2, ((4, 5), (5, 3), (3, 4)), 0.02),
}


@cache
def known_problem(name: str) -> Problem:
    """Return a problem of the table; its seed is its place there."""
    known = KNOWN[name]
    problem = random_problem(
        list(KNOWN).index(name),
        known.loss,
        n_examples=known.n_examples,
        n_outputs=known.n_outputs,
        shapes=known.shapes,
    )
    return replace(problem, lam=known.share * largest_lam(problem))


@cache
def known_optimum(name: str) -> float:
    """Return min P of a problem of the table, good to about 1e-9."""
    import cvxpy

    return solve_by_cvxpy(
        known_problem(name), solver=cvxpy.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11
    )


def largest_lam(problem: Problem) -> float:
    """Return max_t ‖∇_t L̂(0)‖₂, from which λ on δ = 0 is optimal."""
    M = problem.jacobian.adjoint(problem.dual_point(problem.f0))
    return max(float(np.linalg.norm(block.numpy(), 2)) for block in M.values())


def solve_by_cvxpy(problem: Problem, **options: Any) -> float:
    """Return min P by a general convex solver, stated from the dense Jacobian."""
    import cvxpy as cp

    n, k = problem.f0.shape
    deltas = {name: cp.Variable(shape) for name, shape in problem.jacobian.shapes.items()}
    z = problem.f0.numpy().reshape(-1)
    for name, blocks in problem.jacobian.dense().items():
        z = z + blocks.numpy().reshape(n * k, -1) @ cp.vec(deltas[name], order="C")
    z = cp.reshape(z, (n, k), order="C")
    y = problem.y.numpy()
    if problem.loss.name == "cross_entropy":
        losses = cp.sum(cp.log_sum_exp(z, axis=1)) - cp.sum(cp.multiply(z, np.eye(k)[y]))
    elif problem.loss.name == "logistic":
        losses = cp.sum(cp.logistic(cp.multiply(-y[:, None], z)))
    else:
        losses = 0.5 * cp.sum_squares(z - y)
    penalty = sum(cp.normNuc(delta) for delta in deltas.values())
    return float(cp.Problem(cp.Minimize(losses / n + problem.lam * penalty)).solve(**options))


def rescaled(problem: Problem, scales: Sequence[float], f0_scale: float = 1.0) -> Problem:
    """Return the problem with every example's Jacobian scaled, the scales in turn, and f0 scaled."""
    factor = torch.tensor(scales, dtype=torch.float64)
    layers = {
        name: replace(rows, x=rows.x * factor[rows.example % len(factor)].unsqueeze(1))
        for name, rows in problem.jacobian.layers.items()
    }
    return replace(problem, jacobian=replace(problem.jacobian, layers=layers), f0=f0_scale * problem.f0)
