"""Whether a certificate's fields are those computed anew: inputs exactly, numbers within their rounding.

Two right computations of a number differ by what float64 may do to both, which is bounded for each of them.
Numbers that follow from others of the certificate, such as the gap, follow exactly. Derived;
docs/certificates.md, "Checking one".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tangentlora.theory.recompute import Recomputation, dual_scale


def differences(claimed: Mapping[str, Any], found: Recomputation) -> list[str]:
    """Return what a certificate says that is not so, one sentence part each; nothing where all is right."""
    reasons = [
        f"the certificate has the unknown field {name}" for name in sorted(set(claimed) - set(found.fields))
    ]
    for name, ours in found.fields.items():
        if name not in claimed:
            reasons.append(f"the certificate lacks {name}")
        elif isinstance(ours, dict):
            reasons += _in_layers(name, claimed[name], ours, found)
        elif not _agrees(claimed[name], ours, found.allowed.get(name), found.between.get(name)):
            reasons.append(_said(name, claimed[name], ours))
    return reasons or _inconsistencies(claimed)


def _in_layers(name: str, theirs: Any, ours: Mapping[str, Any], found: Recomputation) -> list[str]:
    if not isinstance(theirs, dict) or set(theirs) != set(ours):
        return [_said(name, theirs, ours)]
    allowed, between = found.allowed.get(name, {}), found.between.get(name, {})
    return [
        _said(f"{name} of {layer}", theirs[layer], number)
        for layer, number in ours.items()
        if not _agrees(theirs[layer], number, allowed.get(layer), between.get(layer))
    ]


def _agrees(theirs: Any, ours: Any, allowed: float | None, between: tuple[int, int] | None) -> bool:
    if isinstance(ours, bool):
        return isinstance(theirs, bool)  # what the numbers beside it make of it is asked afterwards
    if not isinstance(ours, float):
        least, most = between or (ours, ours)
        return type(theirs) is type(ours) and bool(least <= theirs <= most)
    if theirs is None:
        return not math.isfinite(ours)  # JSON has no word for it
    if isinstance(theirs, bool) or not isinstance(theirs, int | float):
        return False
    if ours == theirs:
        return True  # an infinite one too
    allowed = allowed or 0.0
    return ours - allowed <= theirs <= ours + allowed  # false for a NaN on either side


def _inconsistencies(claimed: Mapping[str, Any]) -> list[str]:
    """Return which numbers do not follow from the others of the certificate as float64 computes them."""
    numbers = ("objective", "lower_bound", "rounding", "factored_objective")
    if any(claimed[name] is None for name in numbers):
        return [] if claimed["certified"] is False else [_said("certified", claimed["certified"], False)]
    objective, lower, rounding = (float(claimed[name]) for name in ("objective", "lower_bound", "rounding"))
    size, gap = max(1.0, abs(objective)), objective - lower
    follows: dict[str, float | bool] = {
        "gap": gap,
        "relative_gap": gap / size,
        "factored_gap": float(claimed["factored_objective"]) - lower,
        "dual_scale": dual_scale(claimed["lam"], max(claimed["spectral_norms"].values())),
        "certified": math.isfinite(gap) and gap + rounding <= claimed["tolerance"] * size,
    }
    return [_said(name, claimed[name], ours) for name, ours in follows.items() if claimed[name] != ours]


def _said(name: str, theirs: Any, ours: Any) -> str:
    return f"{name} is {_short(theirs)} in the certificate and {_short(ours)} anew"


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 200 else f"{text[:200]}…"
