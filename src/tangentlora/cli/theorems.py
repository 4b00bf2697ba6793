"""The verbs that put the theorems to the user's own problem: advise, path, examine, landscape."""

from __future__ import annotations

import argparse

from tangentlora.cli.result import Result
from tangentlora.options import settings_of
from tangentlora.places import require_run, require_writable


def advise(options: argparse.Namespace) -> Result:
    """Say which rank the data need; no with --strict where no run reached the optimum."""
    from tangentlora.studies.limits import require_ranks

    require_ranks(options.ranks)
    settings = settings_of(options, "lbfgs")
    from tangentlora.studies.advise import advise

    advice = advise(settings, tuple(options.ranks), progress=not options.quiet)
    return Result(advice.describe(), advice.table(), options.strict and advice.rank is None)


def path(options: argparse.Namespace) -> Result:
    """Certify the optimum at many λ and choose one; no with --strict where one is not certified or fails.

    The chosen answer fails where it does not hold on the real network.
    """
    from tangentlora.studies.limits import check_path

    check_path(options.points, options.fraction, options.folds)
    settings = settings_of(options)
    require_writable(options.output_dir)
    from tangentlora.report.columns import wrapped
    from tangentlora.report.path_record import LambdaPath
    from tangentlora.studies.path_folder import write_path

    result = write_path(
        settings,
        options.output_dir,
        points=options.points,
        fraction=options.fraction,
        folds=options.folds,
        progress=not options.quiet,
    )
    found = LambdaPath.parse(result)
    first = "\n".join(wrapped(result["headline"]))
    text = f"{first}\n\n{found.table()}\n\nReport: {options.output_dir / 'report.html'}"
    good = found.certified and result["real_network"]["holds"]
    return Result(result, text, options.strict and not good)


def examine(options: argparse.Namespace) -> Result:
    """Say what the theorems say of a run; no with --strict unless it holds on the real network."""
    require_run(options.folder)
    from tangentlora.studies.examine import examine

    examination = examine(
        options.folder,
        which=options.only,
        answer=options.answer,
        device=options.device,
        progress=not options.quiet,
    )
    return Result(examination.describe(), examination.text(), options.strict and not examination.holds)


def landscape(options: argparse.Namespace) -> Result:
    """Survey where runs come to rest; no with --strict where one speaks against Theorem 2."""
    from tangentlora.studies.limits import check_survey

    check_survey(options.ranks, options.size, options.repeats)
    settings = settings_of(options)
    from tangentlora.studies.landscape_study import landscape_of

    found = landscape_of(
        settings, options.ranks, size=options.size, repeats=options.repeats, progress=not options.quiet
    )
    return Result(found.describe(), found.table(), options.strict and bool(found.against))
