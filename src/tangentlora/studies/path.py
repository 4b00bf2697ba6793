"""The certified λ path of a prepared task: what each λ costs, reaches and predicts, and which λ to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.problem.objective import Problem
from tangentlora.problem.rounding import spectral_norm_bounds
from tangentlora.progress import bar
from tangentlora.report.path_record import LambdaPath, PathPoint
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.path import solve_path, spaced
from tangentlora.solvers.solution import Solution
from tangentlora.studies.cells import chosen_by_dev
from tangentlora.studies.measure import LinearisedSet, linearised_sets
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.theory.certificate import Certificate, certify

FOLDS = 5
"""Of cross-validation, where none are asked for."""


def lambda_path(
    prepared: Prepared,
    *,
    points: int = 50,
    fraction: float = 1e-3,
    folds: int | None = None,
    progress: bool = False,
) -> LambdaPath:
    """Solve and certify at `points` values of λ from the one at which δ = 0 is optimal to `fraction` of it.

    The λ is chosen by accuracy on the dev set, then loss, then size; without a dev set by cross-validation on
    the training examples, by `folds`, 5 if None. Raises InputError for fewer than two points, a fraction
    outside (0, 1), folds outside 2..N or beside a dev set, a gradient of zero, and where no point could be
    certified.
    """
    problem, tolerance = prepared.problem, prepared.settings.tolerance
    sets = linearised_sets(prepared)
    lams = spaced(zero_is_optimal_from(problem), fraction, points)
    validated: list[dict[str, float]] = [{} for _ in lams]
    which = "dev" if any(part.which == "dev" for part in sets) else "cv"
    if which == "dev" and folds is not None:
        raise InputError(
            f"got {folds} folds for data with a dev set, which chooses λ, expected folds only where there is "
            "none: leave them out, or give data without a dev set"
        )
    folds = FOLDS if folds is None else folds
    if which == "cv":
        validated = cross_validate(
            problem, lams, folds, seed=prepared.settings.seed, tolerance=tolerance, progress=progress
        )
    found = [
        _point(solution, certificate, sets, more)
        for (solution, certificate), more in zip(
            certified_path(problem, lams, tolerance, progress=progress), validated, strict=True
        )
    ]
    chosen = chosen_by_dev([_record(point, which) for point in found if point.certified])
    if chosen is None:
        raise InputError(
            f"got no certified answer among {points} values of λ, expected at least one: use a larger "
            "tolerance"
        )
    source = "the dev set" if which == "dev" else f"{folds}-fold cross-validation on the training set"
    return LambdaPath(
        tuple(found), chosen, f"highest accuracy on {source}, then lowest loss, then the larger λ"
    )


def zero_is_optimal_from(problem: Problem) -> float:
    """Return a λ from which δ = 0 is proved optimal: an upper bound on max_t ‖M_t(0)‖₂, near it.

    Derived; docs/theory.md, "The λ path".
    """
    a = problem.dual_point(problem.f0)
    return max(spectral_norm_bounds(problem, a).values())


def certified_path(
    problem: Problem, lams: Sequence[float], tolerance: float = 1e-6, *, progress: bool = False
) -> list[tuple[Solution, Certificate]]:
    """Return the answer and its certificate at each λ; the certificates are what the path solver goes by.

    Raises InputError where the λ are not positive and falling.
    """
    issued: list[Certificate] = []

    def judge(at: Problem, factors: Factors) -> float:
        issued.append(certify(at, factors, tolerance))
        proved = issued[-1]
        return (proved.gap + proved.rounding) / max(1.0, abs(proved.objective))

    path = []
    for solution in solve_path(problem, lams, Certified(tolerance), judge, progress=progress):
        # one record: what was judged is the answer; more: the solver went on from it
        judged = bool(issued) and len(solution.history) == 1 and issued[-1].lam == solution.problem.lam
        path.append((solution, issued[-1] if judged else certify(solution.problem, solution, tolerance)))
    return path


def cross_validate(
    problem: Problem,
    lams: Sequence[float],
    folds: int,
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Return `cv_accuracy` and `cv_loss` at each λ, every example predicted by the folds without it.

    Folds hold nearly equal numbers of every class. Raises InputError for folds outside 2..N.
    """
    n = len(problem.f0)
    if not 2 <= folds <= n:
        raise InputError(f"got {folds} folds for {n} examples, expected 2 to {n}: change the number of folds")
    place = fold_of(problem.y, folds, seed)
    predicted: list[Float[Tensor, "N K"]] = [problem.f0.clone() for _ in lams]
    with bar(folds, "cross-validating", "fold", progress) as shown:
        for fold in range(folds):
            kept, held = (torch.nonzero(mask).flatten() for mask in (place != fold, place == fold))
            part = replace(
                problem, jacobian=problem.rows.select(kept), f0=problem.f0[kept], y=problem.y[kept]
            )
            unseen = problem.rows.select(held)
            for z, solution in zip(predicted, solve_path(part, lams, Certified(tolerance)), strict=True):
                z[held] += unseen.at(solution.factors).forward()
            shown.update()
    return [scores(z, problem.y.tolist(), "cv") for z in predicted]


def fold_of(y: Tensor, folds: int, seed: int) -> Tensor:
    """Return each example's fold, (N,): every class is shuffled and dealt out in turn."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[torch.argsort(y.cpu()[order], stable=True)]
    place = torch.empty(len(y), dtype=torch.long)
    place[order] = torch.arange(len(y)) % folds
    return place


def _point(
    solution: Solution, certificate: Certificate, sets: Sequence[LinearisedSet], more: dict[str, float]
) -> PathPoint:
    measured: dict[str, float] = {}
    for part in sets:
        measured |= part.scores(solution.factors)
    return PathPoint(
        certificate.lam,
        certificate.objective,
        certificate.gap,
        certificate.relative_gap,
        certificate.certified,
        certificate.ranks,
        solution.epochs,
        measured | more,
    )


def _record(point: PathPoint, which: str) -> dict[str, object]:
    """Return the point as a study's record, so that one rule chooses λ everywhere."""
    linearised = {f"dev_{kind}": point.scores[f"{which}_{kind}"] for kind in ("accuracy", "loss")}
    return {"variant": "certified", "lam": point.lam, "linearised": linearised}
