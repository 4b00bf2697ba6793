"""What a certified solve will hold beyond the rows of its problem, before it begins."""

from __future__ import annotations

from tangentlora.problem.objective import _KERNEL_LIMIT, _SAMPLE
from tangentlora.solvers.local_model import _DESIGN_LIMIT
from tangentlora.tangent.gram import _ENTRIES
from tangentlora.tangent.jacobian import MANY
from tangentlora.tangent.plan import ProblemShape

_NUMBER = 8  # bytes of float64


def solve_bytes(shape: ProblemShape, rank: int = 8, *, blocks: bool = False) -> int:
    """Return the bytes that stating, solving and certifying hold at once beyond the rows; a prediction.

    `rank` is that of all layers together, which is not known before; escapes hold up to twice as much. With
    `blocks` the rows are read from a store, else they are in memory; w = m/H in the bands they lie in. The
    three come one after the other, so the largest counts:

        stating    max_t R_t w (K or 1.4 K')          one layer's rows as they are contrasted and checked
        solving    2·NK'd + 3·sd + 3s² + 4RK'r + 4mn   design matrices, d = r(m+n), of all if kept and of s,
                   + ½ Σ_t R_t (n + wK')               and the rows in float32, where they are many
        certifying 2(NK')² + 2(RK'/H)²                 the kernel whose rank is c, where it is decomposed
    """
    n, k = shape.examples, shape.contrasts
    sides = {name: shape.shapes[name] for name in shape.rows}
    dense = sum(m * width for m, width in sides.values())
    largest = max(max(m, width) for m, width in sides.values()) ** 2

    columns = 2 * rank
    unknowns = columns * max(m + width for m, width in sides.values())
    sampled = min(n, max(1, _SAMPLE // k))
    kept = n * k * unknowns if n * k * unknowns <= _DESIGN_LIMIT and not blocks else 0
    design = 2 * kept + 3 * sampled * k * unknowns + 3 * (sampled * k) ** 2
    rows_of_sample = sum(
        sampled * (count * sides[t][1] + k * shape.entries[t]) // max(1, n) for t, count in shape.rows.items()
    )
    points = 0 if blocks else 4 * max(shape.rows.values()) * (k + 1) * columns
    largest_g = max(shape.entries.values())
    pulled = (
        0 if blocks else max((k if shape.bands.get(t, 1) > 1 else 1) * g for t, g in shape.entries.items())
    )
    numbers = shape.numbers(k)
    single = numbers // 2 if not blocks and _NUMBER * numbers >= MANY else 0
    solving = design + rows_of_sample + points + 4 * dense + 3 * largest + pulled + single

    stating = 0 if blocks else largest_g * max(shape.outputs, 1.4 * k)
    longest = max(count // shape.bands.get(t, 1) for t, count in shape.rows.items())
    pairs = min(_ENTRIES, (longest * k) ** 2)
    kernel = 2 * (n * k) ** 2 + 2 * pairs if n * k <= _KERNEL_LIMIT else 0
    certifying = kernel + 3 * largest + dense
    return _NUMBER * round(max(stating, solving, certifying))
