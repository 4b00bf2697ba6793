"""JSON values that come from a file, taken as what they should be or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from tangentlora.errors import InputError

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


def read_text(folder: Path, name: str, wanted: str) -> str:
    """Return a file's text; raise `InputError`, which ends in what was `wanted`, where it cannot be read."""
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError(f"got {folder}, where {name} {reason}, expected {wanted}.") from error


def parsed(path: Path, parse: Callable[[Any], Value], value: Any, writer: str) -> Value:
    """Return `parse(value)`; raise `InputError`, which names its `writer`, where it is damaged."""
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"got {path}, which is damaged ({type(error).__name__}: {reason}), expected the file as {writer}."
        ) from error
