"""Theorem 2 put to the test: do runs on the perturbed objective F_Π come to rest anywhere but at its optimum?

A run descends from one of several starts, is polished by Newton's method on the gradient, leaves saddles
along their escape directions, and is classified where it rests. The gap of F_Π itself says whether that is
its optimum; what Π costs in P is bounded apart. Source of the theorem: Jang, Lee, Ryu 2024, Theorem 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbation_cost, perturbed_gap
from tangentlora.theory.rank_rules import least_rank
from tangentlora.theory.stationarity import Kind, Stationarity, classify

_SINGLE = (Start.ZERO, Start.SPECTRAL)  # nothing about them is random


class Outcome(Enum):
    """What a run came to, in F_Π."""

    GLOBAL_OPTIMUM = "global optimum"
    SPURIOUS_MINIMUM = "spurious minimum"
    RANK_LIMITED = "limited by rank"
    SADDLE = "saddle"
    UNDECIDED = "undecided"


@dataclass(frozen=True, eq=False)
class Run:
    """Where one run came to rest: `gap` is that of F_Π over all ranks, `left` counts saddles on the way."""

    rank: int
    start: Start
    factors: Factors
    value: float
    gap: float
    point: Stationarity
    left: int
    outcome: Outcome = Outcome.UNDECIDED


@dataclass(frozen=True, eq=False)
class Landscape:
    """All runs on one problem with one Π.

    `threshold` is the least rank with r(r+1)/2 > c. `excess` is P − min P at the best run, `cost` the bound
    2 max_t ‖Π_t‖₂ Σ_t ‖δ*_t‖_* on it for a global minimiser of F_Π.
    """

    runs: tuple[Run, ...]
    threshold: int
    constraints: int
    size: float
    excess: float
    cost: float

    def counts(self, rank: int) -> Counter[Outcome]:
        """Return how many runs of a rank came to each outcome."""
        return Counter(run.outcome for run in self.runs if run.rank == rank)

    @property
    def against(self) -> tuple[Run, ...]:
        """The runs that speak against the theorem: at or above the threshold, and not at the optimum."""
        return tuple(
            run
            for run in self.runs
            if run.rank >= self.threshold and run.outcome in (Outcome.SPURIOUS_MINIMUM, Outcome.RANK_LIMITED)
        )

    def sentence(self) -> str:
        """Return what was found, in one sentence."""
        above = [run for run in self.runs if run.rank >= self.threshold]
        reached = sum(run.outcome is Outcome.GLOBAL_OPTIMUM for run in above)
        spurious = sum(run.outcome is Outcome.SPURIOUS_MINIMUM for run in self.runs if run not in above)
        return (
            f"At ranks from {self.threshold} on, where r(r+1)/2 > c = {self.constraints}, {reached} of "
            f"{len(above)} runs reached the optimum and {len(self.against)} rested at another minimum; "
            f"below, {spurious} of {len(self.runs) - len(above)} rested at a spurious one."
        )


def survey(
    problem: Problem,
    ranks: Sequence[int],
    *,
    size: float,
    repeats: int = 2,
    starts: Sequence[Start] = tuple(Start),
    escapes: int = 30,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Landscape:
    """Run F_Π, ‖Π_t‖₂ = `size`, from every random start `repeats` times at every rank; say where runs rest.

    A run leaves at most `escapes` saddles; with 0 it stays at the first. Made for problems of a few hundred
    parameters, whose Hessian is decomposed.
    """
    problem = problem.contrasted
    noise = perturbation(problem.jacobian.shapes, size, seed, problem.f0)
    runs = [
        _run(problem, noise, rank, start, escapes, tolerance, seed + 1000 * repeat)
        for rank in ranks
        for start in starts
        for repeat in range(repeats if start not in _SINGLE else 1)
    ]
    optimum = Certified(tolerance=1e-9).solve(problem)
    best = min(runs, key=lambda run: run.value)
    return Landscape(
        tuple(_judged(run, runs, tolerance) for run in runs),
        least_rank(problem.constraints),
        problem.constraints,
        size,
        problem.objective(best.factors) - optimum.objective,
        perturbation_cost(noise, nuclear_norm(optimum.factors)),
    )


def _judged(run: Run, runs: Sequence[Run], tolerance: float) -> Run:
    """Return the run with its outcome; a lower point of at most its rank makes a minimum spurious."""
    margin = tolerance * max(1.0, abs(run.value))
    lowest = min(other.value for other in runs if other.rank <= run.rank)
    if run.gap <= margin:
        outcome = Outcome.GLOBAL_OPTIMUM
    elif run.point.kind is Kind.STRICT_SADDLE:
        outcome = Outcome.SADDLE
    elif run.point.kind is Kind.FULL_RANK_SOSP:
        outcome = Outcome.SPURIOUS_MINIMUM if run.value > lowest + margin else Outcome.RANK_LIMITED
    else:
        outcome = Outcome.UNDECIDED
    return replace(run, outcome=outcome)


def _run(
    problem: Problem,
    noise: Mapping[str, Tensor],
    rank: int,
    start: Start,
    escapes: int,
    tolerance: float,
    seed: int,
) -> Run:
    factors, left = begin(problem, noise, rank, start, seed), 0
    while True:
        factors = rest(problem, factors, noise)
        point = classify(problem, factors, noise=noise, tolerance=tolerance)
        if point.escape is None or left == escapes:
            break
        step = point.escape
        factors = {t: (u + step[t][0], v + step[t][1]) for t, (u, v) in factors.items()}
        left += 1
    value, gap = Hessian(problem, factors, noise).value, perturbed_gap(problem, factors, noise)
    return Run(rank, start, factors, value, gap, point, left)
