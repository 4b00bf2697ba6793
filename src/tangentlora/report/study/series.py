"""Mean and standard deviation over seeds, of numbers and of curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, stdev
from typing import TypeAlias

from tangentlora.report.parsing import Number

Points: TypeAlias = Sequence[tuple[int, Number]]
"""(epoch, value) of one run, the epochs rising; the value None where it was not finite."""


@dataclass(frozen=True)
class Mean:
    """Mean x̄ and standard deviation √(Σ(x − x̄)²/(n − 1)) of n numbers, 0 where n = 1."""

    mean: float
    std: float
    n: int
    largest: float


@dataclass(frozen=True)
class Band:
    """A mean curve between mean − std and mean + std over n runs, at each epoch."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int


def mean_of(values: Iterable[Number]) -> Mean | None:
    """Return the mean of those values that are known, None where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Mean(fmean(known), stdev(known) if len(known) > 1 else 0.0, len(known), max(known))


def log_mean_of(values: Iterable[Number], floor: float) -> tuple[float, float, float] | None:
    """Return 10^m, 10^(m − s) and 10^(m + s) for mean m and std s of log₁₀ max(value, floor)."""
    found = mean_of(None if value is None else math.log10(max(value, floor)) for value in values)
    if found is None:
        return None
    return 10**found.mean, 10 ** (found.mean - found.std), 10 ** (found.mean + found.std)


def band_of(runs: Sequence[Points], floor: float | None = None) -> Band | None:
    """Return the mean curve of several runs, None where one of them has no finite value.

    Between its points a run is interpolated linearly; after its last one it keeps that value, for it ended.
    From the first epoch at which a run is not finite there is no mean. With `floor`, mean and standard
    deviation are those of log₁₀ max(value, floor), as a logarithmic axis shows them.
    """
    import numpy as np

    finite = [[(x, y) for x, y in takewhile(lambda point: point[1] is not None, run)] for run in runs]
    if not finite or not all(finite):
        return None
    ended = [run[-1][0] for run, all_of_it in zip(finite, runs, strict=True) if len(run) < len(all_of_it)]
    epochs = sorted({epoch for run in finite for epoch, _ in run if epoch <= min(ended, default=epoch)})
    values = np.array([np.interp(epochs, *np.array(run, dtype=float).T) for run in finite])
    if floor is not None:
        values = np.log10(np.maximum(values, floor))
    mean = values.mean(axis=0)
    std = values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
    low, mean, high = (rows if floor is None else 10**rows for rows in (mean - std, mean, mean + std))
    return Band(tuple(epochs), tuple(mean.tolist()), tuple(low.tolist()), tuple(high.tolist()), len(runs))
