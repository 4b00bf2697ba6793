"""Theorem 2 put to the test: do runs on the perturbed objective F_Π come to rest anywhere but at its optimum?

A run descends from one of several starts, is polished by Newton's method on the gradient, leaves saddles
along their escape directions, and is classified where it rests. The gap of F_Π itself says whether that is
its optimum; what Π costs in P is bounded apart. Source of the theorem: Jang, Lee, Ryu 2024, Theorem 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem, nuclear_norm
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.factored import perturbation
from tangentlora.solvers.spectral_start import spectral_start
from tangentlora.theory.hessian import Hessian
from tangentlora.theory.perturbed import perturbation_cost, perturbed_gap
from tangentlora.theory.rank_rules import least_rank
from tangentlora.theory.stationarity import Kind, Stationarity, classify

_POLISH = 12  # Newton steps; they converge quadratically
_FLAT = 1e-9  # eigenvalues below this share of the largest are rotations


class Start(Enum):
    """Where a run begins: small as in the paper, at large Gaussian factors, at a stationary point of rank
    one padded with zeros, at 0, or along the leading singular pairs of the gradient at 0."""

    PAPER = "paper"
    LARGE = "large Gaussian"
    SADDLE = "padded rank one"
    ZERO = "zero"
    SPECTRAL = "spectral"


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


def begin(problem: Problem, noise: Mapping[str, Tensor], rank: int, start: Start, seed: int) -> Factors:
    """Return the factors of a start; the same seed gives the same ones.

    At SADDLE and ZERO a column is 0, and nothing moves it but an escape.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, rank, generator=generator, dtype=torch.float64).to(problem.f0)

    shapes = problem.jacobian.shapes
    if start is Start.PAPER:
        return {
            t: (problem.f0.new_zeros(m, rank), normal(n) / (math.sqrt(rank) * n))
            for t, (m, n) in shapes.items()
        }
    if start is Start.LARGE:
        return {t: (3 * normal(m), 3 * normal(n)) for t, (m, n) in shapes.items()}
    if start is Start.SPECTRAL:
        return _widened(spectral_start(problem, problem.zero(), rank), rank)
    if start is Start.ZERO or rank == 1:
        return _widened(problem.zero(), rank)
    single = begin(problem, noise, 1, Start.LARGE, seed)
    return _widened(rest(problem, single, noise), rank)


def _widened(factors: Factors, rank: int) -> Factors:
    return {t: (_padded(u, rank), _padded(v, rank)) for t, (u, v) in factors.items()}


def _padded(matrix: Tensor, rank: int) -> Tensor:
    return torch.cat([matrix, matrix.new_zeros(len(matrix), rank - matrix.shape[1])], 1)


def rest(problem: Problem, factors: Factors, noise: Mapping[str, Tensor]) -> Factors:
    """Return the stationary point of F_Π that L-BFGS comes to, to the last digits.

    Newton's steps on ∇F_Π = 0 converge to minima and saddles alike: they never decide between them.
    """
    start = Hessian(problem, factors, noise)

    def evaluate(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = Hessian(problem, start.unpack(torch.from_numpy(x.copy()).to(problem.f0)), noise)
        return at.value, at.gradient.cpu().numpy()

    x = start.pack(factors).cpu().numpy()
    options = {"maxiter": 3000, "maxfun": 6000, "gtol": 1e-11, "ftol": 1e-15, "maxcor": 20}
    found = minimize(evaluate, x, jac=True, method="L-BFGS-B", options=options).x
    here = Hessian(problem, start.unpack(torch.from_numpy(found).to(problem.f0)), noise)
    for _ in range(_POLISH):
        values, vectors = torch.linalg.eigh(here.dense())
        kept = values.abs() > _FLAT * values.abs().max()
        step = vectors[:, kept] @ ((vectors[:, kept].T @ here.gradient) / values[kept])
        there = here.moved(-step)
        if not float(there.gradient.norm()) < 0.5 * float(here.gradient.norm()):
            break
        here = there
    return here.factors
