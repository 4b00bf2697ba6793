"""JSON values that come from a file, taken as what they should be or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

Number: TypeAlias = float | None
"""A finite number, or None where it is not finite or was not measured: JSON has no word for NaN."""

Value = TypeVar("Value")


def parse_number(value: object) -> Number:
    """Return a finite float or None; raises TypeError for what is not a number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else None


def parse_object(value: object) -> Mapping[str, Any]:
    """Return a JSON object, empty where it is null or absent; raises TypeError for any other value."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is not an object")
    return value or {}


def parse_mapping(values: object, parse: Callable[[Any], Value]) -> dict[str, Value]:
    """Return a JSON object with each value parsed."""
    return {str(name): parse(value) for name, value in parse_object(values).items()}
