"""What runs on the perturbed objective F_Π came to: outcomes, counts by rank, and the words for them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tangentlora.blocks import Factors
from tangentlora.report.columns import aligned, wrapped
from tangentlora.report.wording import at_most, number, plain, relative, tolerance as in_words
from tangentlora.studies.rest import Start
from tangentlora.theory.stationarity import Stationarity


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

    @property
    def relative_gap(self) -> float:
        """gap / max(1, |F_Π|)."""
        return self.gap / max(1.0, abs(self.value))


@dataclass(frozen=True)
class Minimum:
    """Runs of one rank and one outcome that rested at the same value of F_Π."""

    rank: int
    outcome: Outcome
    value: float
    runs: int


@dataclass(frozen=True, eq=False)
class Landscape:
    """All runs on one problem with one Π, ‖Π_t‖₂ = `size`.

    `threshold` is the least rank with r(r+1)/2 > c = `constraints`. `excess` is P − min P at the run with the
    lowest F_Π, `cost` the bound 2 max_t ‖Π_t‖₂ Σ_t ‖δ*_t‖_* on it for a global minimiser of F_Π. `tolerance`
    is that of gaps and values, relative to max(1, |F_Π|), and that of `classify`. `data_check` says what was
    seen of the data, where the problem comes from some.
    """

    runs: tuple[Run, ...]
    threshold: int
    constraints: int
    lam: float
    size: float
    tolerance: float
    excess: float
    cost: float
    data_check: dict[str, Any] | None = None

    @property
    def ranks(self) -> list[int]:
        """The ranks that were tried, in order."""
        return sorted({run.rank for run in self.runs})

    def counts(self, rank: int) -> Counter[Outcome]:
        """Return how many runs of a rank came to each outcome."""
        return Counter(run.outcome for run in self.runs if run.rank == rank)

    def minima(self, rank: int) -> list[Minimum]:
        """Return where the minima of a rank lie, lowest first: values within the tolerance are one."""
        named = (Outcome.GLOBAL_OPTIMUM, Outcome.SPURIOUS_MINIMUM, Outcome.RANK_LIMITED)
        found: list[Minimum] = []
        for run in sorted(self.runs, key=lambda run: run.value):
            if run.rank != rank or run.outcome not in named:
                continue
            last = found[-1] if found else None
            margin = self.tolerance * max(1.0, abs(run.value))
            if last and last.outcome is run.outcome and run.value <= last.value + margin:
                found[-1] = Minimum(rank, run.outcome, last.value, last.runs + 1)
            else:
                found.append(Minimum(rank, run.outcome, run.value, 1))
        return found

    @property
    def above(self) -> tuple[Run, ...]:
        """The runs at or above the threshold, of which the theorem speaks."""
        return tuple(run for run in self.runs if run.rank >= self.threshold)

    @property
    def against(self) -> tuple[Run, ...]:
        """The runs that speak against the theorem: at or above the threshold, at a minimum not global."""
        minima = (Outcome.SPURIOUS_MINIMUM, Outcome.RANK_LIMITED)
        return tuple(run for run in self.above if run.outcome in minima)

    def sentence(self) -> str:
        """Return what was found, in one sentence."""
        below = [run for run in self.runs if run.rank < self.threshold]
        spurious = sum(run.outcome is Outcome.SPURIOUS_MINIMUM for run in below)
        reached = sum(run.outcome is Outcome.GLOBAL_OPTIMUM for run in self.above)
        unnamed = len(self.above) - reached - len(self.against)
        rule = f"At ranks from {self.threshold} on, where r(r+1)/2 > c = {self.constraints},"
        if self.above:
            said = (
                f"{rule} {reached} of {len(self.above)} runs reached the optimum and {len(self.against)} "
                "rested at another minimum"
            )
            said += f", while {unnamed} came to no minimum that could be proved" if unnamed else ""
        else:
            said = f"{rule} no run was made: ask for rank {self.threshold} too"
        return f"{said}; below, {spurious} of {len(below)} rested at a spurious one."

    def table(self) -> str:
        """Return the counts by rank, the minima found and the thresholds as text, at most 100 wide."""
        head = ("rank", "theorem", "runs", "optimum", "spurious", "by rank", "saddle", "undecided", "left")
        lines = aligned([head, *(self._row(rank) for rank in self.ranks)])
        minima = [f"  {_in_words(each)}" for rank in self.ranks for each in self.minima(rank)]
        said = [*wrapped(self.sentence()), *wrapped(self._thresholds())]
        return "\n".join([*lines, "", "Minima of the perturbed objective F_Π:", *minima, "", *said])

    def describe(self) -> dict[str, Any]:
        """Return everything but the factors as JSON can hold it."""
        return {
            "sentence": self.sentence(),
            "data_check": self.data_check,
            "threshold": self.threshold,
            "constraints": self.constraints,
            "lam": self.lam,
            "perturbation": self.size,
            "tolerance": self.tolerance,
            "excess": self.excess,
            "cost": self.cost,
            "against": len(self.against),
            "ranks": [
                {
                    "rank": rank,
                    "theorem_applies": rank >= self.threshold,
                    "outcomes": {outcome.value: self.counts(rank)[outcome] for outcome in Outcome},
                    "saddles_left": self._left(rank),
                    "minima": [
                        {"outcome": each.outcome.value, "value": each.value, "runs": each.runs}
                        for each in self.minima(rank)
                    ],
                }
                for rank in self.ranks
            ],
            "runs": [_described(run) for run in self.runs],
        }

    def _row(self, rank: int) -> tuple[str, ...]:
        counts = self.counts(rank)
        applies = "applies" if rank >= self.threshold else "–"
        outcomes = (str(counts[outcome]) for outcome in Outcome)
        return (str(rank), applies, str(counts.total()), *outcomes, str(self._left(rank)))

    def _left(self, rank: int) -> int:
        return sum(run.left for run in self.runs if run.rank == rank)

    def _thresholds(self) -> str:
        share = in_words(self.tolerance)
        reached = [run.relative_gap for run in self.runs if run.outcome is Outcome.GLOBAL_OPTIMUM]
        largest = f" (largest here: {at_most(max(max(reached), 0.0))})" if reached else ""
        said = (
            f"λ = {plain(self.lam)}, ‖Π‖₂ = {plain(self.size)} in every layer. Optimum: the duality gap of "
            f"F_Π over all ranks is at most {share}·max(1, F_Π){largest}. Every other minimum is stationary "
            f"(relative gradient at most {share}) with no curvature below −{share}: spurious where another "
            f"run of no higher rank is lower by more than {share}·max(1, F_Π), limited by rank where none is "
            "known. “left” counts the saddles that runs came to and left."
        )
        if reached:
            said += (
                f" Π raised P by {relative(self.excess)} at the lowest run; the bound on that is "
                f"{at_most(self.cost)}."
            )
        return said


def _in_words(minimum: Minimum) -> str:
    runs = "1 run" if minimum.runs == 1 else f"{minimum.runs} runs"
    return f"rank {minimum.rank}: {number(minimum.value)}, {minimum.outcome.value} ({runs})"


def _described(run: Run) -> dict[str, Any]:
    error = run.point.error
    return {
        "rank": run.rank,
        "start": run.start.value,
        "outcome": run.outcome.value,
        "value": run.value,
        "gap": run.gap,
        "relative_gap": run.relative_gap,
        "kind": run.point.kind.name,
        "gradient": run.point.gradient,
        "curvature": run.point.curvature,
        "curvature_error": error if math.isfinite(error) else None,  # Lanczos did not converge
        "columns_used": run.point.used,
        "saddles_left": run.left,
    }
