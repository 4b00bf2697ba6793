"""What every solver takes and returns."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import ranks


class Status(Enum):
    """How a solver ended; each value is a sentence that a user can act on."""

    GLOBAL_OPTIMUM = "The duality gap is within the tolerance: this is the global optimum."
    STATIONARY = (
        "The run is stationary but its gap is above the tolerance: the rank is too small or it sits at a "
        "saddle; raise the rank or use --solver certified."
    )
    EPOCHS_SPENT = (
        "The epochs ended before the gap reached the tolerance: train for more epochs or raise the learning "
        "rate."
    )
    DIVERGED = (
        "The objective grew without bound, and the answer is the best that was logged before: lower the "
        "learning rate."
    )
    ABOVE_START = (
        "The objective ended above where it started: lower the learning rate, or leave it out to have one "
        "chosen."
    )
    PRECISION_REACHED = (
        "Rounding ended progress before the gap, with its own rounding counted in, was within the tolerance: "
        "ask for a larger tolerance or a larger λ."
    )
    ROUNDS_SPENT = (
        "The rounds of the certified solver ended before the gap reached the tolerance: allow more rounds, "
        "or ask for a larger tolerance or a larger λ."
    )


@dataclass(frozen=True)
class Record:
    """One logged epoch: F(u,v), its duality gap, and whatever the monitor measured."""

    epoch: int
    objective: float
    gap: float
    measures: dict[str, float] = field(default_factory=dict)


Monitor = Callable[[Record, Factors], dict[str, float]]
"""Called at each logged epoch with its record, without measures yet, and the factors; what it returns
(held-out accuracy, say) becomes the record's measures."""


def measured(record: Record, factors: Factors, monitor: Monitor | None) -> Record:
    """Return the record with what the monitor says of it."""
    return record if monitor is None else replace(record, measures=monitor(record, factors))


@dataclass(frozen=True, eq=False)
class Solution:
    """An answer δ_t = u_t v_tᵀ with the problem it answers; its costs are derived from the two, never stored.

    `epochs` counts passes over the Jacobian of all examples (for Newton's method, products with it). The
    factors are finite whatever the status: they are the best of the history, but where the status is
    GLOBAL_OPTIMUM those that it was proved of. It never stands where a certificate at the solver's tolerance
    would not hold.
    `trace` holds (epoch, F(u,v) at its start) for every epoch that was not taken back, where the solver
    knows F at no further cost. `rates` holds (epoch, learning rate) from the epoch on at which it changed;
    solvers without one have none.
    """

    problem: Problem
    factors: Factors
    status: Status
    history: tuple[Record, ...]
    epochs: int
    trace: tuple[tuple[int, float], ...] = ()
    rates: tuple[tuple[int, float], ...] = ()

    @property
    def learning_rate(self) -> float | None:
        """The learning rate at the end, None where the solver has none."""
        return self.rates[-1][1] if self.rates else None

    @cached_property
    def objective(self) -> float:
        """P(δ) = L̂(δ) + λ Σ_t ‖δ_t‖_*."""
        return self.problem.objective(self.factors)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The numerical rank of δ_t per layer."""
        return ranks(self.problem, self.factors)


def ended(status: Status, history: Sequence[Record]) -> Status:
    """Return the status, or ABOVE_START where the epochs were spent and F is above its start, to rounding."""
    if status is Status.EPOCHS_SPENT and history:
        first, last = history[0].objective, history[-1].objective
        if not last <= first + 1e-9 * max(1.0, abs(first)):
            return Status.ABOVE_START
    return status


def changes(rates: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return the (epoch, rate) at which the rate is another than before."""
    return tuple(now for k, now in enumerate(rates) if k == 0 or now[1] != rates[k - 1][1])


class Solver(abc.ABC):
    """A way of minimising a Problem; its fields are its settings."""

    def check(self, problem: Problem) -> None:
        """Raise InputError where the settings do not suit the problem; `solve` does so before it starts."""
        return

    @abc.abstractmethod
    def solve(
        self,
        problem: Problem,
        monitor: Monitor | None = None,
        *,
        progress: bool = False,
        start: Factors | None = None,
    ) -> Solution:
        """Return an answer; the same settings, problem and start give the same bytes on one machine.

        `start`, such as a trained adapter or the answer to a problem nearby, is where the solver begins
        instead of its own start; a layer that it lacks begins at δ = 0.
        """
