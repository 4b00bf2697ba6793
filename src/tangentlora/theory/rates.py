"""How fast gradient descent converges near an optimum: predicted from the Hessian, measured from a trace.

Near a minimiser gradient descent with rate η and momentum β acts on each eigendirection of ∇²F alone. Along
an eigenvalue h its error obeys e⁺ = (1+β−ηh)e − βe⁻, so it shrinks per step by the modulus of the larger root
of ρ² − (1+β−ηh)ρ + β = 0. Rotations (uR, vR) leave F as it is and make eigenvalues of 0: along these nothing
has to converge. F − F* is quadratic in the error and shrinks by max ρ² over the others. Columns of zeros
split off: ∇²F is that of the columns in use, and one S_t = [[λI, M_t],[M_tᵀ, λI]] per column of zeros.
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
from tangentlora.problem.ranks import material
from tangentlora.problem.spectral import RANK_TOLERANCE
from tangentlora.theory.hessian import Hessian

MOST = 4096
"""The most coordinates of columns in use for which the Hessian is formed and decomposed."""


@dataclass(frozen=True)
class LocalRate:
    """The ends of the spectrum of ∇²F at factors and the factor by which F − F* shrinks per step near them.

    `smallest` and `largest` are over the directions orthogonal to the rotations, which `rotations` counts. A
    `factor` of 1 or more means that the run does not converge there at a rate; a negative `smallest` that the
    point is a saddle.
    """

    smallest: float
    largest: float
    rotations: int
    factor: float
    best_learning_rate: float

    @property
    def steps_per_digit(self) -> float:
        """Steps in which F − F* loses a factor of ten; infinite where it does not shrink."""
        return math.inf if self.factor >= 1 else math.log(0.1) / math.log(max(self.factor, 1e-300))


def local_rate(problem: Problem, factors: Factors, learning_rate: float, momentum: float = 0.0) -> LocalRate:
    """Return the rate at which gradient descent converges to these factors, a stationary point of F.

    Works in the space in which a run stays that starts at u = 0: the span of the Jacobian and of the start's
    v. A column counts as zero where it does in a rank, as in `problem.ranks`. Raises
    InputError for a rate that is not positive, momentum outside [0, 1), factors without columns, and more
    than `MOST` coordinates of columns in use.
    """
    if not (0 < learning_rate < math.inf and 0 <= momentum < 1):
        raise InputError(
            f"got the learning rate {learning_rate} and momentum {momentum}, expected a positive rate and "
            "momentum in [0, 1): give those of the run"
        )
    values, rotations = spectrum(problem, factors)
    low, high = float(values[0]), float(values[-1])
    slowest = max(contraction(h, learning_rate, momentum) for h in (low, high))
    return LocalRate(low, high, rotations, slowest**2, best_learning_rate(low, high, momentum))


def spectrum(problem: Problem, factors: Factors) -> tuple[Float[Tensor, " d"], int]:
    """Return the eigenvalues of ∇²F beside the zeros of rotations, smallest first, and how many those are.

    Repeated ones of columns of zeros appear once. Raises InputError as `local_rate` does.
    """
    inner, span = problem.reduced
    used, unused = _separate(inner, span.lower(factors))
    d = sum(w.numel() for pair in used.values() for w in pair)
    if d > MOST or not (d or any(unused.values())):
        raise InputError(
            f"got factors of {d} coordinates in the span of the Jacobian, expected 1 to {MOST}: use a "
            "smaller rank or fewer target matrices"
        )
    hessian = Hessian(inner, used)
    kept, rotations = _without(hessian.dense(), hessian.rotations)
    parts = [kept]
    for name, (u, v) in used.items():
        if unused[name]:
            kept, turned = _without(hessian.slack(name), _orthonormal(torch.cat([u, v])))
            parts.append(kept)  # of S_t: to turn a column in use into one of zeros changes nothing
            rotations += unused[name] * turned
        if len(v) < problem.jacobian.shapes[name][1] and (v.shape[1] or unused[name]):
            parts.append(kept.new_full((1,), problem.lam))  # across the span, where the start's v dies out
    return torch.cat(parts).sort().values, rotations


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


def _separate(problem: Problem, factors: Factors) -> tuple[Factors, dict[str, int]]:
    """Return the factors turned so that columns of zeros split off, without these, and their number."""
    turned: Factors = {}
    for name, (u, v) in factors.items():
        Z = torch.linalg.eigh(u.T @ u + v.T @ v).eigenvectors
        turned[name] = (u @ Z, v @ Z)
    alive = material(problem, turned, RANK_TOLERANCE)
    used: Factors = {name: (u[:, alive[name]], v[:, alive[name]]) for name, (u, v) in turned.items()}
    unused = {name: int((~kept).sum()) for name, kept in alive.items()}
    return used, unused


def _without(H: Float[Tensor, "d d"], Q: Float[Tensor, "d k"]) -> tuple[Float[Tensor, " c"], int]:
    """Return the eigenvalues of H on the directions orthogonal to the orthonormal Q, and the number k."""
    if not Q.shape[1]:
        return torch.linalg.eigvalsh(H), 0
    complete = torch.linalg.qr(Q, mode="complete").Q[:, Q.shape[1] :]
    return torch.linalg.eigvalsh(complete.T @ H @ complete), Q.shape[1]


def _orthonormal(Q: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    basis: Tensor = torch.linalg.qr(Q).Q
    return basis
