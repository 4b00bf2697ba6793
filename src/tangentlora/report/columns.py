"""Text for a terminal: paragraphs and columns of at most `WIDTH`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100


def wrapped(text: str) -> list[str]:
    """Return the text in lines of at most `WIDTH`."""
    return textwrap.wrap(text, WIDTH)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows with columns of equal width, aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def named(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return one row of columns of these widths: a name at the left, the others aligned to the right."""
    name, *cells = row
    placed = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *placed]).rstrip()
