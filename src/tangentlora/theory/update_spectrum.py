"""How an update's weight is spread over its singular values: ranks that are no whole numbers, and energy."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateSpectrum:
    """The singular values σ_j of one δ_t = u_t v_tᵀ, largest first, one per column of the factors."""

    values: tuple[float, ...]

    @property
    def nuclear_norm(self) -> float:
        """‖δ‖_* = Σ_j σ_j."""
        return math.fsum(self.values)

    @property
    def stable_rank(self) -> float:
        """‖δ‖_F² / ‖δ‖₂² = Σ_j σ_j² / σ₁², between 1 and the rank; 0 for δ = 0."""
        return math.fsum(self._squares)

    @property
    def effective_rank(self) -> float:
        """exp(−Σ_j p_j log p_j), p_j = σ_j / ‖δ‖_*, between 1 and the rank; 0 for δ = 0.

        Source: Roy and Vetterli 2007, "The effective rank".
        """
        total = self.nuclear_norm
        if not total:
            return 0.0
        shares = [value / total for value in self.values]
        return math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0))

    def energy(self, k: int) -> float:
        """Return the share Σ_{j≤k} σ_j² / Σ_j σ_j² of ‖δ‖_F² in the first k directions; 1 for δ = 0."""
        squares = self._squares
        return math.fsum(squares[:k]) / math.fsum(squares) if squares else 1.0

    @property
    def _squares(self) -> list[float]:
        """(σ_j / σ₁)², which cannot underflow; none for δ = 0."""
        return [(value / self.values[0]) ** 2 for value in self.values] if self.nuclear_norm else []
