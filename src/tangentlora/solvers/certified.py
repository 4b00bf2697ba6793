"""The global optimum at a low rank: Newton on the factors from a spectral start, with rank-one escapes.

A factored run can only stop short of min P at a point where some σ₁(M_t) > λ. There the top singular pairs
(a, b) of M_t, appended as columns √τ(−a, b), lower F by τ(σ₁ − λ) − O(τ²): the escape. So rounds of escapes,
Newton's method and truncation to the numerical rank end at the global optimum; the duality gap says when.
Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, half_squares
from tangentlora.problem.ranks import truncate
from tangentlora.problem.spectral import RANK_TOLERANCE
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.core import settled
from tangentlora.solvers.leading_pairs import leading_pairs
from tangentlora.solvers.local_model import LocalModel
from tangentlora.solvers.lowest import Lowest, require_finite
from tangentlora.solvers.newton import newton
from tangentlora.solvers.solution import Monitor, Record, Solution, Solver, Status, measured

_AT_REST = 1e-6  # of λ‖(u,v)‖: the answer is stationary to half of what the study of points asks for


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

        At `start` the first round begins instead of at δ = 0. It changes the cost and not what is proved.
        """
        self.check(problem)
        with fitting_threads(problem.contrasted.jacobian):
            return self._solve(problem, monitor, progress, start or {})

    def _solve(self, problem: Problem, monitor: Monitor | None, progress: bool, start: Factors) -> Solution:
        inner, span = problem.reduced
        factors, products = inner.zero() | span.lower(start), 0
        goal = 0.1 * self.tolerance  # a margin, since the certificate counts its own rounding in
        history: list[Record] = []
        best, stalled = Lowest(), 0
        status = Status.PRECISION_REACHED
        with bar(self.max_rounds, "certifying", "round", progress) as shown:
            while True:
                model = LocalModel(inner, factors)
                if not history:
                    require_finite(model.value)
                objective, (gap, M) = model.value, _gap(model)
                history.append(measured(Record(products, objective, gap), span.lift(factors), monitor))
                stalled = 0 if best.offer(objective, gap, factors) else stalled + 1
                if best.gap <= goal * max(1.0, best.objective) or stalled == 2:
                    break
                if len(history) > self.max_rounds:
                    status = Status.ROUNDS_SPENT
                    break
                factors, spent = _round(model, factors, M, gap, goal)
                products += spent
                shown.update()
        answer = span.lift(best.factors)
        if best.certain(problem, answer, self.tolerance):
            status = Status.GLOBAL_OPTIMUM
        return Solution(problem, answer, status, tuple(history), products)


def _round(model: LocalModel, factors: Factors, M: Blocks, gap: float, goal: float) -> tuple[Factors, int]:
    """Return the factors after an escape and Newton's method, and the Hessian products spent.

    After every step of Newton's method the core is solved, rough pairs appended, to what the next step can
    use: about the square of ρ = ‖∇F‖ / λ‖(u,v)‖ where the step began. From ρ ≤ goal^½ on, when one more
    such step would reach the goal, the gap is asked. Newton's method ends where the gap is within the
    goal and the point at rest, or where it has not halved since it was last asked: then it is missing
    columns that keep it open.
    """
    problem = model.problem
    least = 2 * (problem.jacobian.n_outputs + 1)
    pairs = {
        name: leading_pairs(M[name], v, problem.lam, max(least, v.shape[1]), exact=True)
        for name, (_, v) in factors.items()
    }
    start = settled(problem, factors, pairs, 0.01 * min(1.0, gap / max(1.0, model.value)))
    unit = problem.lam * (2 * half_squares(start)) ** 0.5
    asked: list[float] = [float("inf")]

    def between(left: LocalModel, reached: Factors) -> Factors:
        rho = float(left.gradient.norm()) / unit if unit > 0 else math.inf
        precision = max(1e-3 * goal, 0.1 * min(0.1 * rho, rho * rho, 1.0))
        return settled(problem, reached, left.pairs, precision)

    def enough(here: LocalModel) -> bool:
        if float(here.gradient.norm()) > goal**0.5 * unit:
            return False
        least = goal * max(1.0, here.value)
        if asked[-1] > least:
            asked.append(_gap(here)[0])
        at_rest = float(here.gradient.norm()) <= _AT_REST * unit
        return at_rest if asked[-1] <= least else asked[-1] > 0.5 * asked[-2]

    found = newton(problem, start, tolerance=1e-3 * goal * unit, between=between, enough=enough)
    return truncate(problem, found.factors, RANK_TOLERANCE), found.products


def _gap(model: LocalModel) -> tuple[float, Blocks]:
    """Return the gap as `Problem.gap` has it, and every M_t."""
    problem, a = model.problem, model.problem.dual_point(model.z)
    M = problem.jacobian.adjoint(a)
    return model.value - problem.dual_value(a, M), M
