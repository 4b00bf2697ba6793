"""Gauss–Newton steps → a run folder whose certificate is that of the network linearised at the answer."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tangentlora.report.columns import aligned
from tangentlora.report.folder import RunFolder
from tangentlora.report.wording import number, plain, relative
from tangentlora.solvers.solution import Record, Solution, Status
from tangentlora.studies.measure import linearised_scores, linearised_sets, real_outputs, scores_of
from tangentlora.studies.outer import Ending, Outer, gauss_newton
from tangentlora.studies.outer_network import problem_of
from tangentlora.studies.prepare import Prepared, scores
from tangentlora.studies.run import Outcome, describe, metric_lines, write_answer
from tangentlora.studies.standing import standing_at
from tangentlora.studies.trials import trial
from tangentlora.tangent.store import load_tangent, save_tangent
from tangentlora.theory.certificate import certify

_INNER = 1e-2

_STATUS = {
    Ending.SETTLED: Status.GLOBAL_OPTIMUM,
    Ending.STALLED: Status.PRECISION_REACHED,
    Ending.STEPS_SPENT: Status.EPOCHS_SPENT,
}


def run_outer(prepared: Prepared, output_dir: Path, *, progress: bool = False) -> dict[str, Any]:
    """Take the steps, write the run folder of the last answer, and return what run.json says.

    The tangent at the answer is stored under a key of its own, so that the folder is verified as all others
    are; its certificate is about the convex problem there. At the answer the linearised network is the real
    one, so their scores are the same. Raises InputError as `gauss_newton` and `write_answer` do.
    """
    settings = prepared.settings
    inner = replace(settings, tolerance=_INNER * settings.tolerance)  # steps are to be known beyond the goal
    chosen = replace(trial(inner), name="Gauss–Newton")
    chosen.solver.check(prepared.problem)
    held_out = [part for part in linearised_sets(prepared) if part.which != "train"]
    before = linearised_scores(linearised_sets(prepared), {})
    clock = time.perf_counter()
    outer = gauss_newton(prepared, chosen.solver, progress=progress)
    seconds = time.perf_counter() - clock
    here = _stored(prepared, outer)
    certificate = certify(here.problem, outer.factors, prepared.settings.tolerance)
    history = [Record(k, step.before, step.gap) for k, step in enumerate(outer.steps)]
    history.append(Record(len(outer.steps), outer.objective, certificate.gap))
    steps = len(outer.steps)
    solution = Solution(here.problem, outer.factors, _STATUS[outer.ending], tuple(history), steps)
    outputs = real_outputs(here, outer.factors)
    real = scores_of(here, outputs)
    pretrained = {part: tangent.f0 for part, (tangent, _) in prepared.sets.items()}
    penalty = certificate.objective - here.problem.empirical_loss(here.problem.outputs(outer.factors))
    standing = standing_at(here, pretrained, outputs, penalty)
    train = scores(here.problem.outputs(outer.factors), here.splits.train.labels, "train")
    linearised = {name: real[name] for part in held_out for name in real if name.startswith(part.which)}
    outcome = Outcome(chosen, solution, certificate, train | linearised, real, standing, seconds)
    folder = RunFolder(output_dir)
    entry = write_answer(here, outcome, folder)
    entry |= {"solver": "gauss-newton", "status": outer.ending.name, "message": outer.ending.value}
    folder.write_text("metrics.jsonl", "".join(f"{line}\n" for line in metric_lines(outcome)))
    run = describe(here, before, [entry], "fit")
    run["outer"] = {
        "ending": outer.ending.name,
        "message": outer.ending.value,
        "objective": outer.objective,
        "gap": certificate.gap,
        "steps": [asdict(step) for step in outer.steps],
    }
    folder.write_json("run.json", run)
    folder.seal(run)
    return run


def _stored(prepared: Prepared, outer: Outer) -> Prepared:
    """Return the problem at the answer as it is read back from the store."""
    if outer.tangent is prepared.train:
        return prepared
    folder = prepared.settings.tangent_dir.expanduser().absolute() / outer.tangent.key
    save_tangent(outer.tangent, folder)
    tangent = load_tangent(folder)
    return replace(prepared, train=tangent, problem=problem_of(prepared, tangent))


def outer_table(outer: dict[str, Any]) -> str:
    """Return the steps as aligned columns, with how they ended below."""
    rows = [("step", "P before", "gap", "P promised", "t", "P there", "P after", "ranks")]
    for k, step in enumerate(outer["steps"]):
        rows.append(
            (
                str(k),
                number(step["before"]),
                relative(step["gap"]),
                number(step["promised"]),
                plain(step["length"]),
                number(step["reached"]),
                number(step["after"]),
                " ".join(map(str, step["ranks"].values())) if len(step["ranks"]) <= 6 else _sum(step),
            )
        )
    end = f"At the end: P = {number(outer['objective'])}, gap {relative(outer['gap'])}. {outer['message']}"
    note = (
        "P: loss + λ Σ‖δ‖_* of the real network; gap: of the network linearised at the point, in P; "
        "promised: the least P of that; t: how far the step went towards it; there: P at that point; "
        "after: once the real network was trained on from it at its ranks."
    )
    return "\n".join([*aligned(rows), "", end, note])


def _sum(step: dict[str, Any]) -> str:
    return f"{sum(step['ranks'].values())} in {len(step['ranks'])} layers"
