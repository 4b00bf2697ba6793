"""The global optimum at a low rank: Newton on the factors from a spectral start, with rank-one escapes.

A factored run can only stop short of min P at a point where some σ₁(M_t) > λ. There the top singular pairs
(a, b) of M_t, appended as columns √τ(−a, b), lower F by τ(σ₁ − λ) − O(τ²): the escape. So rounds of escapes,
Newton's method and truncation to the numerical rank end at the global optimum; the duality gap says when.
Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.spectral import RANK_TOLERANCE, balance
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status, measured
from tangentlora.solvers.spectral_start import spectral_start

_SHARE = 0.2  # of the way to the largest singular value: pairs nearer to λ wait for the next round


@dataclass(frozen=True)
class Certified(Solver):
    """Solve to gap ≤ tolerance·max(1, P); the answer is balanced and has no zero singular values.

    `max_rounds` bounds the rounds of escapes; two to five are enough on the tasks measured (docs/solvers.md).
    """

    tolerance: float = 1e-6
    max_rounds: int = 30

    def check(self, problem: Problem) -> None:
        """Raise InputError for λ = 0, where a minimiser need not exist."""
        if problem.lam <= 0:
            raise InputError(
                "got λ = 0 for the certified solver, expected λ > 0: at 0 a minimiser need not exist, so use "
                "--solver sgd"
            )

    def solve(
        self,
        problem: Problem,
        monitor: Monitor | None = None,
        *,
        progress: bool = False,
        start: Factors | None = None,
    ) -> Solution:
        """Return the global optimum; raises InputError for λ = 0, where a minimiser need not exist.

        At `start` Newton's method begins instead of an escape from δ = 0. It changes the cost and not what is
        proved.
        """
        self.check(problem)
        with fitting_threads(problem.contrasted.jacobian):
            return self._solve(problem, monitor, progress, start)

    def _solve(
        self, problem: Problem, monitor: Monitor | None, progress: bool, start: Factors | None
    ) -> Solution:
        inner, span = problem.reduced
        factors, history, products = inner.zero() | span.lower(start or {}), [], 0
        escape = not any(u.shape[1] for u, _ in factors.values())
        goal = 0.1 * self.tolerance  # a margin, since the certificate counts its own rounding in
        best, stalled = float("inf"), False
        with bar(self.max_rounds, "certifying", "round", progress) as shown:
            while True:
                objective, gap = inner.factored_objective(factors), inner.gap(factors)
                history.append(measured(Record(products, objective, gap), span.lift(factors), monitor))
                risen = not objective < best
                if gap <= goal * max(1.0, objective) or (risen and stalled) or len(history) > self.max_rounds:
                    break
                best, stalled = min(best, objective), risen
                loose = gap > 0.1 * objective and not stalled
                begin = _escaped(inner, factors) if escape else factors
                factors, spent = _round(inner, begin, None if loose else 1e-3 * goal)
                products, escape = products + spent, True
                shown.update()
        settled = gap <= self.tolerance * max(1.0, objective)
        status = Status.GLOBAL_OPTIMUM if settled else Status.PRECISION_REACHED
        return Solution(problem, span.lift(factors), status, tuple(history), products)


def _escaped(problem: Problem, factors: Factors) -> Factors:
    return spectral_start(problem, factors, 2 * (problem.jacobian.n_outputs + 1), share=_SHARE)


def _round(problem: Problem, start: Factors, precision: float | None) -> tuple[Factors, int]:
    """Return the factors after Newton's method and truncation, and the Hessian products spent.

    Newton's method stops at ‖∇F‖ ≤ precision·λ‖(u,v)‖. With None the round is loose: while columns are
    missing, nothing is gained by converging tightly or by keeping small ones.
    """
    unit = problem.lam * (2 * half_squares(start)) ** 0.5
    result = newton(problem, start, tolerance=(1e-2 if precision is None else precision) * unit)
    return truncate(result.factors, 1e-4 if precision is None else RANK_TOLERANCE), result.products


def truncate(factors: Factors, tolerance: float) -> Factors:
    """Balance every layer and drop the singular values below `tolerance` times the largest of all layers."""
    balanced = {name: balance(u, v) for name, (u, v) in factors.items()}
    largest = max((float(u.square().sum(0).max()) for u, _ in balanced.values() if u.shape[1]), default=0.0)
    return {name: _heavier(pair, tolerance * largest) for name, pair in balanced.items()}


def _heavier(pair: tuple[Tensor, Tensor], floor: float) -> tuple[Tensor, Tensor]:
    """Return the columns of balanced factors whose singular value is above `floor`."""
    u, v = pair
    keep = u.square().sum(0) > floor
    return u[:, keep], v[:, keep]
