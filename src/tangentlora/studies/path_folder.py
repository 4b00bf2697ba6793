"""A run folder with a certified λ path: every point, its figure, and the answer at the λ that it chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tangentlora.places import require_writable
from tangentlora.report import RunFolder, write_card, write_report
from tangentlora.report.path_record import FORMAT
from tangentlora.studies.limits import check_path
from tangentlora.studies.path import lambda_path
from tangentlora.studies.prepare import prepare
from tangentlora.studies.run import run_trials
from tangentlora.studies.settings import Settings
from tangentlora.studies.trials import trial


def write_path(
    settings: Settings,
    output_dir: Path,
    *,
    points: int = 50,
    fraction: float = 1e-3,
    folds: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Solve the path, write path.json and the run folder of the chosen λ; return what path.json says.

    The settings' own λ has no say, and the solver is the certified one. Raises InputError as `lambda_path`
    does and for bad input of any kind, before anything in `output_dir` is replaced.
    """
    check_path(points, fraction, folds)
    require_writable(output_dir)
    prepared = prepare(settings.solved_by("certified", lam=1.0), dev=True, progress=progress)
    path = lambda_path(prepared, points=points, fraction=fraction, folds=folds, progress=progress)
    chosen = replace(
        prepared,
        settings=replace(prepared.settings, lam=path.chosen),
        problem=prepared.problem.with_lam(path.chosen),
    )
    run = run_trials(chosen, [trial(chosen.settings)], output_dir, "path", progress=progress)
    described = {
        "format": FORMAT,
        "tangentlora": run["tangentlora"],
        "versions": run["versions"],
        "configuration": run["configuration"] | {"points": points, "fraction": fraction, "folds": folds},
        "tangent": run["tangent"]["key"],
        "headline": run["headline"],
        "real_network": run["real_network"],
        **path.describe(),
    }
    folder = RunFolder(output_dir)
    folder.write_json("path.json", described)
    write_report(folder)
    write_card(folder)
    folder.seal(run)
    return described
