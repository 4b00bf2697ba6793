"""The global optimum at the least rank: Newton on the factors from a spectral start, with rank-one escapes.

A factored run can only stop short of min P at a point where some σ₁(M_t) > λ. There the top singular pairs (a, b)
of M_t, appended as columns √τ(−a, b), lower F by τ(σ₁ − λ) − O(τ²): the escape. So rounds of Newton's method,
truncation to the numerical rank and escapes end at the global optimum, and the duality gap says when.
Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.problem.spectral import RANK_TOLERANCE, balance
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status


@dataclass(frozen=True)
class Certified(Solver):
    """Solve to gap ≤ tolerance·max(1, P); the answer is balanced and has no zero singular values.

    `max_rounds` bounds the escapes; one round is enough on every task measured so far (docs/solvers.md).
    """

    tolerance: float = 1e-6
    max_rounds: int = 30

    def solve(self, problem: Problem, monitor: Monitor | None = None, *, progress: bool = False) -> Solution:
        """Return the global optimum; raises InputError for λ = 0, where a minimiser need not exist."""
        from tqdm import tqdm

        if problem.lam <= 0:
            raise InputError(
                "got λ = 0 for the certified solver, expected λ > 0: at 0 a minimiser need not exist, so use --solver sgd"
            )
        inner, span = problem.reduced
        factors, history, products = inner.zero(), [], 0
        status = Status.PRECISION_REACHED
        goal = 0.1 * self.tolerance  # a margin, since the certificate counts its own rounding in
        with tqdm(total=self.max_rounds, desc="certifying", unit="round", disable=not progress) as bar:
            for _ in range(self.max_rounds):
                z = inner.outputs(factors)
                M = inner.jacobian.adjoint(inner.dual_point(z))
                objective = inner.empirical_loss(z) + inner.lam * nuclear_norm(factors)
                gap = inner.gap(factors)
                measures = {} if monitor is None else monitor(span.lift(factors))
                history.append(Record(products, objective, gap, measures))
                bar.update()
                if gap <= goal * max(1.0, objective):
                    status = Status.GLOBAL_OPTIMUM
                    break
                start = _escape(inner, factors, M, 2 * problem.jacobian.n_outputs)
                result = newton(inner, start, tolerance=1e-3 * goal * max(1.0, objective))
                products += result.products
                factors = _truncate(inner, result.factors)
                if inner.factored_objective(factors) > objective - 1e-15 and len(history) > 1:
                    break
        if history[-1].gap <= self.tolerance * max(1.0, history[-1].objective):
            status = Status.GLOBAL_OPTIMUM
        return Solution(problem, span.lift(factors), status, tuple(history), products)


def _escape(problem: Problem, factors: Factors, M: Blocks, most: int) -> Factors:
    """Append, per layer, the singular pairs of M_t above λ (at most `most`), at the step that lowers F the most."""
    pairs: Factors = {}
    for name, matrix in M.items():
        left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
        r = min(int((sigma > problem.lam).sum()), most)
        weight = ((sigma[:r] - problem.lam) / sigma[:1]).clamp(min=0).sqrt()
        pairs[name] = (-left[:, :r] * weight, right[:r].T * weight)

    def appended(tau: float) -> Factors:
        root = tau**0.5
        return {
            name: (torch.cat([u, root * pairs[name][0]], 1), torch.cat([v, root * pairs[name][1]], 1))
            for name, (u, v) in factors.items()
        }

    # F along τ falls at first and is convex: double while it falls, halve until it does
    tau, best = 1.0, problem.factored_objective(appended(1.0))
    factor = 2.0 if problem.factored_objective(appended(2.0)) < best else 0.5
    base = problem.factored_objective(factors)
    while tau > 1e-12:
        value = problem.factored_objective(appended(tau * factor))
        if value >= best and best < base:
            break
        tau, best = tau * factor, value
    return appended(tau)


def _truncate(problem: Problem, factors: Factors) -> Factors:
    """Balance every layer and drop the singular values that are zero to working precision."""
    balanced = problem.zero() | {name: balance(u, v) for name, (u, v) in factors.items()}
    largest = max((float(u.square().sum(0).max()) for u, _ in balanced.values() if u.shape[1]), default=0.0)
    return {
        name: tuple(w[:, u.square().sum(0) > RANK_TOLERANCE * largest] for w in (u, v))  # type: ignore[misc]
        for name, (u, v) in balanced.items()
    }
