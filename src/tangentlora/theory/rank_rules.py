"""What rank does LoRA need? Every rule at hand, side by side, each with its assumption and what it proves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tangentlora.problem.objective import Problem
from tangentlora.theory.certificate import Certificate

CAPACITY = 1.35
"""C in r(m+n) − r² > C·KN, as the abstract of arXiv:2605.03724 gives it; the rest of it was not read."""

_PERTURBED = "λ > 0, and a small random Π ⪰ 0 is added to the objective"
_NO_SPURIOUS = "almost surely every second-order stationary point is a global minimum"


@dataclass(frozen=True)
class RankRule:
    """One rule and the least rank that satisfies it; None where no rank does or too little is known."""

    name: str
    rank: int | None
    assumption: str
    proves: str


def rank_rules(
    problem: Problem, optimum: Certificate | None = None, runs: Mapping[int, Certificate] | None = None
) -> tuple[RankRule, ...]:
    """Return the rules for one problem, from the paper's to what certificates say.

    `optimum` is the certificate of the best answer known, `runs` those of LoRA runs by their rank, all of
    this problem; without them the rules that need them have no rank.
    Sources: Jang, Lee, Ryu 2024, Theorem 2; docs/theory.md, "Rank rules".
    """
    n, k = problem.f0.shape
    shapes = list(problem.jacobian.shapes.values())
    rules = [RankRule(f"r(r+1)/2 > KN = {k * n}", least_rank(k * n), _PERTURBED, _NO_SPURIOUS)]
    if problem.loss.contrasts(k) is not None:
        count = (k - 1) * n
        ignored = f"{_PERTURBED}; softmax ignores a common shift of the logits"
        rules.append(RankRule(f"r(r+1)/2 > (K−1)N = {count}", least_rank(count), ignored, _NO_SPURIOUS))
    c = problem.constraints
    measured = f"{_PERTURBED}; c, the rank of the tangent kernel, is measured on these examples"
    best = max(optimum.ranks.values()) if optimum is not None and optimum.certified else None
    return (
        *rules,
        RankRule(f"r(r+1)/2 > c = {c}", least_rank(c), measured, _NO_SPURIOUS),
        RankRule(
            "r ≥ min(m, n)",
            max(min(shape) for shape in shapes),
            "λ > 0, and nothing is perturbed",
            "every second-order stationary point is a global minimum",
        ),
        RankRule(
            f"r(m+n) − r² > {CAPACITY} KN = {CAPACITY * k * n:g}",
            capacity_rank(shapes, CAPACITY * k * n),
            "Gaussian features, one matrix; quoted from the abstract of arXiv:2605.03724",
            "nothing of one run: it counts degrees of freedom",
        ),
        RankRule(
            "the rank of a certified optimum",
            best,
            "its certificate, at this λ and on these examples",
            "LoRA of this rank can express a global optimum; not that training finds it",
        ),
        RankRule(
            "the least rank of a run at the optimum",
            arrived(optimum, runs or {}),
            "a lower bound on min P: the run's certificate, or another's of the same problem",
            "this run reached the global optimum, whatever its rank",
        ),
    )


def least_rank(count: int) -> int:
    """Return the least r with r(r+1)/2 > count."""
    return (math.isqrt(8 * count + 1) + 1) // 2


def capacity_rank(shapes: Sequence[tuple[int, int]], count: float) -> int | None:
    """Return the least r with Σ_t r_t(m_t+n_t) − r_t² > count, r_t = min(r, m_t, n_t); None if there is none.

    The sum is the dimension of the set of matrices of rank r_t.
    """
    for rank in range(1, max(min(shape) for shape in shapes) + 1):
        fitting = [(min(rank, m, n), m + n) for m, n in shapes]
        if sum(r * sides - r * r for r, sides in fitting) > count:
            return rank
    return None


def arrived(optimum: Certificate | None, runs: Mapping[int, Certificate]) -> int | None:
    """Return the least rank whose run is proved to be within its tolerance of min P."""
    return min((r for r, run in runs.items() if proved_distance(run, optimum) <= run.tolerance), default=None)


def proved_distance(run: Certificate, optimum: Certificate | None = None) -> float:
    """Return an upper bound on (P(δ) − min P) / max(1, P), by the better of two lower bounds on min P.

    A lower bound belongs to the problem: that of `optimum` serves every answer to it, each with the roundings
    of both.
    """
    bounds = [run.gap + run.rounding]
    if optimum is not None:
        bounds.append(run.objective - optimum.lower_bound + run.rounding + optimum.rounding)
    finite = [bound for bound in bounds if not math.isnan(bound)]
    return min(finite, default=math.inf) / max(1.0, abs(run.objective))


def proved_height(run: Certificate, best: Certificate) -> float:
    """Return a lower bound on (P(δ) − min P) / max(1, P), from the objective of a better answer."""
    height = run.objective - best.objective - run.rounding - best.rounding
    return max(height, 0.0) / max(1.0, abs(run.objective))
