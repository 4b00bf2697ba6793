"""Which epochs are logged, and a step size that falls when the objective rises."""

from __future__ import annotations

import math

import torch

_WINDOW = 10  # epochs whose mean objective is compared with that of the window before


def log_epochs(epochs: int, points: int = 24) -> frozenset[int]:
    """Return about `points` epochs from 0 to `epochs`, evenly spread in log(1 + epoch)."""
    spread = {round((1 + epochs) ** (k / (points - 1))) - 1 for k in range(points)}
    return frozenset(spread | {0, epochs})


class StepSize:
    """An optimiser whose learning rate is halved, and its momentum dropped, when the objective rises.

    The mean over ten epochs is compared with that of the ten before, so that the ripples of momentum do
    no harm. With `adaptive` false the rate is the user's and stays.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, adaptive: bool) -> None:
        self.optimizer = optimizer
        self.adaptive = adaptive
        self._window: list[float] = []
        self._before = math.inf

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def observe(self, objective: float) -> None:
        """Take note of one epoch's objective."""
        if not self.adaptive:
            return
        self._window.append(objective)
        if len(self._window) < _WINDOW:
            return
        mean = sum(self._window) / _WINDOW
        if mean > self._before * (1 + 1e-9):
            self._shrink(0.5)
        self._before = mean
        self._window.clear()

    def retreat(self, factor: float = 0.25) -> bool:
        """Start again with a part of the rate after a divergence; return False where the rate stays."""
        if not self.adaptive:
            return False
        self._shrink(factor)
        self._before = math.inf
        self._window.clear()
        return True

    def _shrink(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self.optimizer.state.clear()
