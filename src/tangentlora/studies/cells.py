"""One cell of a study: a solver or a baseline on one case, and the record of what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from tangentlora.belongs import LORA
from tangentlora.blocks import Factors
from tangentlora.problem.objective import Problem
from tangentlora.report.standing import describe_standing
from tangentlora.solvers.descent import Descent
from tangentlora.solvers.proximal import Proximal
from tangentlora.solvers.solution import Record, Solution, Solver
from tangentlora.studies.measure import LinearisedSet, dev_merit, linearised_scores, real_outputs, scores_of
from tangentlora.studies.prepare import Prepared
from tangentlora.studies.run import rank_fields
from tangentlora.studies.settings import Settings
from tangentlora.studies.standing import standing_of
from tangentlora.studies.study import Cell
from tangentlora.studies.trials import trial
from tangentlora.theory.certificate import certify

Scalars = Callable[[int, dict[str, float]], None]
"""Called at each logged epoch with everything that was measured there."""

_SINGLE = 4  # bytes of a float32, in which networks are trained


def solver_of(cell: Cell, settings: Settings) -> Solver:
    """Return the solver of a trained or certified cell."""
    assert cell.lam is not None, "only baselines have no λ"
    if cell.variant == "certified":
        return trial(settings.solved_by("certified", lam=cell.lam)).solver
    if cell.variant == "full":
        return trial(settings.solved_by("proximal", lam=cell.lam, learning_rate="auto", momentum=None)).solver
    if cell.variant == "full-plain":
        return trial(settings.solved_by("proximal", lam=cell.lam, momentum=0.0)).solver
    changed = settings.solved_by(
        settings.solver if settings.solver in LORA else "sgd",
        rank=cell.rank or settings.rank,
        lam=cell.lam,
        freeze_a=cell.variant == "frozen-a",
        perturbation=settings.perturbation if cell.variant == "perturbed" else 0.0,
    )
    solver = trial(changed).solver
    if cell.variant == "published":
        assert isinstance(solver, Descent)
        return replace(solver, published=True)
    return solver


def run_cell(
    prepared: Prepared,
    sets: Sequence[LinearisedSet],
    cell: Cell,
    scalars: Scalars | None = None,
) -> dict[str, Any]:
    """Solve the cell's problem and return its record; all but `seconds` is the same on every run."""
    assert cell.lam is not None, "only baselines have no λ"
    problem = prepared.problem.with_lam(cell.lam)
    solver = solver_of(cell, prepared.settings)
    watched = [part for part in sets if part.which != "dev"]

    def monitor(record: Record, factors: Factors) -> dict[str, float]:
        measures = linearised_scores(watched, factors)
        if scalars is not None:
            scalars(record.epoch, {"objective": record.objective, "gap": record.gap} | measures)
        return measures

    start = time.perf_counter()
    solution = solver.solve(problem, monitor)
    seconds = time.perf_counter() - start
    certificate = certify(problem, solution, prepared.settings.tolerance)
    parameters = trained_parameters(cell, problem)
    return {
        "slug": cell.slug,
        "name": cell.name,
        "variant": cell.variant,
        "rank": cell.rank,
        "lam": cell.lam,
        "status": solution.status.name,
        "epochs": solution.epochs,
        "learning_rate": solution.learning_rate,
        "objective": certificate.objective,
        "factored_objective": certificate.factored_objective,
        "lower_bound": certificate.lower_bound,
        "gap": certificate.gap,
        "relative_gap": certificate.relative_gap,
        "certified": certificate.certified,
        "trained_parameters": parameters,
        "state_bytes": _SINGLE * parameters * _copies(solver),
        **rank_fields(solution, certificate, exact=cell.variant == "certified"),
        "curve": _curve(solution),
        "trace": [list(point) for point in solution.trace],
        "linearised": linearised_scores(sets, solution.factors),
        "real": None,
        "real_network": None,
        "without_f0": _without_f0(sets, solution) if cell.variant == "published" else None,
        "chosen": {},
        "seconds": seconds,
    }


def _copies(solver: Solver) -> int:
    """Return how many numbers a trained one takes: itself, its gradient, and the buffers of the method."""
    if isinstance(solver, Descent) and solver.method == "adamw":
        return 4  # two averages of it
    return 2 if isinstance(solver, Descent | Proximal) and solver.momentum == 0 else 3


def run_real(prepared: Prepared, sets: Sequence[LinearisedSet], cell: Cell) -> dict[str, Any]:
    """Solve the cell's problem once more; return the real network's scores, and if the answer holds there."""
    assert cell.lam is not None, "only baselines have no λ"
    start = time.perf_counter()
    problem = prepared.problem.with_lam(cell.lam)
    factors = solver_of(cell, prepared.settings).solve(problem).factors
    outputs = real_outputs(prepared, factors)
    held_out = [part for part in sets if part.which != "train"]
    found = standing_of(prepared, held_out, factors, outputs, problem.objective(factors))
    return {
        "slug": cell.slug,
        "real": scores_of(prepared, outputs),
        "real_network": describe_standing(found),
        "seconds": time.perf_counter() - start,
    }


def chosen_by_dev(records: Sequence[dict[str, Any]]) -> float | None:
    """Return the λ of the certified record with the highest dev accuracy; None where there is no dev set.

    Ties go to the lower dev loss, then to the larger λ, which is the simpler answer.
    """
    scored = [r for r in records if r["variant"] == "certified" and "dev_accuracy" in r["linearised"]]
    if not scored:
        return None

    lam: float = max(scored, key=lambda record: (dev_merit(record["linearised"]), record["lam"]))["lam"]
    return lam


def trained_parameters(cell: Cell, problem: Problem) -> int:
    """Return how many numbers the run trains: Σ m·n in full, Σ r(m+n) with LoRA, Σ r·m with A frozen."""
    shapes = problem.jacobian.shapes.values()
    if cell.rank is None:
        return sum(math.prod(shape) for shape in shapes)
    return sum(cell.rank * (m if cell.variant == "frozen-a" else m + n) for m, n in shapes)


def _without_f0(sets: Sequence[LinearisedSet], solution: Solution) -> dict[str, float] | None:
    """Return the test scores of the update alone, as the published code's final evaluation has them."""
    test = next((part for part in sets if part.which == "test"), None)
    return None if test is None else test.scores(solution.factors, pretrained=False)


def _curve(solution: Solution) -> list[dict[str, float]]:
    rows = []
    for record in solution.history:
        values = asdict(record)
        rows.append(values | values.pop("measures"))
    return rows
