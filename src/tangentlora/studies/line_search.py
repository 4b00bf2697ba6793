"""How far an objective falls along one direction, found in a few evaluations of a real network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_LONGER, _SHORTER = 8.0, 64.0  # the largest factors between one step and the next
_ENOUGH, _LITTLE = 0.8, 1e-4  # of what the parabola promises, and of the value at the start


@dataclass(frozen=True)
class Fall:
    """The largest fall that was seen, relative to the objective at the start, its step, and evaluations."""

    relative: float
    step: float
    evaluations: int


def line_search(
    objective: Callable[[float], float], start: float, slope: float, first: float, most: int
) -> Fall:
    """Return the largest fall of φ(τ) from φ(0) = `start` > 0 among at most `most` steps τ > 0.

    `slope` = −φ'(0) > 0 is known, so each evaluation gives a parabola through it, and its lowest point is the
    next step, at most 8 times longer or 64 times shorter. The search starts at `first`. It ends early where
    80 % of what the parabola promises was seen, or the promise is below 0.01 % of φ(0). What is returned was
    measured: a lower bound on what the direction has to give, and 0 where no step fell.
    """
    best, at, step, done = 0.0, 0.0, first, 0
    while done < most:
        value = objective(step)
        done += 1
        if not math.isfinite(value):
            step /= _SHORTER
            continue
        if start - value > best:
            best, at = start - value, step
        bend = (value - start + slope * step) / step**2
        lowest = slope / (2 * bend) if bend > 0 else math.inf
        promised = slope * lowest / 2 if bend > 0 else math.inf
        if best >= _ENOUGH * promised or promised <= _LITTLE * start:
            break
        step = min(max(lowest, step / _SHORTER), step * _LONGER)
    return Fall(best / start, at, done)
