"""The verbs that solve a problem and write a folder of its answers: demo, fit, reproduce."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tangentlora.cli.result import Result
from tangentlora.errors import InputError
from tangentlora.options import given_for, settings_of
from tangentlora.places import require_writable


def demo(options: argparse.Namespace) -> Result:
    """Compare LoRA ranks with the certified optimum; no with --strict where that fails as in `fit`."""
    settings = settings_of(options, "sgd")  # before the imports, so that a mistake is told at once
    require_writable(options.output_dir)
    from tangentlora.studies.fit import compare

    run = compare(settings, options.output_dir, progress=not options.quiet)
    main = [answer for answer in run["runs"] if answer["folder"] == "."]
    return Result(run, _summary(options.output_dir), options.strict and not _good(run, main))


def fit(options: argparse.Namespace) -> Result:
    """Solve one problem with one solver; no with --strict where the answer is not certified or fails.

    It fails where it does not hold on the real network.
    """
    settings = settings_of(options)
    require_writable(options.output_dir)
    from tangentlora.studies.fit import fit

    run = fit(settings, options.output_dir, progress=not options.quiet)
    from tangentlora.studies.outer_folder import outer_table

    text = _summary(options.output_dir, outer_table(run["outer"]) if "outer" in run else "")
    return Result(run, text, options.strict and not _good(run, run["runs"]))


def reproduce(options: argparse.Namespace) -> Result:
    """Run a study, or list those there are."""
    from tangentlora.studies.study import Grid, load_study, plan, study_names

    if options.list:
        _refuse_beside_list(options)
        studies = [load_study(name) for name in study_names()]
        titles = {study.name: study.title for study in studies}
        width = max(map(len, titles))
        return Result({"studies": titles}, "\n".join(f"{n:<{width}}  {t}" for n, t in titles.items()))
    if options.study is None:
        raise InputError(
            f"got no study, expected one of {', '.join(study_names())} or a YAML file: name one, or see "
            "tangentlora reproduce --list"
        )
    from tangentlora.studies.early import require_cases, require_tensorboard
    from tangentlora.studies.settings import Settings

    study = load_study(options.study)
    folder = options.output_dir or Path("runs", study.name)
    settings = {"tangent_dir": folder / "tangents"} | given_for(Settings, options)
    planned = plan(study, options.size, settings, given_for(Grid, options))
    require_writable(folder)
    if options.tensorboard:
        require_tensorboard()
    require_cases(planned)
    from tangentlora.report.study import study_summary, write_study_figures
    from tangentlora.studies.grid import run_study

    results = run_study(planned, folder, progress=not options.quiet, tensorboard=options.tensorboard)
    write_study_figures(folder)
    return Result(results, f"{study_summary(folder)}\n\nResults and figures: {folder}")


def _good(run: dict[str, Any], answers: list[dict[str, Any]]) -> bool:
    """Say if these answers are certified and the run's own holds on the real network."""
    return bool(run["real_network"]["holds"]) and all(answer["certified"] for answer in answers)


def _refuse_beside_list(options: argparse.Namespace) -> None:
    own = {"verb", "list", "json", "quiet", "size"}
    values = {name: value for name, value in vars(options).items() if name not in own}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given or options.size != "full":
        named = ", ".join(name.replace("_", "-") for name in given) or f"the size {options.size}"
        raise InputError(
            f"got {named} beside the request to list the studies, which runs none, expected one of them: "
            "leave out --list or the rest"
        )


def _summary(folder: Path, above: str = "") -> str:
    from tangentlora.report import RunFolder, comparison_table

    return comparison_table(RunFolder(folder).read_run(), above) + f"\n\nReport: {folder / 'report.html'}"
