"""The jobs behind the command line: fit one solver, or compare ranks with the certified optimum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tangentlora.places import require_writable
from tangentlora.report import RunFolder, write_card, write_report
from tangentlora.studies.outer_folder import run_outer
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.run import run_trials
from tangentlora.studies.settings import Settings
from tangentlora.studies.trials import Trial, comparison, trial

DEMO_RANKS = (1, 2, 4, 8, 16)


def fit(settings: Settings, output_dir: Path, *, progress: bool = False) -> dict[str, Any]:
    """Solve one problem with one solver and write the run folder; return what run.json says.

    With `settings.outer` it is linearised and solved again at every answer: see `gauss_newton`.
    Raises InputError for bad input of any kind, before anything in `output_dir` is replaced.
    """
    chosen = trial(settings)
    require_writable(output_dir)
    prepared = prepare(settings, progress=progress)
    if settings.outer:
        run = run_outer(prepared, output_dir, progress=progress)
        _write_pages(output_dir)
        return run
    return _run(prepared, [chosen], output_dir, "fit", progress)


def compare(
    settings: Settings, output_dir: Path, ranks: tuple[int, ...] = DEMO_RANKS, *, progress: bool = False
) -> dict[str, Any]:
    """Train LoRA at each rank and in full, solve for the certified optimum, and write the run folder.

    All trials share one linearisation. A rank above the smaller side of an adapted matrix is left out.
    Returns what run.json says; raises as `fit` does.
    """
    trials = comparison(settings, ranks)
    require_writable(output_dir)
    prepared = prepare(settings, progress=progress)
    most = min(min(shape) for shape in prepared.problem.jacobian.shapes.values())
    possible = [trial for trial in trials if trial.rank is None or trial.rank <= most]
    return _run(prepared, possible, output_dir, "demo", progress)


def _run(
    prepared: Prepared, trials: Sequence[Trial], output_dir: Path, command: str, progress: bool
) -> dict[str, Any]:
    run = run_trials(prepared, trials, output_dir, command, progress=progress)
    _write_pages(output_dir)
    return run


def _write_pages(output_dir: Path) -> None:
    write_report(RunFolder(output_dir))
    write_card(RunFolder(output_dir))
    RunFolder(output_dir).seal_pages()
