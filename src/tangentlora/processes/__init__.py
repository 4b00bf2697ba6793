"""Several processes that work on one run, as torchrun starts them, and what they exchange.

Every process runs the same program on the same numbers, and each has its part of the examples: outputs are
gathered and gradients summed. In a run of one process nothing is exchanged. See docs/processes.md.
"""

from __future__ import annotations

from tangentlora.processes.exchange import Tally, barrier, checksum, gather_rows, gather_values, sum_over
from tangentlora.processes.group import GroupError, count, end, first, join, launched, leave, rank

__all__ = [
    "GroupError",
    "Tally",
    "barrier",
    "checksum",
    "count",
    "end",
    "first",
    "gather_rows",
    "gather_values",
    "join",
    "launched",
    "leave",
    "rank",
    "sum_over",
]
