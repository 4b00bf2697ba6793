"""What a certified solve will hold beyond the rows of its problem, before it begins."""

from __future__ import annotations

from tangentlora.problem.objective import _KERNEL_LIMIT, _SAMPLE
from tangentlora.solvers.local_model import _DESIGN_LIMIT
from tangentlora.tangent.gram import _ENTRIES
from tangentlora.tangent.plan import ProblemShape

_NUMBER = 8  # bytes of float64


def solve_bytes(shape: ProblemShape, rank: int = 8, *, blocks: bool = False) -> int:
    """Return the bytes that stating, solving and certifying hold at once beyond the rows; a prediction.

    `rank` is that of all layers together, which is not known before; escapes hold half as much again. With
    `blocks` the rows are read from a store, else they are in memory and are copied where they lie in bands.
    The three come one after the other, so the largest counts:

        stating    max_t R_t m (K or 1.4 K')          one layer's rows as they are contrasted and checked
        solving    2·NK'd + 2·sd + 3s² + 4RK'r + 4mn   design matrices, d = r(m+n), of all if kept and of s
        certifying 2(NK')² + 2(RK')²                   the kernel whose rank is c, where it is decomposed
    """
    n, k = shape.examples, shape.contrasts
    sides = {name: shape.shapes[name] for name in shape.rows}
    entries = {name: count * sides[name][0] for name, count in shape.rows.items()}  # of g, for one output
    bands = 0 if blocks else sum(_banded(entries[t], count, n) for t, count in shape.rows.items())
    dense = sum(m * width for m, width in sides.values())
    largest = max(max(m, width) for m, width in sides.values()) ** 2

    columns = rank + rank // 2
    unknowns = columns * max(m + width for m, width in sides.values())
    sampled = min(n, max(1, _SAMPLE // k))
    kept = n * k * unknowns if n * k * unknowns <= _DESIGN_LIMIT and not blocks else 0
    design = 2 * kept + 2 * sampled * k * unknowns + 3 * (sampled * k) ** 2
    rows_of_sample = sum(
        sampled * count // max(1, n) * (sides[t][1] + k * sides[t][0]) for t, count in shape.rows.items()
    )
    points = 0 if blocks else 4 * max(shape.rows.values()) * (k + 1) * columns
    pulled = 0 if blocks else max(_pulled(entries[t], count, n, k) for t, count in shape.rows.items())
    solving = design + rows_of_sample + points + 4 * dense + 3 * largest + pulled

    stating = 0 if blocks else max(entries.values()) * max(shape.outputs, 1.4 * k)
    pairs = min(_ENTRIES, (max(shape.rows.values()) * k) ** 2)
    kernel = 2 * (n * k) ** 2 + 2 * pairs if n * k <= _KERNEL_LIMIT else 0
    certifying = shape.outputs * bands + kernel + 3 * largest + dense
    return _NUMBER * round(max(stating, k * bands + max(solving, certifying)))


def _banded(entries: int, rows: int, n: int) -> int:
    """Return the numbers of a banded copy for one output, an example's rows in a band each."""
    return entries * n // rows if rows > n else 0


def _pulled(entries: int, rows: int, n: int, k: int) -> int:
    """Return the numbers of the weighted rows in one adjoint."""
    return k * _banded(entries, rows, n) or entries
