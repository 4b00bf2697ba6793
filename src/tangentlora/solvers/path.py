"""The λ path: certified answers from the λ at which δ = 0 is optimal down to a fraction of it.

Neighbours on the path are near each other, and between two changes of rank the factors are smooth in log λ.
So each solve starts from the answers before it, extrapolated; Newton's method alone closes the gap, unless a
new column has to enter: then the certified solver goes on from there.
Derived; docs/theory.md, "The λ path".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.progress import bar
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Record, Solution, Status
from tangentlora.solvers.threads import fitting_threads

_KNOWN = 4
"""Answers that an extrapolation uses: a cubic in log λ."""

Judge = Callable[[Problem, Factors], float]
"""Returns the gap of factors relative to max(1, P): a certificate's is a proof, `Problem.gap` an estimate."""


def spaced(largest: float, fraction: float, points: int) -> tuple[float, ...]:
    """Return λ_j = largest · fraction^(j/(points−1)), j = 0 … points−1: even steps in log λ, largest first.

    Raises InputError for a `largest` that is not positive, under two points, or a fraction outside (0, 1).
    """
    if not 0 < largest < math.inf:
        raise InputError(
            f"got {largest} as the largest λ, expected a positive number: where the gradient at the "
            "pretrained weights is zero, δ = 0 is optimal at every λ, so use other data or other targets"
        )
    if points < 2 or not 0 < fraction < 1:
        raise InputError(
            f"got {points} points down to the fraction {fraction}, expected at least 2 points and a fraction "
            "between 0 and 1: change the points or the fraction"
        )
    return tuple(largest * fraction ** (j / (points - 1)) for j in range(points))


def solve_path(
    problem: Problem,
    lams: Sequence[float],
    solver: Certified | None = None,
    judge: Judge | None = None,
    *,
    progress: bool = False,
) -> Iterator[Solution]:
    """Yield the answer to `problem.with_lam(λ)` at each λ, in the order given.

    `judge` is asked for the gap of each answer, once where the start was good; by default it is the solver's
    own estimate. The status says whether the gap is within the solver's tolerance, whatever the start was.
    Raises InputError where the λ are not positive and falling.
    """
    if not lams or lams[-1] <= 0 or any(after >= before for before, after in pairwise(lams)):
        raise InputError(
            f"got the path λ = {tuple(lams)}, expected positive values, each below the one before: sort them"
        )
    solver = Certified() if solver is None else solver
    judge = _estimate if judge is None else judge
    known: list[tuple[float, Factors]] = []
    with bar(len(lams), "path", "λ", progress) as shown:
        for lam in lams:
            solution = _step(problem.with_lam(lam), known, solver, judge)
            known = [*known[1 - _KNOWN :], (math.log(lam), solution.factors)]
            yield solution
            shown.update()


def _step(
    problem: Problem, known: Sequence[tuple[float, Factors]], solver: Certified, judge: Judge
) -> Solution:
    """Return the answer by Newton's method from the extrapolated start, by the solver where that fails."""
    if not known:
        return solver.solve(problem)
    inner, span = problem.reduced
    start = extrapolated([(t, span.lower(factors)) for t, factors in known], math.log(problem.lam))
    with fitting_threads(inner.jacobian):
        unit = problem.lam * (2 * half_squares(start)) ** 0.5
        result = newton(inner, start, tolerance=0.1 * solver.tolerance * unit)
    factors = span.lift(result.factors)
    objective, gap = inner.factored_objective(result.factors), judge(problem, factors)
    if gap <= solver.tolerance:
        record = Record(result.products, objective, gap * max(1.0, objective))
        return Solution(problem, factors, Status.GLOBAL_OPTIMUM, (record,), result.products)
    return solver.solve(problem, start=factors)


def _estimate(problem: Problem, factors: Factors) -> float:
    return problem.gap(factors) / max(1.0, problem.objective(factors))


def extrapolated(known: Sequence[tuple[float, Factors]], t: float) -> Factors:
    """Return factors at t from those at known t_j, the last ones nearest, by Lagrange's polynomial.

    Factors are known up to a rotation (uR, vR), so each is first rotated to lie nearest to the last. Those
    before a change of rank are left out, layer by layer.
    """
    last = known[-1][1]
    result: Factors = {}
    for name, (u, v) in last.items():
        target = torch.cat([u, v])
        points = [(s, torch.cat(factors[name])) for s, factors in known]
        first = next(i for i in range(len(points)) if all(q.shape == target.shape for _, q in points[i:]))
        points = [(s, _rotated(q, target)) for s, q in points[first:]]
        stacked = target.new_zeros(target.shape)
        for s, q in points:
            stacked += math.prod((t - other) / (s - other) for other, _ in points if other != s) * q
        result[name] = (stacked[: len(u)], stacked[len(u) :])
    return result


def _rotated(q: Tensor, target: Tensor) -> Tensor:
    """Return qR for the orthogonal R with ‖qR − target‖ least."""
    left, _, right = torch.linalg.svd(q.T @ target)
    rotated: Tensor = q @ (left @ right)
    return rotated
