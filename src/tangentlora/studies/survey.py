"""Theorem 2 put to the test: do runs on the perturbed objective F_Π come to rest anywhere but at its optimum?

A run descends from one of several starts, is polished by Newton's method on the gradient, leaves saddles
along their escape directions, and is classified where it rests. The gap of F_Π itself says whether that is
its optimum; what Π costs in P is bounded apart. Source of the theorem: Jang, Lee, Ryu 2024, Theorem 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.problem.threads import fitting_threads
from tangentlora.progress import bar
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.landscape import Landscape, Outcome, Run
from tangentlora.studies.limits import check_survey
from tangentlora.studies.rest import Start, begin, rest
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbation_cost, perturbed_gap
from tangentlora.theory.rank_rules import least_rank
from tangentlora.theory.stationarity import Kind, classify


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
    progress: bool = False,
) -> Landscape:
    """Run F_Π, ‖Π_t‖₂ = `size`, from every random start `repeats` times at every rank; say where runs rest.

    Starts with nothing random about them run once. A run leaves at most `escapes` saddles; with 0 it stays
    at the first. Raises InputError for λ = 0 and as `check_survey` does.
    """
    check_survey(ranks, size, repeats)
    if problem.lam <= 0:
        raise InputError(
            "got λ = 0, expected λ > 0: at 0 a minimiser need not exist, so give --lam a positive value"
        )
    problem = problem.contrasted
    noise = perturbation(problem.jacobian.shapes, size, seed, problem.f0)
    plan = [
        (rank, start, seed + 1000 * repeat)
        for rank in ranks
        for start in starts
        for repeat in range(repeats if start.is_random(rank) else 1)
    ]
    runs = []
    with fitting_threads(problem.jacobian), bar(len(plan), "landscape", "run", progress) as shown:
        for rank, start, run_seed in plan:
            runs.append(_run(problem, noise, rank, start, escapes, tolerance, run_seed))
            shown.update()
    optimum = Certified(tolerance=1e-9).solve(problem)
    best = min(runs, key=lambda run: run.value)
    return Landscape(
        tuple(_judged(run, runs, tolerance) for run in runs),
        least_rank(problem.constraints),
        problem.constraints,
        problem.lam,
        size,
        tolerance,
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
