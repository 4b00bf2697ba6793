"""What the theorems say of a run: the kind of point, the NTK regime, the bounds and the local rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tangentlora.blocks import padded
from tangentlora.errors import InputError
from tangentlora.report.verdict import headline
from tangentlora.report.wording import listing
from tangentlora.solvers.certified import Certified
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.factored import perturbation
from tangentlora.studies.bounds import bounds
from tangentlora.studies.examination import (
    BoundsPart,
    Examination,
    Missing,
    Part,
    RatePart,
    RegimePart,
    StationarityPart,
)
from tangentlora.studies.path import lambda_path
from tangentlora.studies.prepare import Prepared
from tangentlora.studies.rates import rates
from tangentlora.studies.regime import regime
from tangentlora.studies.reopen import Reopened, reopen
from tangentlora.theory.certificate import certify
from tangentlora.theory.perturbed import perturbed_gap
from tangentlora.theory.stationarity import classify

PARTS = ("stationarity", "regime", "bounds", "rate")

_TRAINED = ("sgd", "adamw", "lbfgs")
_DEV_POINTS = 8  # values of λ among which the dev set chooses
_SHARP = 1e-12  # of the optimum that rates are measured to
_RATE = "How fast gradient descent closes in"


def examine(
    folder: Path,
    *,
    which: Sequence[str] = PARTS,
    answer: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Examination:
    """Say what the theorems say of one answer of a run folder, by default the main one.

    `which` names parts: `stationarity` (what kind of point of F or F_Π, and the gap), `regime` (the real
    network against its tangent), `bounds` (Theorem 3 beside the held-out loss) and `rate` (predicted and
    measured local convergence, which trains anew). Raises InputError for unknown or no parts, and as `reopen`
    does.
    """
    unknown = [name for name in which if name not in PARTS]
    if unknown or not which:
        raise InputError(
            f"got the parts {listing(unknown) or '(none)'}, expected some of {listing(PARTS)}: change --only"
        )
    opened = reopen(folder, answer, device=device, dev="bounds" in which, progress=progress)
    makers: dict[str, Callable[[Reopened, bool], Part]] = {
        "stationarity": _stationarity,
        "regime": _regime,
        "bounds": _bounds,
        "rate": _rate,
    }
    parts = {name: makers[name](opened, progress) for name in PARTS if name in which}
    measured = parts.get("regime")
    fresh = measured.report.standing if isinstance(measured, RegimePart) else None
    answer_now = opened.answer if fresh is None else replace(opened.answer, standing=fresh)
    return Examination(
        folder=str(folder),
        answer=opened.answer.name,
        task=opened.prepared.splits.task.name,
        lam=opened.prepared.problem.lam,
        n_examples=len(opened.prepared.problem.f0),
        headline=headline(replace(opened.run, answers=(answer_now,))),
        standing=answer_now.standing,
        parts=parts,
    )


def _stationarity(opened: Reopened, progress: bool) -> Part:
    problem, settings = opened.prepared.problem, opened.prepared.settings
    size = settings.perturbation if opened.answer.solver in _TRAINED else 0.0
    noise = perturbation(problem.jacobian.shapes, size, settings.seed, problem.f0)  # the run's own Π
    gap = perturbed_gap(problem, opened.factors, noise) if noise and problem.lam > 0 else None
    factors = problem.zero() | opened.factors
    if opened.answer.rank is None:  # free, so that one more column is a direction it might have taken
        factors = padded(factors, 1 + max(u.shape[1] for u, _ in factors.values()))
    found = classify(problem, factors, noise=noise)
    return StationarityPart(found, certify(problem, opened.factors, settings.tolerance), gap)


def _regime(opened: Reopened, progress: bool) -> Part:
    return RegimePart(regime(opened.prepared, opened.factors))


def _bounds(opened: Reopened, progress: bool) -> Part:
    found = bounds(opened.prepared, opened.factors)
    return BoundsPart(found, opened.prepared.problem.lam, chosen_lam(opened.prepared, progress))


def chosen_lam(prepared: Prepared, progress: bool = False) -> float | None:
    """Return the λ that the dev set chooses among eight of the certified path; None without a dev set."""
    if prepared.dev is None:
        return None
    try:
        return lambda_path(prepared, points=_DEV_POINTS, progress=progress).chosen
    except InputError:  # none of them could be certified: then there is nothing to choose among
        return None


def _rate(opened: Reopened, progress: bool) -> Part:
    settings, answer, problem = opened.prepared.settings, opened.answer, opened.prepared.problem
    other = {
        f"the solver was {answer.solver}": answer.solver != "sgd",
        "λ was 0": problem.lam == 0,
        "A was frozen": settings.freeze_a,
        "it took minibatches": (settings.minibatch_size or len(problem.f0)) < len(problem.f0),
        "the objective was perturbed": settings.perturbation > 0,
    }
    reasons = [reason for reason, holds in other.items() if holds]
    if reasons or answer.rank is None:
        return Missing(
            _RATE,
            "The prediction is for LoRA trained by plain full-batch gradient descent with λ > 0. In this run "
            f"{listing(reasons)}.",
        )
    try:
        optimum = Certified(tolerance=_SHARP).solve(problem, progress=progress)
        found = rates(
            optimum,
            sorted({answer.rank, min(answer.rank, max(1, *optimum.ranks.values()))}),
            learning_rate=None if settings.learning_rate == "auto" else settings.learning_rate,
            momentum=Descent.momentum if settings.momentum is None else settings.momentum,
            seed=settings.seed,
            progress=progress,
        )
    except InputError as refusal:
        return Missing(_RATE, f"No rate is predicted: {refusal}.")
    return RatePart(tuple(found))
