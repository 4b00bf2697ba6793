"""The global optimum at the least rank: Newton on the factors from a spectral start, with rank-one escapes.

A factored run can only stop short of min P at a point where some σ₁(M_t) > λ. There the top singular pairs (a, b)
of M_t, appended as columns √τ(−a, b), lower F by τ(σ₁ − λ) − O(τ²): the escape. So rounds of Newton's method,
truncation to the numerical rank and escapes end at the global optimum, and the duality gap says when.
Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

from dataclasses import dataclass

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.spectral import RANK_TOLERANCE, balance
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status
from tangentlora.solvers.spectral_start import spectral_start


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
                objective, gap = inner.factored_objective(factors), inner.gap(factors)
                measures = {} if monitor is None else monitor(span.lift(factors))
                history.append(Record(products, objective, gap, measures))
                bar.update()
                if gap <= goal * max(1.0, objective):
                    status = Status.GLOBAL_OPTIMUM
                    break
                start = spectral_start(inner, factors, 2 * problem.jacobian.n_outputs)
                result = newton(inner, start, tolerance=1e-3 * goal * max(1.0, objective))
                products += result.products
                factors = _truncate(inner, result.factors)
                if inner.factored_objective(factors) > objective - 1e-15 and len(history) > 1:
                    break
        if history[-1].gap <= self.tolerance * max(1.0, history[-1].objective):
            status = Status.GLOBAL_OPTIMUM
        return Solution(problem, span.lift(factors), status, tuple(history), products)


def _truncate(problem: Problem, factors: Factors) -> Factors:
    """Balance every layer and drop the singular values that are zero to working precision."""
    balanced = problem.zero() | {name: balance(u, v) for name, (u, v) in factors.items()}
    largest = max((float(u.square().sum(0).max()) for u, _ in balanced.values() if u.shape[1]), default=0.0)
    return {
        name: tuple(w[:, u.square().sum(0) > RANK_TOLERANCE * largest] for w in (u, v))  # type: ignore[misc]
        for name, (u, v) in balanced.items()
    }
