"""The jobs behind the command line: fit one solver, or compare ranks with the certified optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tangentlora.report import RunFolder, write_card, write_report
from tangentlora.studies.prepare import prepare
from tangentlora.studies.run import run_trials
from tangentlora.studies.settings import Settings, Trial, comparison, trial

DEMO_RANKS = (1, 2, 4, 8, 16)


def fit(settings: Settings, output_dir: Path, *, progress: bool = False) -> dict[str, Any]:
    """Solve one problem with one solver and write the run folder; return what run.json says.

    Raises InputError for bad input of any kind, before anything in `output_dir` is replaced.
    """
    return _run(settings, [trial(settings)], output_dir, progress)


def compare(
    settings: Settings, output_dir: Path, ranks: tuple[int, ...] = DEMO_RANKS, *, progress: bool = False
) -> dict[str, Any]:
    """Train LoRA at each rank and in full, solve for the certified optimum, and write the run folder.

    All trials share one linearisation. Returns what run.json says; raises as `fit` does.
    """
    return _run(settings, comparison(settings, ranks), output_dir, progress)


def _run(settings: Settings, trials: list[Trial], output_dir: Path, progress: bool) -> dict[str, Any]:
    run = run_trials(prepare(settings, progress=progress), trials, output_dir, progress=progress)
    write_report(RunFolder(output_dir))
    write_card(RunFolder(output_dir))
    return run
