"""The best of the points that a solver comes by, which is the one that it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.proof import proved
from tangentlora.problem.spectral import EPS

_ROUNDING = 16 * EPS  # what F cannot resolve, relative to max(1, F)


@dataclass
class Lowest:
    """The lowest F seen; of points that rounding cannot tell from it, that with the smallest gap."""

    objective: float = math.inf
    gap: float = math.inf
    factors: Factors = field(default_factory=dict)
    _least: float = math.inf

    def offer(self, objective: float, gap: float, factors: Factors) -> bool:
        """Keep the point if it is better, and say so; one that is no number never is."""
        if not math.isfinite(objective):
            return False
        margin = _ROUNDING * max(1.0, min(abs(self._least), abs(objective)))
        better = objective < self._least - margin or (objective <= self._least + margin and gap < self.gap)
        self._least = min(self._least, objective)
        if better or not math.isfinite(self.objective):
            self.objective, self.gap, self.factors = objective, gap, factors
            return True
        return False

    def certain(self, problem: Problem, factors: Factors, tolerance: float) -> bool:
        """Return whether the point kept, `factors` in the problem's coordinates, is proved optimal."""
        return self.gap <= tolerance * max(1.0, self.objective) and proved(
            problem, factors, self.gap, tolerance
        )


def require_finite(objective: float) -> None:
    """Raise InputError where the objective is no finite number at the start already."""
    if not math.isfinite(objective):
        raise InputError(
            f"got the objective {objective} at the start, expected a finite number: the outputs, labels or λ "
            "times the start are too large for float64, so scale them down"
        )
