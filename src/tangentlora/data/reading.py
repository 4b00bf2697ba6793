"""How a source was read: where the rows of each set come from, and what of the source was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """What is known of a source beyond its examples; empty for examples made in Python.

    `origins` says in words where the rows of each set come from. `text` and `label` are the columns that were
    read, `unused` those that were not. `left_out` are rows without a text, by set, that no set has; `notes`
    is whatever else was done that nobody asked for, one sentence each.
    """

    text: tuple[str, ...] = ()
    label: str | None = None
    unused: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
