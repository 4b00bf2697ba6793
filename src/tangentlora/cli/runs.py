"""The verbs that solve a problem and write a folder of its answers: demo, fit, reproduce."""

from __future__ import annotations

import argparse
from pathlib import Path

from tangentlora.cli.result import Result
from tangentlora.errors import InputError
from tangentlora.options import given_for, settings_of


def demo(options: argparse.Namespace) -> Result:
    """Compare LoRA ranks with the certified optimum."""
    settings = settings_of(options)  # before the imports, so that a mistake is told at once
    from tangentlora.studies.fit import compare

    run = compare(settings, options.output_dir, progress=not options.quiet)
    return Result(run, _summary(options.output_dir))


def fit(options: argparse.Namespace) -> Result:
    """Solve one problem with one solver; no with --strict where the answer is not certified."""
    settings = settings_of(options)
    from tangentlora.studies.fit import fit

    run = fit(settings, options.output_dir, progress=not options.quiet)
    from tangentlora.studies.outer_folder import outer_table

    certified = all(answer["certified"] for answer in run["runs"])
    text = _summary(options.output_dir)
    if "outer" in run:
        text = f"{outer_table(run['outer'])}\n\n{text}"
    return Result(run, text, options.strict and not certified)


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


def _summary(folder: Path) -> str:
    from tangentlora.report import RunFolder, comparison_table

    return comparison_table(RunFolder(folder).read_run()) + f"\n\nReport: {folder / 'report.html'}"
