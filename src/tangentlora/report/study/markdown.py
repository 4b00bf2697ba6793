"""Markdown tables that are aligned as plain text too, and numbers with their spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tangentlora.report.study.series import Mean
from tangentlora.report.wording import ABSENT, accuracy


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column to the left and the others to the right, columns aligned."""
    cells = [[text.replace("|", "\\|") for text in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(_pad(text, width, i) for i, (text, width) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def spread(value: Mean | None, words: Callable[[float], str] = accuracy) -> str:
    """Return `mean ± std`, or the value alone where there is one seed."""
    if value is None:
        return ABSENT
    return words(value.mean) if value.n == 1 else f"{words(value.mean)} ± {words(value.std)}"


def spread_digits(value: Mean | None) -> str:
    """Return `mean ± std` to the third digit of the mean."""
    if value is None:
        return ABSENT
    places = 2 - math.floor(math.log10(abs(value.mean))) if value.mean else 2
    return spread(value, lambda x: f"{round(x, places):.{max(0, places)}f}")


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)
