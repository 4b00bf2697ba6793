"""How fast gradient descent converges near an optimum: predicted from the Hessian, measured from a trace.

Near a minimiser gradient descent with rate η and momentum β acts on each eigendirection of ∇²F alone. Along
an eigenvalue h its error obeys e⁺ = (1+β−ηh)e − βe⁻, so it shrinks per step by the modulus of the larger root
of ρ² − (1+β−ηh)ρ + β = 0. Rotations (uR, vR) leave F as it is and make eigenvalues of 0: along these nothing
has to converge. F − F* is quadratic in the error and shrinks by max ρ² over the others.
Derived; docs/theory.md, "Local rates".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.theory.hessian import Hessian

MOST = 3072
"""The most coordinates for which the Hessian is formed and decomposed."""

_NULL = 1e-7
"""Share of the largest eigenvalue up to which one counts as 0: at an exact optimum those of rotations are."""


@dataclass(frozen=True)
class LocalRate:
    """The eigenvalues of ∇²F at factors and the factor by which F − F* shrinks per step near them.

    `smallest` is the least eigenvalue that is not null, `null` how many are. A `factor` of 1 or more means
    that the run does not converge there; a negative `smallest` that the point is a saddle.
    """

    smallest: float
    largest: float
    null: int
    factor: float
    best_learning_rate: float

    @property
    def steps_per_digit(self) -> float:
        """Steps in which F − F* loses a factor of ten; infinite where it does not shrink."""
        return math.inf if self.factor >= 1 else math.log(0.1) / math.log(max(self.factor, 1e-300))


def local_rate(problem: Problem, factors: Factors, learning_rate: float, momentum: float = 0.0) -> LocalRate:
    """Return the rate at which gradient descent converges to these factors, a stationary point of F.

    Works in the span of the Jacobian, where such a run stays. Raises InputError for a rate that is not
    positive, momentum outside [0, 1), factors without columns, and more than `MOST` coordinates.
    """
    if not (0 < learning_rate < math.inf and 0 <= momentum < 1):
        raise InputError(
            f"got the learning rate {learning_rate} and momentum {momentum}, expected a positive rate and "
            "momentum in [0, 1): give those of the run"
        )
    inner, span = problem.reduced
    values = torch.linalg.eigvalsh(_dense_hessian(inner, span.lower(factors)))
    floor = _NULL * float(values.abs().max())
    alive = values[values.abs() > floor]
    low, high = float(alive[0]), float(alive[-1])
    slowest = max(contraction(h, learning_rate, momentum) for h in (low, high))
    return LocalRate(
        low,
        high,
        null=len(values) - len(alive),
        factor=slowest**2,
        best_learning_rate=best_learning_rate(low, high, momentum),
    )


def contraction(h: float, learning_rate: float, momentum: float) -> float:
    """Return ρ(h), the modulus of the larger root of ρ² − (1+β−ηh)ρ + β = 0; |1 − ηh| for β = 0.

    It is convex in h above √β and constant at √β between, so its largest value over an interval is at an end.
    """
    trace = 1 + momentum - learning_rate * h
    discriminant = trace**2 - 4 * momentum
    return math.sqrt(momentum) if discriminant <= 0 else 0.5 * (abs(trace) + math.sqrt(discriminant))


def best_learning_rate(low: float, high: float, momentum: float) -> float:
    """Return the η at which the slower of two eigenvalues is fastest, 2(1+β)/(low + high); NaN at a saddle.

    The best for this β: between `low` and `high` no eigenvalue is slower than the two.
    """
    return 2 * (1 + momentum) / (low + high) if low > 0 else math.nan


def measured_factor(
    trace: Sequence[tuple[int, float]], optimum: float, window: tuple[float, float] = (1e-11, 1e-4)
) -> float:
    """Return the factor by which F − F* shrank per epoch, by least squares of its logarithm on the epoch.

    `optimum` is F* and has to be known to well below the window, (least, largest F − F*) relative to
    max(1, F*), in which the run is local and not yet rounding. Raises InputError for under ten epochs there.
    """
    size = max(1.0, abs(optimum))
    points = [
        (float(epoch), math.log(value - optimum))
        for epoch, value in trace
        if window[0] * size < value - optimum < window[1] * size
    ]
    if len(points) < 10:
        raise InputError(
            f"got {len(points)} epochs at which F − F* is between {window[0]:g} and {window[1]:g}, expected "
            "at least ten: train for longer, or give the optimum that the run approaches"
        )
    epochs, logs = torch.tensor(points, dtype=torch.float64).T
    centred = epochs - epochs.mean()
    return math.exp(float(centred @ logs / (centred @ centred)))


def _dense_hessian(problem: Problem, factors: Factors) -> Float[Tensor, "d d"]:
    d = sum(w.numel() for pair in factors.values() for w in pair)
    if not 0 < d <= MOST:
        raise InputError(
            f"got factors of {d} coordinates in the span of the Jacobian, expected 1 to {MOST}: use a "
            "smaller rank or fewer target matrices"
        )
    return Hessian(problem, factors).dense()
