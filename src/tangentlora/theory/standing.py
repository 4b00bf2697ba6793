"""Does an answer hold on the real network, the one that is deployed: rules for its own losses and outputs.

A certificate is about the network linearised at W. This judgement is about f(W + δ), and needs no proof: all
of it is measured. Plain Python, so that reports read it without torch. Derived; docs/theory.md, "Does an
answer hold".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

CHANCE = 0.05
"""The two-sided level of McNemar's exact test from which a fall of accuracy counts. A convention."""

ROUGH = 0.5
"""The relative error of the outputs above which the linearised network describes the real one roughly only.
A convention, that of `theory.regime`."""

LEFT = 1.0
"""The relative error above which the linearised network says less of the real one than no update at all:
‖f(W+δ) − z(δ)‖ > ‖z(δ) − f0‖ is that z(δ) is further from f(W+δ) than from where it began."""

HALVINGS = 8
"""The most halvings of τ with which a part of the update that lowers the loss is looked for."""


class Holds(Enum):
    """Whether an answer holds on the real network; each value is a sentence."""

    YES = (
        "The answer holds on the real network: the training loss and the objective are not above those "
        "before training, and accuracy has not fallen by more than chance explains."
    )
    ROUGHLY = (
        "The answer holds on the real network, but the linearised one describes it only roughly: trust the "
        "real network's own scores."
    )
    LOSS_RISES = (
        "The answer does not hold on the real network: the training loss is above that before training."
    )
    OBJECTIVE_RISES = (
        "The answer does not hold on the real network: the objective, training loss + λ · penalty, is above "
        "that before training, so that no update at all is the better answer."
    )
    ACCURACY_FALLS = (
        "The answer does not hold on the real network: its accuracy is below that before training by more "
        "than chance explains."
    )
    LEFT_REGIME = (
        "The answer does not hold on the real network: the outputs are further from those of the linearised "
        "network than the promised change is long, so that nothing proved describes them."
    )
    FITS_TOO_CLOSELY = (
        "The answer is no better on new examples: accuracy is below that before training by more than chance "
        "explains, in the linearised network too, so that the fit is at fault and not the linearisation."
    )
    NOT_FINITE = "The answer does not hold on the real network: the loss is not a finite number."


@dataclass(frozen=True)
class SetStanding:
    """One labelled set before training, and in the linearised and the real network at W + δ.

    Losses are means of ℓ, accuracies in [0, 1], None where there are none. `lost` counts the examples that
    are right before and wrong after in the real network, `gained` the others way round; `missed` those that
    are right in the linearised network at W + δ and wrong in the real one, `met` the reverse. `error`
    is ‖f(W+δ) − z(δ)‖ / ‖z(δ) − f0‖ in what the loss can tell apart.
    """

    n: int
    before_loss: float | None
    linear_loss: float | None
    real_loss: float | None
    before_accuracy: float | None = None
    linear_accuracy: float | None = None
    real_accuracy: float | None = None
    lost: int | None = None
    gained: int | None = None
    missed: int | None = None
    met: int | None = None
    error: float | None = None

    @property
    def chance(self) -> float | None:
        """The probability of so uneven changes of predictions by chance; None where they are not known."""
        return None if self.lost is None or self.gained is None else paired_chance(self.lost, self.gained)

    @property
    def accuracy_falls(self) -> bool:
        """Whether more examples were lost than gained, and chance does not explain it."""
        return _falls(self.lost, self.gained)

    @property
    def follows(self) -> bool:
        """Whether it is known that accuracy is that of the linearised network, or better, up to chance."""
        return self.missed is not None and not _falls(self.missed, self.met)


@dataclass(frozen=True)
class Reach:
    """How far along W + τδ the real training loss falls: from τ = 0 to `tau`, where it is `loss`.

    `tried` are all (τ, loss) that were measured, τ rising: it falls from each to the next up to `tau`.
    """

    tau: float
    loss: float
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Standing:
    """An answer on the real network: the sets by name, `train` among them, and what the verdict needs.

    `penalty` is λ Σ_t ‖δ_t‖_*, 0 where the objective is the loss alone. A loss that is higher by `slack` at
    most is no rise, such as the rounding of two passes. `reach` is None where nothing had to be looked for.
    """

    sets: Mapping[str, SetStanding]
    penalty: float | None = 0.0
    slack: float = 0.0
    reach: Reach | None = field(default=None)

    @property
    def train(self) -> SetStanding:
        return self.sets["train"]

    @property
    def objective(self) -> float | None:
        """P(δ) = L(f(W+δ)) + λ Σ_t ‖δ_t‖_* of the real network; P(0) is the training loss before."""
        loss = self.train.real_loss
        return None if loss is None or self.penalty is None else loss + self.penalty

    @property
    def error(self) -> float | None:
        """The largest relative error of the outputs among the sets."""
        errors = [part.error for part in self.sets.values() if part.error is not None]
        return max(errors, key=lambda e: math.inf if math.isnan(e) else e, default=None)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the answer on the real network."""
        return self.verdict in (Holds.YES, Holds.ROUGHLY)

    @property
    def verdict(self) -> Holds:
        """The first rule that speaks against the answer, else how near the two networks are.

        The order is that of the evidence: what is no number, the loss, the objective, accuracy, the outputs.
        """
        before, after, error = self.train.before_loss, self.train.real_loss, self.error
        if before is None or after is None or not math.isfinite(before + after):
            return Holds.NOT_FINITE
        if after > before + self.slack:
            return Holds.LOSS_RISES
        if self.objective is not None and self.objective > before + self.slack:
            return Holds.OBJECTIVE_RISES
        falling = [part for part in self.sets.values() if part.accuracy_falls]
        if not all(part.follows for part in falling):
            return Holds.ACCURACY_FALLS
        if error is not None and not error <= LEFT:
            return Holds.LEFT_REGIME
        if falling:
            return Holds.FITS_TOO_CLOSELY
        if error is None:
            return Holds.YES
        return Holds.YES if error <= ROUGH else Holds.ROUGHLY


def _falls(lost: int | None, gained: int | None) -> bool:
    """Say if more were lost than gained, and chance does not explain it."""
    if lost is None or gained is None or lost <= gained:
        return False
    return paired_chance(lost, gained) < CHANCE


def paired_chance(lost: int, gained: int) -> float:
    """Return the p-value of McNemar's exact two-sided test, min(1, 2 Σ_{j≥k} C(n,j) 2⁻ⁿ).

    n = lost + gained are the examples whose prediction turned right or wrong, k the larger of the two: where
    an update changes nothing but by chance, each is as likely to be lost as gained. McNemar 1947 [recalled].
    """
    n, k = lost + gained, max(lost, gained)
    term = math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
    tail = 0.0
    while k <= n and term > 1e-18 * tail:
        tail += term
        term *= (n - k) / (k + 1)
        k += 1
    return min(1.0, 2 * tail)


def falls_to(tried: Mapping[float, float]) -> Reach:
    """Return how far from τ = 0 the loss falls from each τ that was tried to the next."""
    points = sorted(tried.items())
    at = 0
    while at + 1 < len(points) and points[at + 1][1] < points[at][1]:
        at += 1
    return Reach(*points[at], tuple(points))


def find_reach(loss: Callable[[float], float], known: Mapping[float, float]) -> Reach:
    """Return how far along τ the loss falls, in few evaluations of it.

    `known` holds the losses at some τ, 0 and 1 among them; only others are asked for. τ is halved until the
    loss at it is below both that at 0 and that at its half, `HALVINGS` times at most; then 3/2 of it is tried
    too. Where the loss first falls and then rises, it turns between half and twice the τ returned.
    """
    tried = dict(known)

    def at(tau: float) -> float:
        if tau not in tried:
            tried[tau] = loss(tau)
        return tried[tau]

    tau = 1.0
    for _ in range(HALVINGS + 1):
        if at(tau) < tried[0.0] and not at(tau / 2) < at(tau):
            if tau < 1:
                at(1.5 * tau)
            break
        tau /= 2
    return falls_to(tried)
