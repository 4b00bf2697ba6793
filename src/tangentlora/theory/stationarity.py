"""What kind of point a run has come to: not at rest, a saddle, or a minimum to second order.

A stationary point has S_t Q_t = 0. It is of second order where ∇²F_Π has no negative eigenvalue; if moreover
a column is unused in every layer, it is the global optimum. Derived; docs/theory.md, "Stationary points".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors, cast
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.ranks import material
from tangentlora.problem.spectral import RANK_TOLERANCE
from tangentlora.theory.curvature import Lowest, lowest
from tangentlora.theory.hessian import Hessian


class Kind(Enum):
    """What a point is; each value is a sentence that a user can act on."""

    NOT_STATIONARY = "The gradient is not zero here: train for longer before you ask what the run came to."
    STRICT_SADDLE = (
        "The run rests at a strict saddle: move by the escape direction, along which the objective falls, "
        "and train on; or add a small perturbation to the start."
    )
    RANK_DEFICIENT_SOSP = (
        "A second-order stationary point with an unused column in every layer: such a point is a global "
        "optimum, and more rank gains nothing; the gap says how exactly."
    )
    FULL_RANK_SOSP = (
        "A second-order stationary point that uses all the columns of some layer: a local minimum as far as "
        "two derivatives show; ask the certificate if it is global, and raise the rank if it is not."
    )
    UNDECIDED = (
        "The smallest eigenvalue of the Hessian is not known well enough to tell a minimum from a saddle: "
        "allow more restarts or a larger tolerance."
    )


@dataclass(frozen=True, eq=False)
class Stationarity:
    """A point's kind and the numbers it rests on.

    `gradient` is ‖∇F_Π‖ relative to (Σ_t ‖S_t‖²‖Q_t‖²)^½, in [0, 1], with λ + ‖M_t‖₂ + 2‖Π_t‖₂ for ‖S_t‖.
    `curvature` is the smallest eigenvalue of ∇²F_Π beside the zeros of rotations, and `error` that of the
    eigensolver, both relative to max_t ‖S_t‖. `imbalance` is ‖uᵀu − vᵀv‖_F, 0 at stationary points without
    Π. `used` and `width` count the independent columns of Q_t and all of them. At a strict saddle (u,v) +
    `escape` is lower by `fall`.
    """

    kind: Kind
    gradient: float
    curvature: float
    error: float
    imbalance: dict[str, float]
    used: dict[str, int]
    width: dict[str, int]
    tolerance: float
    perturbed: bool
    escape: Factors | None = None
    fall: float = 0.0

    def sentence(self) -> str:
        """Return the kind's sentence with the numbers behind it."""
        columns = ", ".join(f"{self.used[t]} of {self.width[t]}" for t in self.used)
        objective = "the perturbed objective" if self.perturbed else "the objective"
        return (
            f"{self.kind.value} (Relative gradient of {objective} {self.gradient:.1e}, smallest curvature "
            f"{self.curvature:.1e} ± {self.error:.0e}, tolerance {self.tolerance:.0e}, columns used "
            f"{columns}.)"
        )


def classify(
    problem: Problem,
    factors: Factors,
    *,
    noise: Mapping[str, Float[Tensor, "_s _s"]] | None = None,
    tolerance: float = 1e-6,
    max_restarts: int = 300,
    seed: int = 0,
) -> Stationarity:
    """Say what kind of point of F, or of F_Π with `noise` = {layer: Π_t}, the factors are.

    Stationary: relative gradient ≤ tolerance. Of second order: curvature − error ≥ −tolerance, both relative.
    Strict saddle: curvature < −tolerance, and F_Π was seen to fall along that direction. Without Π the
    eigenvalue is sought in the span of the Jacobian; across it the Hessian is λ.
    Raises InputError for factors or Π that do not fit the problem or are not finite.
    """
    factors = problem.zero() | cast(factors, problem.f0)
    noise = {} if noise is None else noise
    _check(problem, factors, noise)
    if noise:
        hessian, outside, across = Hessian(problem.contrasted, factors, noise), 0.0, math.inf
    else:
        inner, span = problem.reduced
        lowered = span.lower(factors)
        hessian = Hessian(inner, lowered)
        kept = span.lift(lowered)
        outside = _norm({t: (u - kept[t][0], v - kept[t][1]) for t, (u, v) in factors.items()})
        wider = any(lowered[t][k].numel() < pair[k].numel() for t, pair in factors.items() for k in (0, 1))
        across = problem.lam if wider else math.inf
    sizes = {t: hessian.slack_norm(t) for t in factors}
    scale = max(sizes.values()) or 1.0
    slope = math.hypot(float(hessian.gradient.norm()), problem.lam * outside)
    steepest = math.sqrt(sum((sizes[t] * _norm({t: pair})) ** 2 for t, pair in factors.items()))
    found = lowest(hessian, precision=0.1 * tolerance, max_restarts=max_restarts, seed=seed)
    used = _used(problem, factors)
    width = {t: u.shape[1] for t, (u, _) in factors.items()}
    gradient = slope / steepest if steepest else 0.0
    curvature, error = min(found.value, across) / scale, found.error / scale
    step, fall = None, 0.0
    if gradient > tolerance:
        kind = Kind.NOT_STATIONARY
    elif curvature < -tolerance:
        step, fall = _descend(hessian, found)
        kind = Kind.STRICT_SADDLE if step is not None else Kind.UNDECIDED
    elif not curvature - error >= -tolerance:
        kind = Kind.UNDECIDED
    elif all(used[t] < width[t] for t in factors):
        kind = Kind.RANK_DEFICIENT_SOSP
    else:
        kind = Kind.FULL_RANK_SOSP
    escape = None
    if step is not None:
        escape = hessian.unpack(step) if noise else span.lift(hessian.unpack(step))
    imbalance = {t: float(torch.linalg.matrix_norm(u.T @ u - v.T @ v)) for t, (u, v) in factors.items()}
    return Stationarity(
        kind, gradient, curvature, error, imbalance, used, width, tolerance, bool(noise), escape, fall
    )


def _descend(hessian: Hessian, found: Lowest) -> tuple[Float[Tensor, " d"] | None, float]:
    """Return the step along ±vector, of the lengths 2^k, after which F_Π is lowest, and its fall."""
    d = found.vector if float(hessian.gradient @ found.vector) <= 0 else -found.vector
    best, fall = None, 16 * torch.finfo(d.dtype).eps * max(1.0, abs(hessian.value))
    for k in range(6, -26, -1):
        fallen = hessian.value - hessian.moved(2.0**k * d).value
        if fallen > fall:
            best, fall = 2.0**k * d, fallen
    return best, fall if best is not None else 0.0


def _used(problem: Problem, factors: Factors) -> dict[str, int]:
    """Return the number of independent columns of each Q_t: those that count, as in `problem.ranks`."""
    turned: Factors = {}
    for t, (u, v) in factors.items():
        Z = torch.linalg.eigh(u.T @ u + v.T @ v).eigenvectors
        turned[t] = (u @ Z, v @ Z)
    return {t: int(kept.sum()) for t, kept in material(problem, turned, RANK_TOLERANCE).items()}


def _norm(factors: Factors) -> float:
    return math.sqrt(sum(float(w.square().sum()) for pair in factors.values() for w in pair))


def _check(problem: Problem, factors: Factors, noise: Mapping[str, Tensor]) -> None:
    for name, (u, v) in factors.items():
        shape = problem.jacobian.shapes.get(name)
        if (
            (len(u), len(v)) != shape
            or u.shape[1:] != v.shape[1:]
            or not (u.isfinite().all() and v.isfinite().all())
        ):
            raise InputError(
                f"got factors of shapes {tuple(u.shape)} and {tuple(v.shape)} for {name!r}, expected finite "
                f"ones of shapes (m, r) and (n, r) with (m, n) = {shape}: give those trained on this problem"
            )
    for name, matrix in noise.items():
        shape = problem.jacobian.shapes.get(name)
        side = sum(shape) if shape else 0
        if matrix.shape != (side, side) or not torch.equal(matrix, matrix.T):
            raise InputError(
                f"got Π of shape {tuple(matrix.shape)} for {name!r} with (m, n) = {shape}, expected a "
                "symmetric matrix (m+n, m+n) of a layer of the problem: give the Π of the perturbed run"
            )
