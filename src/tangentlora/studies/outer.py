"""Gauss–Newton on the real network: linearise at W + δ, solve to a certificate, move, linearise again.

With f the real network, step k minimises the convex P_k(δ) = L̂(f(W+δ_k) + J_k(δ − δ_k)) + λ Σ_t ‖δ_t‖_*,
and moves along δ_k + t(δ − δ_k), t = 1, ½, ¼, …, until the real P(δ) = L(f(W+δ)) + λ Σ_t ‖δ_t‖_* has fallen.
From there L-BFGS lowers the real P at the ranks reached (`outer_descent`): the tangent finds the directions,
and descent on the network itself, whose bends the tangent does not know, takes them as far as they go.
P_k(δ_k) = P(δ_k) and P_k is convex, so P falls to first order by t(P(δ_k) − min P_k) at least. Where the gap
of P_k at δ_k itself is 0, ‖M_t‖₂ ≤ λ and the rest of first-order optimality hold for the real network.
Derived; docs/adapters.md, "Continue from an adapter". Prox-linear steps: Burke and Ferris 1995 [recalled].
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import truncate
from tangentlora.problem.spectral import RANK_TOLERANCE, balance
from tangentlora.progress import bar
from tangentlora.solvers.solution import Solver
from tangentlora.studies.outer_descent import descended
from tangentlora.studies.outer_network import RealNetwork
from tangentlora.studies.prepare import Prepared
from tangentlora.tangent.tangent import Tangent

_SHARE = 1e-4  # of what the tangent promises, t(P − min P_k): the least fall that is taken
_HALVINGS = 20  # of t at most
_PATIENCE = 4  # slow steps in turn, where P falls by more than rounding: their gaps go up and down
_EVALUATIONS = 40  # of the real network and its gradient, in the descent after each step


class Ending(Enum):
    """How the steps ended; each value is a sentence that a user can act on."""

    SETTLED = (
        "The duality gap of the network linearised at the answer is within the tolerance: to first order, "
        "nothing near the answer is better."
    )
    STALLED = (
        "A further step lowers the real objective by no more than the tolerance, and the gap at the answer "
        "is still above it: single precision may know no more, so try --dtype float64; else the network "
        "bends too much, so try a larger λ, or a smaller --tolerance for more steps."
    )
    STEPS_SPENT = (
        "The steps ended before the gap at the answer reached the tolerance: raise --outer, or "
        "continue from this adapter with --init-from."
    )


@dataclass(frozen=True)
class Step:
    """One step: the real objective before and after, and `promised` = P_k at its answer.

    `gap` = P_k(δ_k) − (lower bound on min P_k): 0 where δ_k is first-order optimal on the real network.
    `solved_gap` is that of the answer. `length` is t, 0 where nothing on the line lowered the objective;
    `reached` is the objective there, and `after` that once descent at these ranks went on from it.
    """

    before: float
    gap: float
    promised: float
    solved_gap: float
    length: float
    reached: float
    after: float
    ranks: dict[str, int]


@dataclass(frozen=True, eq=False)
class Outer:
    """The answer, the steps to it, and the network linearised at it: `tangent.f0` = f(W+δ) − Jδ."""

    factors: Factors
    steps: tuple[Step, ...]
    ending: Ending
    objective: float
    tangent: Tangent
    problem: Problem


def gauss_newton(prepared: Prepared, solver: Solver, *, progress: bool = False) -> Outer:
    """Take at most `settings.outer` steps from the start, or from δ = 0; the real objective never rises.

    The steps end where the gap of P_k at δ_k is within half of `tolerance`·max(1, P). They stall where P
    falls by no more than `tolerance`·max(1, P) and the gap is not halved: twice in turn where the
    network's own rounding hides the fall, or nothing moved, and after some more where P still falls. The
    answer of a run that stalled is the point with the smallest gap among those with the same P, to the
    tolerance.
    Raises InputError as `linearize` and the solver do.
    """
    settings = prepared.settings
    real = RealNetwork(prepared)
    zero = prepared.problem.zero()
    start = {
        name: balance(u.to(zero[name][0]), v.to(zero[name][1]))
        for name, (u, v) in (zero | (prepared.start or {})).items()
    }
    point = _point(real, start, real.objective(start), progress)
    steps: list[Step] = []
    stalled, best, taken = 0, point, 0
    ending = Ending.STEPS_SPENT
    with bar(settings.outer, "linearise, solve, move", "step", progress) as shown:
        while len(steps) < settings.outer and not _settled(point, settings.tolerance):
            step, factors = _step(real, point, solver)
            following = _point(real, factors, step.after, progress)
            fall, size = step.before - step.after, max(1.0, step.before)
            steps.append(step)
            shown.update()
            slow = fall <= settings.tolerance * size
            stalled = stalled + 1 if slow and following.gap > 0.5 * point.gap else 0
            unmoved = following.gap == point.gap
            if not slow or following.gap <= best.gap:  # P the same to the tolerance: the smaller gap counts
                best, taken = following, len(steps)
            point = following
            if stalled and (unmoved or stalled >= (2 if fall <= real.rounding * size else _PATIENCE)):
                ending = Ending.STALLED
                break
    if ending is Ending.STALLED:
        point, steps = best, steps[:taken]
    if _settled(point, settings.tolerance):
        ending = Ending.SETTLED
    return Outer(point.factors, tuple(steps), ending, point.objective, point.tangent, point.local)


@dataclass(frozen=True, eq=False)
class _Point:
    """δ_k with the real P there, the network linearised there, and the gap of P_k at δ_k."""

    factors: Factors
    objective: float
    tangent: Tangent
    local: Problem
    gap: float


def _settled(point: _Point, tolerance: float) -> bool:
    """Say if the gap is within half the tolerance: a margin, since the certificate adds its own rounding."""
    return point.gap <= 0.5 * tolerance * max(1.0, point.objective)


def _point(real: RealNetwork, factors: Factors, objective: float, progress: bool) -> _Point:
    tangent, local = real.linearised(factors, progress)
    return _Point(factors, objective, tangent, local, local.gap(factors))


def _step(real: RealNetwork, point: _Point, solver: Solver) -> tuple[Step, Factors]:
    """Solve the problem there, move along the line to its answer, then descend at the ranks reached."""
    answer = solver.solve(point.local, start=point.factors).factors
    promised = point.local.objective(answer)
    length, landed, reached = _along(real, point, answer, promised)
    taken, after = _descended(real, point.local, landed, reached)
    ranks = {name: u.shape[1] for name, (u, _) in taken.items()}
    gaps = (point.gap, promised, point.local.gap(answer))
    return Step(point.objective, *gaps, length, reached, after, ranks), taken


def _along(
    real: RealNetwork, begin: _Point, answer: Factors, promised: float
) -> tuple[float, Factors, float]:
    """Return the first t at which P falls enough, the point there and P; t = 0 if none does."""
    start, objective, length = begin.factors, begin.objective, 1.0
    for _ in range(_HALVINGS if objective > promised else 0):
        point = answer if length == 1 else blend(begin.local, start, answer, length)
        value = real.objective(point)
        if value < objective and objective - value >= _SHARE * length * (objective - promised):
            return length, point, value
        length /= 2
    return 0.0, start, objective


def _descended(
    real: RealNetwork, local: Problem, factors: Factors, objective: float
) -> tuple[Factors, float]:
    """Return the point and P after descent at these ranks, or the given ones where P has not fallen."""
    point = truncate(local, descended(real.evaluate, factors, _EVALUATIONS, real.rounding), RANK_TOLERANCE)
    value = real.objective(point)
    return (point, value) if value < objective else (factors, objective)


def blend(problem: Problem, start: Factors, answer: Factors, t: float) -> Factors:
    """Return balanced factors of (1−t)δ + tδ', of no more columns than its numerical rank at the problem."""

    def stacked(one: Float[Tensor, "_d _r"], other: Float[Tensor, "_d _q"]) -> Float[Tensor, "_d _s"]:
        return torch.cat([(1 - t) ** 0.5 * one, t**0.5 * other], 1)

    both = {
        name: (stacked(u, answer[name][0]), stacked(v, answer[name][1])) for name, (u, v) in start.items()
    }
    return truncate(problem, both, RANK_TOLERANCE)
