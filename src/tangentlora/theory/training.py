"""What a trained update needs next, by its first-order measures and what was measured beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from tangentlora.theory.first_order import FirstOrder

REST = 0.02
"""The largest `force` (`gradient` where λ = 0) at which an update counts as at rest.

Near rest ‖∇F‖ is about 2·force·λ‖(u,v)‖, so where F curves by at least λ, no more than ‖∇F‖²/2λ is left to
gain: 4·force² of the penalty, 0.2 % of it at 0.02. In a flatter valley more can be left; docs/theory.md says
how much was seen. A convention.
"""

WORTH = 0.01
"""The fall of F, relative to F, above which a measured gain counts. A convention."""

WASTE = 2
"""The multiple of the rank needed from which the rank in use is called wasteful. A convention."""


class TrainingVerdict(Enum):
    """What holds an update back; each value is a sentence that a user can act on."""

    WITHOUT_EFFECT = (
        "Without effect: with these LoRA layers the network says exactly what it says without them, as at "
        "PEFT's start, where B = 0; the adapter changes nothing: train it."
    )
    UNDERTRAINED = (
        "Undertrained: the objective still falls at the present rank; train for longer, or with a larger or "
        "better decayed learning rate, before you change the rank."
    )
    RANK_LIMITED = (
        "Limited by its rank: training has come to rest at this rank, and further directions would lower the "
        "objective; raise the rank."
    )
    WASTEFUL = (
        f"Wasteful: training has come to rest and the rank is {WASTE} times what is needed or more; compress "
        "the adapter, or train the next one at the lower rank."
    )
    CONVERGED = (
        "Converged: training has come to rest, and no further direction lowers the objective to first order; "
        "more rank or more training gains little from here."
    )
    UNDECIDED = (
        "Undecided: without weight decay the gradient does not say whether more rank would help, or a number "
        "is not finite; audit with λ > 0, or train once more at a higher rank and compare."
    )


@dataclass(frozen=True)
class Judgement:
    """A verdict and the numbers it rests on: what `judge` was given, None where it was not.

    `slope` is what was held against REST, `rank` the largest in use and `needed` the largest needed.
    """

    verdict: TrainingVerdict
    slope: float
    directions: int
    remaining: float | None
    gain: float | None
    rank: int
    needed: int

    def sentence(self) -> str:
        """Return the verdict's sentence with its numbers and thresholds."""
        measured = "".join(
            f", {what} gains at least {_floored(value)} (threshold {WORTH:.0%})"
            for what, value in (
                ("a step along the gradient", self.remaining),
                ("a further direction", self.gain),
            )
            if value is not None
        )
        return (
            f"{self.verdict.value} (Uncancelled force {self.slope:.3f}, at rest up to {REST}; further "
            f"directions {self.directions}{measured}; rank {self.rank}, needed {self.needed}, wasteful from "
            f"{WASTE} times.)"
        )


def _floored(share: float) -> str:
    """Return a lower bound in per cent, rounded down so that it stays one."""
    return f"{math.floor(1e4 * share) / 100:.2f}%" if math.isfinite(share) else str(share)


def judge(
    found: FirstOrder,
    *,
    remaining: float | None = None,
    gain: float | None = None,
    needed_rank: int | None = None,
    changed: bool = True,
) -> Judgement:
    """Say what an update needs next.

    `remaining` is the measured fall of F, relative to F, along −∇F at the present rank, and `gain` that
    along `escape_factors`. Both come of one step and are lower bounds on what training gains: a large one
    proves that F can fall, a small one proves nothing. `needed_rank` is the largest rank that a layer needs,
    by default the most columns that a layer uses. `changed` says whether the outputs are others than without
    the update. In this order:

    - not `changed`: without effect;
    - `remaining` > WORTH, or not at rest (slope > REST): undertrained;
    - λ = 0, where every direction counts as above λ: limited by rank if `gain` > WORTH, else undecided;
    - a direction above λ, or `gain` > WORTH: limited by rank, but undertrained if a layer with such a
      direction has unused columns, as at a saddle;
    - rank ≥ WASTE × needed: wasteful; else converged.
    A measure that is no number leaves it undecided.
    """
    layers = found.layers.values()
    slope = found.force if found.penalised else found.gradient
    rank = max((layer.rank for layer in layers), default=0)
    needed = max((layer.used for layer in layers), default=0) if needed_rank is None else needed_rank
    given = [value for value in (slope, remaining, gain) if value is not None]
    gaining = gain is not None and gain > WORTH
    if not changed:
        verdict = TrainingVerdict.WITHOUT_EFFECT
    elif not all(math.isfinite(value) for value in given):
        verdict = TrainingVerdict.UNDECIDED
    elif slope > REST or (remaining is not None and remaining > WORTH):
        verdict = TrainingVerdict.UNDERTRAINED
    elif not (found.penalised or gaining):
        verdict = TrainingVerdict.UNDECIDED
    elif found.directions or gaining:
        unused = any(layer.directions and layer.used < layer.rank for layer in layers)
        verdict = TrainingVerdict.UNDERTRAINED if unused else TrainingVerdict.RANK_LIMITED
    elif rank >= WASTE * max(needed, 1):
        verdict = TrainingVerdict.WASTEFUL
    else:
        verdict = TrainingVerdict.CONVERGED
    return Judgement(verdict, slope, found.directions, remaining, gain, rank, needed)
