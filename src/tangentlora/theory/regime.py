"""Is the network in the NTK regime: how far the real network at W + δ is from its tangent, z(δ) = f0 + Jδ.

All guarantees of this package are about z(δ). These measures say how far they carry over to the network that
is deployed; they take its outputs as tensors. Derived; docs/theory.md, "The NTK regime".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tangentlora.blocks import Blocks
from tangentlora.errors import InputError
from tangentlora.problem.losses import Loss
from tangentlora.problem.objective import Problem
from tangentlora.tangent.operator import Operator
from tangentlora.theory.standing import Reach, SetStanding, falls_to

CLOSE, FAR = 0.1, 0.5
"""The largest error or drift at which a network counts as linear, and as nearly linear."""

_NOISE = 16
"""Units in the last place of the outputs, in norm, by which two passes of one network can differ."""


class Verdict(Enum):
    """How far the guarantees carry over; each value is a sentence that a user can act on."""

    LINEAR = (
        f"The network is linear here: errors and drift are at most {CLOSE:.0%}, and what is proved of the "
        "linearised network describes the real one."
    )
    NEARLY = (
        f"The network is nearly linear here: errors and drift are at most {FAR:.0%}, so read what is "
        "proved as an approximation and trust the real network's own scores."
    )
    OUTSIDE = (
        f"The network is outside the NTK regime here: an error or the drift exceeds {FAR:.0%}, so what is "
        "proved does not carry over; go by the real network's own loss and scores, or raise λ for a smaller "
        "update."
    )


@dataclass(frozen=True)
class Step:
    """The real and the linearised network at W + τδ on one set.

    `error` is ‖f(W+τδ) − z(τδ)‖ / ‖z(τδ) − f0‖, and 0 where neither moves. Losses are means of ℓ. Accuracies
    are in [0, 1], None where labels are no classes.
    """

    tau: float
    error: float
    linear_loss: float
    real_loss: float
    linear_accuracy: float | None
    real_accuracy: float | None


@dataclass(frozen=True)
class Regime:
    """The steps on the training and the held-out set, τ rising, and the kernel's drift from W to W + δ."""

    train: tuple[Step, ...]
    held_out: tuple[Step, ...]
    drift: float

    @property
    def reach(self) -> Reach:
        """How far along the way the real training loss falls."""
        return falls_to({step.tau: step.real_loss for step in self.train})

    @property
    def verdict(self) -> Verdict:
        """By the largest of all errors along the way and the drift; what is no number counts as large."""
        worst = [step.error for step in (*self.train, *self.held_out)] + [self.drift]
        if all(value <= CLOSE for value in worst):
            return Verdict.LINEAR
        return Verdict.NEARLY if all(value <= FAR for value in worst) else Verdict.OUTSIDE


def along(
    loss: Loss,
    y: Shaped[Tensor, "N ..."],
    f0: Float[Tensor, "N K"],
    change: Float[Tensor, "N K"],
    real: Mapping[float, Float[Tensor, "_ _"]],
) -> tuple[Step, ...]:
    """Return the steps along W + τδ for the real outputs f(W+τδ) given by τ; `change` is Jδ.

    Errors are those of what the loss can tell apart: for cross-entropy of the outputs less their mean.
    Raises InputError for τ outside [0, 1] or none, and for outputs of another shape or not finite.
    """
    if not real or any(not 0 <= tau <= 1 for tau in real):
        raise InputError(
            f"got outputs at τ = {sorted(real)}, expected some τ from 0 to 1: give the network's outputs at "
            "those"
        )
    f0, change = f0.double(), change.double()
    steps = []
    for tau in sorted(real):
        z, f = f0 + tau * change, real[tau].double()
        if f.shape != z.shape or not torch.isfinite(f).all():
            raise InputError(
                f"got outputs of shape {tuple(f.shape)} at τ = {tau}, expected finite ones of shape "
                f"{tuple(z.shape)}: run the network on the examples that were linearised, in float32"
            )
        losses = [float(loss.value(outputs, y).mean()) for outputs in (z, f)]
        accuracies = [accuracy(outputs, y) for outputs in (z, f)]
        error = output_error(loss, f0, z, real[tau]) if tau else 0.0
        steps.append(Step(tau, error, *losses, *accuracies))
    return tuple(steps)


def output_error(
    loss: Loss, before: Float[Tensor, "N K"], linear: Float[Tensor, "N K"], real: Float[Tensor, "N K"]
) -> float:
    """Return ‖f(W+δ) − z(δ)‖ / ‖z(δ) − f0‖ in what the loss can tell apart.

    What two passes of one network can differ by, in the precision of `real`, is taken off the numerator: else
    an update of nearly nothing would have a large error.
    """
    C = loss.contrasts(before.shape[1])
    noise = _NOISE * torch.finfo(real.dtype).eps * float(real.norm())
    before, linear, real = before.double(), linear.double(), real.double()

    def size(z: Float[Tensor, "N K"]) -> float:
        return float((z if C is None else z @ C.to(z).T).norm())

    missed = size(real - linear)
    return ratio(0.0 if missed <= noise else missed - noise, size(linear - before))


def set_standing(
    loss: Loss,
    y: Shaped[Tensor, "N ..."],
    before: Float[Tensor, "N K"],
    linear: Float[Tensor, "N K"] | None,
    real: Float[Tensor, "N K"],
) -> SetStanding:
    """Return losses, accuracies, paired predictions and the error of one set's outputs at W and at W + δ.

    `linear` is z(δ), None where the network was not linearised at W.
    """
    y = y.cpu()
    error = None if linear is None else output_error(loss, before.cpu(), linear.cpu(), real.cpu())
    before, real = (z.detach().cpu().double() for z in (before, real))
    linear = None if linear is None else linear.detach().cpu().double()
    was, now = right(before, y), right(real, y)
    said = None if linear is None else right(linear, y)
    return SetStanding(
        n=len(y),
        before_loss=float(loss.value(before, y).mean()),
        linear_loss=None if linear is None else float(loss.value(linear, y).mean()),
        real_loss=float(loss.value(real, y).mean()),
        before_accuracy=accuracy(before, y),
        linear_accuracy=None if linear is None else accuracy(linear, y),
        real_accuracy=accuracy(real, y),
        lost=_turned(was, now),
        gained=_turned(now, was),
        missed=_turned(said, now),
        met=_turned(now, said),
        error=error,
    )


def kernel_drift(before: Operator, after: Operator) -> float:
    """Return ‖Θ(W+δ) − Θ(W)‖_F / ‖Θ(W)‖_F, Θ = J Jᵀ (NK,NK), of the same examples linearised at both.

    Raises InputError where the two do not have the same examples and outputs.
    """
    sizes = [(jacobian.n_examples, jacobian.n_outputs) for jacobian in (before, after)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"got Jacobians of {sizes[0]} and {sizes[1]} examples and outputs, expected equal ones: "
            "linearise the same examples at both weights"
        )
    old, new = (jacobian.to(torch.float64).gram() for jacobian in (before, after))
    return ratio(float((new - old).norm()), float(old.norm()))


def accuracy(z: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."]) -> float | None:
    """Return the share of examples whose class the largest output, or the sign of a single one, predicts.

    None where the labels are vectors.
    """
    hits = right(z, y)
    return None if hits is None else float(hits.double().mean())


def _turned(first: Bool[Tensor, " N"] | None, then: Bool[Tensor, " N"] | None) -> int | None:
    """Return how many examples are right at first and wrong then."""
    return None if first is None or then is None else int((first & ~then).sum())


def right(z: Float[Tensor, "N K"], y: Shaped[Tensor, "N ..."]) -> Bool[Tensor, " N"] | None:
    """Return which examples are predicted right, None where the labels are vectors."""
    if y.ndim != 1:
        return None
    predicted = z.argmax(1) if z.shape[1] > 1 else torch.where(z[:, 0] >= 0, 1, -1)
    return predicted == y


def kernel_ridge(
    problem: Problem, targets: Float[Tensor, "N K"], shares: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0)
) -> tuple[Blocks, float]:
    """Return δ = Jᵀ(Θ + μI)⁻¹(targets − f0), the baseline of kernel regression, and the μ that was chosen.

    It minimises ½‖f0 + Jδ − targets‖² + ½μ Σ_t ‖δ_t‖_F²: the same Jacobians with a Frobenius norm in place of
    the nuclear one, so of no low rank. μ is the `share` of the kernel's mean eigenvalue with the least
    squared error on examples left out one at a time, which has a closed form: with c = (Θ+μI)⁻¹(targets − f0)
    example i is missed by ((Θ+μI)⁻¹_ii)⁻¹ c_i, blocks (K,K) and (K). Raises InputError for targets of another
    shape, shares that are not positive, and a Jacobian of zeros.
    """
    if targets.shape != problem.f0.shape or not shares or min(shares) <= 0:
        raise InputError(
            f"got targets of shape {tuple(targets.shape)} and shares {tuple(shares)}, expected the shape "
            f"{tuple(problem.f0.shape)} and positive shares: give one target per output"
        )
    n, k = problem.f0.shape
    values, vectors = torch.linalg.eigh(problem.jacobian.gram())
    values = values.clamp(min=0)
    if not float(values[-1]) > 0:
        raise InputError(
            "got a Jacobian of zeros, expected gradients: adapt matrices that act on the outputs"
        )
    wanted = (targets.to(problem.f0) - problem.f0).flatten()
    best = (math.inf, 0.0, wanted)
    for share in shares:
        mu = share * float(values.mean())
        inverse = (vectors / (values + mu)) @ vectors.T
        c = inverse @ wanted
        own = inverse.reshape(n, k, n, k)[range(n), :, range(n), :]  # (N,K,K)
        missed = torch.linalg.solve(own, c.reshape(n, k, 1))
        best = min(best, (float(missed.square().sum()), mu, c), key=lambda row: row[0])
    _, mu, c = best
    return problem.jacobian.adjoint(c.reshape(n, k)), mu


def ratio(part: float, whole: float) -> float:
    """Return part / whole; 0 where both are zero, infinite where only the whole is."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole
