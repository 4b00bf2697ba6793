"""Local rates on a problem: predicted at the certified optimum, measured on runs, by rank and start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tangentlora.blocks import padded
from tangentlora.errors import InputError
from tangentlora.report.columns import aligned
from tangentlora.report.wording import ABSENT, relative
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.solution import Solution, Status
from tangentlora.theory.rates import LocalRate, local_rate, measured_factor, spectrum

AGREES = 0.1
"""A measured rate agrees with the predicted one where the logarithms of the factors differ by at most this
share."""

MOST_EPOCHS = 20_000
"""Epochs at which a run ends that has not come near the optimum; a rate that needs more is not measured."""

WINDOW = (1e-14, 1e-12)
"""The F − F*, relative to max(1, F*), at which a run is measured. It is the end of the
run: earlier, faster directions with more weight hide the slowest one; below, F is rounding."""

RINGING = (1e-14, 1e-6)
"""The same where the prediction is the momentum itself: all directions then shrink alike and F − F* swings,
which is averaged over eight digits."""

PRECISE = 1e-9
"""The largest relative gap of an optimum whose F* is taken. A gap is of first order in the error of the
factors and F − F* of second, so that F* is then right to rounding."""

STARTS: tuple[Literal["paper", "spectral"], ...] = ("paper", "spectral")
"""Those of which the rate is measured."""

_DIGITS = 16  # that a run is given the time for, at the predicted rate: fourteen, and two to get there


@dataclass(frozen=True)
class Rate:
    """One run of gradient descent: the predicted factor of F − F* per epoch beside the measured one.

    `measured` is None where the run did not pass through `WINDOW`; `status` says how it ended.
    """

    rank: int
    initialisation: Initialisation
    learning_rate: float
    momentum: float
    predicted: LocalRate
    measured: float | None
    epochs: int
    status: str

    @property
    def ratio(self) -> float | None:
        """log(measured) / log(predicted), above 1 where the run was faster; None where either is no rate."""
        if self.measured is None or not (0 < self.predicted.factor < 1 and self.measured > 0):
            return None
        return math.log(self.measured) / math.log(self.predicted.factor)

    @property
    def verdict(self) -> str:
        """`agrees`; `faster` or `slower`; or, where there is no ratio, how the run ended.

        A run may be faster while the slowest direction has little weight in it, and is to slow down later; a
        slower one speaks against the prediction.
        """
        if self.ratio is None:
            return self.status.lower().replace("_", " ")
        if abs(self.ratio - 1) <= AGREES:
            return "agrees"
        return "faster" if self.ratio > 1 else "slower"

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"ratio": self.ratio, "verdict": self.verdict}


def rates(
    optimum: Solution,
    ranks: Sequence[int],
    *,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> list[Rate]:
    """Train LoRA by gradient descent with a fixed rate to the optimum, and compare with the prediction there.

    `optimum` is a certified one, which gets columns of zeros up to the rank. Without a learning rate each
    rank has 1/‖∇²F‖₂ there. Raises InputError where the gap of the optimum is above `PRECISE`, its rank
    above one of `ranks`, or its Hessian too large.
    """
    problem, gap = optimum.problem, optimum.history[-1].gap / max(1.0, abs(optimum.objective))
    if not gap <= PRECISE:
        raise InputError(
            f"got an optimum with the relative gap {gap:.1e}, expected at most {PRECISE:.0e}, since rates "
            "are measured by the distance to it: use a larger λ"
        )
    least = max(optimum.ranks.values())
    if not ranks or min(ranks) < max(1, least):
        raise InputError(
            f"got the ranks {list(ranks)}, expected ranks of at least {max(1, least)}, that of the "
            f"optimum at λ = {problem.lam:g}, which the runs are to reach: leave out the smaller ones"
        )
    found = []
    for rank in ranks:
        point = padded(optimum.factors, rank)
        rate = learning_rate or 1 / float(spectrum(problem, point)[0][-1])
        predicted = local_rate(problem, point, rate, momentum)
        epochs = math.ceil(min(_DIGITS * predicted.steps_per_digit, MOST_EPOCHS))
        for start in STARTS:
            solver = Descent(
                rank=rank,
                epochs=epochs,
                learning_rate=rate,
                momentum=momentum,
                initialisation=start,
                seed=seed,
                tolerance=1e-300,  # it is to come as near as it can
            )
            run = solver.solve(problem, progress=progress)
            ringing = predicted.factor <= momentum * (1 + 1e-9)
            measured = _measured(run, optimum.objective, RINGING if ringing else WINDOW)
            found.append(Rate(rank, start, rate, momentum, predicted, measured, run.epochs, run.status.name))
    return found


def _measured(run: Solution, least: float, window: tuple[float, float]) -> float | None:
    if run.status is Status.DIVERGED:
        return None
    try:
        return measured_factor(run.trace, least, window)
    except InputError:  # it did not come near enough
        return None


def table(found: Sequence[Rate]) -> list[str]:
    """Return aligned columns, one line per run."""
    head = ("rank", "start", "rate η", "momentum", "h_min", "h_max", "predicted", "measured", "speed", "")
    return aligned([head, *(_row(rate) for rate in found)])


def _row(rate: Rate) -> tuple[str, ...]:
    p = rate.predicted
    return (
        str(rate.rank),
        rate.initialisation,
        relative(rate.learning_rate),
        f"{rate.momentum:g}",
        relative(p.smallest),
        relative(p.largest),
        f"{p.factor:.6f}",
        ABSENT if rate.measured is None else f"{rate.measured:.6f}",
        ABSENT if rate.ratio is None else f"{rate.ratio:.3f}",
        rate.verdict,
    )
