"""How far an answer can be from the global optimum, in the objective's units and against its size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TELLING = 0.01
"""A gap above this fraction of P says little of the answer, however small it is."""


@dataclass(frozen=True)
class Distance:
    """P(δ) − min P ≤ `gap`, rounding included, at the objective P."""

    gap: float
    objective: float

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Distance:
        """Return that of a certificate's fields."""
        gap, rounding, objective = (numbers[name] for name in ("gap", "rounding", "objective"))
        return cls(gap + rounding, objective)

    @property
    def share(self) -> float:
        """The gap over |P|, infinite for P = 0."""
        return self.gap / abs(self.objective) if self.objective else float("inf")

    @property
    def telling(self) -> bool:
        """Whether the gap is small against P itself."""
        return self.share <= TELLING

    def said(self) -> str:
        """Return both, as in 3.1e-12 (3.5e-12 of the objective)."""
        return f"{self.gap:.1e} ({self.share:.1e} of the objective)"

    def warning(self) -> str:
        """Return what a gap means that is not small against P."""
        return (
            f"The objective is only {self.objective:.1e}, so that the gap is small in the loss's units and "
            "says little of what is left of it."
        )
