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
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.proof import prove
from tangentlora.problem.ranks import truncate
from tangentlora.problem.spectral import RANK_TOLERANCE
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import FactoredObjective
from tangentlora.solvers.local_model import LocalModel
from tangentlora.solvers.solution import Record, Solution, Status

_KNOWN = 4
"""Answers that an extrapolation uses: a cubic in log λ."""

_STEPS, _PRODUCTS, _SHARE = 6, 60, 0.3
"""Newton steps, products for each, and the share of the wanted gradient that a step may leave unsolved."""

_REDUCED = 0.01
"""A step that leaves more of the gradient than this calls for the Hessian where it ended."""

Judge = Callable[[Problem, Factors], float]
"""Returns the gap of factors, with its rounding, relative to max(1, P): what a certificate proves."""


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

    `judge` is asked for the gap where Newton's method from the extrapolated start has converged; by default
    it is what a certificate would say. Where it has not, or the gap is open, the solver goes on from
    there. The status says whether the gap is within the solver's tolerance, whatever the start was.
    Raises InputError where the λ are not positive and falling.
    """
    if not lams or lams[-1] <= 0 or any(after >= before for before, after in pairwise(lams)):
        raise InputError(
            f"got the path λ = {tuple(lams)}, expected positive values, each below the one before: sort them"
        )
    solver = Certified() if solver is None else solver
    judge = _proved if judge is None else judge
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
        near, products = corrected(inner, start, 0.1 * solver.tolerance)
    if near is None:
        return solver.solve(problem, start=known[-1][1])
    factors = span.lift(near)
    gap = judge(problem, factors)
    if not gap <= solver.tolerance:
        return solver.solve(problem, start=factors)
    objective = inner.factored_objective(near)
    record = Record(products, objective, gap * max(1.0, objective))
    return Solution(problem, factors, Status.GLOBAL_OPTIMUM, (record,), products)


def corrected(problem: Problem, start: Factors, tolerance: float) -> tuple[Factors | None, int]:
    """Return factors at which ‖∇F‖ ≤ tolerance·λ‖(u,v)‖, near the start, and the Hessian products spent.

    Newton's method with exact steps and no safeguard, for starts so near that one or two suffice. Forming
    what a Hessian needs takes as long as a step's products, so one is kept while its steps reduce the
    gradient well. None where a few steps do not suffice or there are no columns.
    """
    objective = FactoredObjective(problem, {})
    factors, here, products = start, objective.evaluate(start), 0
    model = None
    for _ in range(_STEPS if half_squares(start) else 0):
        model = LocalModel(problem, factors, formed=False) if model is None else model
        wanted = tolerance * problem.lam * (2 * half_squares(factors)) ** 0.5
        step, spent = _newton_step(model, model.pack(here.gradient), _SHARE * wanted)
        factors = factors | {
            name: (factors[name][0] + U, factors[name][1] + V) for name, (U, V) in model.unpack(step).items()
        }
        products, before, here = products + spent, here.gradient_norm(), objective.evaluate(factors)
        if here.gradient_norm() <= wanted:
            return truncate(problem, factors, RANK_TOLERANCE), products
        if not here.gradient_norm() <= _REDUCED * before:
            model = None
    return None, products


def _newton_step(
    model: LocalModel, gradient: Float[Tensor, " d"], wanted: float
) -> tuple[Float[Tensor, " d"], int]:
    """Return p with ‖∇²F p + ∇F‖ ≤ `wanted` by preconditioned conjugate gradients, and the products it took.

    Rotations make ∇²F singular, which does no harm as ∇F has next to no part along them.
    """
    p, residual = torch.zeros_like(gradient), gradient.clone()
    y = model.precondition(residual)
    d, square = -y, float(residual @ y)
    products = 0
    while float(residual.norm()) > wanted and products < _PRODUCTS:
        Hd = model.hessian_product(d)
        products += 1
        curvature = float(d @ Hd)
        if curvature <= 0:
            break
        p, residual = p + square / curvature * d, residual + square / curvature * Hd
        y = model.precondition(residual)
        square, before = float(residual @ y), square
        d = -y + square / before * d
    return p, products


def _proved(problem: Problem, factors: Factors) -> float:
    proof = prove(problem, factors)
    return (proof.gap + proof.rounding) / max(1.0, abs(proof.objective))


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
