"""The landscape of the user's own problem: does any run on F_Π rest at a minimum that is not the optimum?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.studies.landscape import Landscape
from tangentlora.studies.limits import check_survey
from tangentlora.studies.prepare import prepare
from tangentlora.studies.settings import Settings
from tangentlora.studies.survey import survey

SHARE = 1e-3
"""‖Π_t‖₂ relative to λ, where none is asked for."""


def landscape_of(
    settings: Settings,
    ranks: Sequence[int],
    *,
    size: float | None = None,
    repeats: int = 2,
    progress: bool = False,
) -> Landscape:
    """Linearise the settings' network on their training examples and survey F_Π there at the ranks.

    `size` is ‖Π_t‖₂, λ/1000 if None; Π and the random starts follow the settings' seed. The problem is that
    in coordinates of the Jacobian's span, with a Π of full support there: docs/theory.md, "The landscape,
    tried". Raises InputError for λ = 0, a rank above the smaller side of an adapted matrix, and as
    `check_survey` and `prepare` do.
    """
    check_survey(ranks, size, repeats)
    settings.solved_by("certified")  # which refuses λ = 0 before the work
    # the largest rank is the one that has to fit
    prepared = prepare(settings.solved_by("sgd", rank=max(ranks)), test=False, progress=progress)
    found = survey(
        _spanned(prepared.problem),
        sorted(set(ranks)),
        size=SHARE * settings.lam if size is None else size,
        repeats=repeats,
        tolerance=settings.tolerance,
        seed=settings.seed,
        progress=progress,
    )
    return replace(found, data_check=prepared.check.describe())


def _spanned(problem: Problem) -> Problem:
    """Return the problem in coordinates of the span, without the layers on which no output depends."""
    inner = problem.reduced[0]
    names = [name for name, shape in inner.jacobian.shapes.items() if min(shape)]
    if not names:
        raise InputError(
            "got outputs that depend on none of the adapted matrices, expected at least one that they depend "
            "on: change --target-modules or --layers"
        )
    return Problem(inner.rows.only(names), inner.f0, inner.y, inner.loss, inner.lam)
