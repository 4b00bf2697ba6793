"""What a verb gives back to be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A verb's answer as JSON can hold it and as text; `negative` is an answer of no, exit status 1."""

    values: dict[str, Any]
    text: str
    negative: bool = False
