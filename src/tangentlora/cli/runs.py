"""The verbs that solve a problem and write a folder of its answers: demo, fit, reproduce."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tangentlora.cli.result import Result
from tangentlora.errors import InputError
from tangentlora.options import given_for, settings_of


def demo(options: argparse.Namespace) -> Result:
    """Compare LoRA ranks with the certified optimum; no with --strict where that fails as in `fit`."""
    settings = settings_of(options)  # before the imports, so that a mistake is told at once
    from tangentlora.studies.fit import compare

    run = compare(settings, options.output_dir, progress=not options.quiet)
    main = [answer for answer in run["runs"] if answer["folder"] == "."]
    return Result(run, _summary(options.output_dir), options.strict and not _good(run, main))


def fit(options: argparse.Namespace) -> Result:
    """Solve one problem with one solver; no with --strict where the answer is not certified or fails.

    It fails where it does not hold on the real network.
    """
    settings = settings_of(options)
    from tangentlora.studies.fit import fit

    run = fit(settings, options.output_dir, progress=not options.quiet)
    from tangentlora.studies.outer_folder import outer_table

    text = _summary(options.output_dir, outer_table(run["outer"]) if "outer" in run else "")
    return Result(run, text, options.strict and not _good(run, run["runs"]))


def reproduce(options: argparse.Namespace) -> Result:
    """Run a study, or list those there are."""
    from tangentlora.studies.study import Grid, load_study, plan, study_names

    if options.list:
        studies = [load_study(name) for name in study_names()]
        titles = {study.name: study.title for study in studies}
        width = max(map(len, titles))
        return Result({"studies": titles}, "\n".join(f"{n:<{width}}  {t}" for n, t in titles.items()))
    if options.study is None:
        raise InputError(
            f"got no study, expected one of {', '.join(study_names())} or a YAML file: name one, or see "
            "tangentlora reproduce --list"
        )
    from tangentlora.studies.settings import Settings

    study = load_study(options.study)
    folder = options.output_dir or Path("runs", study.name)
    settings = {"tangent_dir": folder / "tangents"} | given_for(Settings, options)
    planned = plan(study, options.size, settings, given_for(Grid, options))
    from tangentlora.report.study import study_summary, write_study_figures
    from tangentlora.studies.grid import run_study

    results = run_study(planned, folder, progress=not options.quiet, tensorboard=options.tensorboard)
    write_study_figures(folder)
    return Result(results, f"{study_summary(folder)}\n\nResults and figures: {folder}")


def _good(run: dict[str, Any], answers: list[dict[str, Any]]) -> bool:
    """Say if these answers are certified and the run's own holds on the real network."""
    return bool(run["real_network"]["holds"]) and all(answer["certified"] for answer in answers)


def _summary(folder: Path, above: str = "") -> str:
    from tangentlora.report import RunFolder, comparison_table

    return comparison_table(RunFolder(folder).read_run(), above) + f"\n\nReport: {folder / 'report.html'}"
