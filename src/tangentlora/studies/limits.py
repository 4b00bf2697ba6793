"""The limits of what the verbs ask for, told before anything heavy is imported."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tangentlora.errors import InputError

MOST_POINTS = 10_000
LEAST_FRACTION = 1e-12


def require_ranks(ranks: Sequence[int]) -> None:
    """Raise InputError for no ranks or one below 1."""
    if not ranks or min(ranks) < 1:
        *most, last = map(str, ranks or ("(none)",))
        listed = f"{', '.join(most)} and {last}" if most else last
        raise InputError(f"got the ranks {listed}, expected at least one, none below 1: change --ranks")


def check_survey(ranks: Sequence[int], size: float | None, repeats: int) -> None:
    """Raise InputError for no ranks or one below 1, a ‖Π‖₂ that is not positive, and repeats below 1."""
    require_ranks(ranks)
    if size is not None and not 0 < size < math.inf:
        raise InputError(
            f"got ‖Π‖₂ = {size}, expected a positive number, far below λ: the theorem is about a perturbed "
            "objective, so change --perturbation or leave it out"
        )
    if repeats < 1:
        raise InputError(f"got {repeats} repeats of each random start, expected at least 1: change --repeats")


def check_path(points: int, fraction: float, folds: int | None) -> None:
    """Raise InputError for a path of no or too many points, one without an end, and fewer than two folds."""
    if not (2 <= points <= MOST_POINTS and LEAST_FRACTION <= fraction < 1):
        raise InputError(
            f"got {points} points from λ_max to {fraction} of it, expected 2 to {MOST_POINTS} points and a "
            f"fraction of at least {LEAST_FRACTION:g} and below 1: change --points or --fraction"
        )
    if folds is not None and folds < 2:
        raise InputError(f"got {folds} folds, expected at least 2: change --folds")


def check_compression(rank: int | None, tolerance: float | None) -> None:
    """Raise InputError for a rank below 1 and a tolerance that is not positive."""
    if rank is not None and rank < 1:
        raise InputError(f"got rank {rank}, expected at least 1: change --rank")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise InputError(f"got tolerance {tolerance}, expected a positive number: change --tolerance")


def require_lam(lam: float | None, weight_decay: float | None) -> None:
    """Raise InputError where both are given, or one is negative or not finite."""
    if lam is not None and weight_decay is not None:
        raise InputError(
            "got both --lam and --weight-decay, expected one of them, since λ = w/s: leave one out"
        )
    for name, value in {"λ": lam, "the weight decay w": weight_decay}.items():
        if value is not None and not 0 <= value < math.inf:
            raise InputError(
                f"got {name} = {value}, expected a finite number of at least 0: give the one that the "
                "adapter was trained with"
            )
