"""The command line: parse, call, print. Nothing is decided here, and `--help` imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, final

from tangentlora.errors import InputError
from tangentlora.options import (
    add_advise,
    add_demo,
    add_doctor,
    add_fit,
    add_report,
    add_reproduce,
    add_verify,
    given_for,
    settings_of,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 for done, 1 for an answer of no, 2 for bad input, told in one line on stderr."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    verbs = {
        "demo": _demo,
        "fit": _fit,
        "advise": _advise,
        "verify": _verify,
        "reproduce": _reproduce,
        "report": _report,
        "doctor": _doctor,
    }
    try:
        result, text, status = verbs[options.verb](options)
    except InputError as error:
        print("tangentlora:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"tangentlora: got an error from the file system ({error}), expected files that can be read and "
            "written: free some space, or choose another folder with --output-dir or --tangent-dir",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("tangentlora: interrupted; what was written stays as it is", file=sys.stderr)
        return 130
    print(_json(result) if options.json else text)
    return status


@final
class _Parser(argparse.ArgumentParser):
    """A parser whose complaints take one line, as all others do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}: see {self.prog} --help\n")


def _json(value: Any) -> str:
    """Return JSON with null for every number that is not finite."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def _parser() -> argparse.ArgumentParser:
    from tangentlora import __version__

    parser = _Parser(
        prog="tangentlora",
        description="LoRA in the NTK regime: train it, solve it, prove how far a run is from the optimum.",
    )
    parser.add_argument("--version", action="version", version=f"tangentlora {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (add_demo, add_fit, add_advise, add_verify, add_reproduce, add_report, add_doctor):
        add(verbs)
    return parser


def _demo(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    settings = settings_of(options)  # before the imports, so that a mistake is told at once
    from tangentlora.studies.fit import compare

    run = compare(settings, options.output_dir, progress=not options.quiet)
    return run, _summary(options.output_dir), 0


def _fit(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    settings = settings_of(options)
    from tangentlora.studies.fit import fit

    run = fit(settings, options.output_dir, progress=not options.quiet)
    certified = all(answer["certified"] for answer in run["runs"])
    return run, _summary(options.output_dir), 1 if options.strict and not certified else 0


def _advise(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    settings = settings_of(options)
    from tangentlora.studies.advise import RANKS, advise

    advice = advise(settings, tuple(options.ranks or RANKS), progress=not options.quiet)
    return advice.describe(), advice.table(), 1 if options.strict and advice.rank is None else 0


def _verify(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from dataclasses import asdict

    from tangentlora.theory.verify import verify

    result = verify(options.folder, options.store)
    failed = not result.valid or (options.strict and not result.certified)
    return asdict(result), result.sentence(), 1 if failed else 0


def _reproduce(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from tangentlora.studies.study import Grid, load_study, plan, study_names

    if options.list:
        studies = [load_study(name) for name in study_names()]
        titles = {study.name: study.title for study in studies}
        width = max(map(len, titles))
        return {"studies": titles}, "\n".join(f"{n:<{width}}  {t}" for n, t in titles.items()), 0
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
    return results, f"{study_summary(folder)}\n\nResults and figures: {folder}", 0


def _report(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from tangentlora.report import RunFolder, write_card, write_report

    path = write_report(RunFolder(options.folder))
    write_card(RunFolder(options.folder))
    return {"report": str(path)}, f"Wrote {path}.", 0


def _doctor(options: argparse.Namespace) -> tuple[dict[str, Any], str, int]:
    from tangentlora.studies.doctor import examine

    checks = examine(options.device)
    text = "\n".join(f"{'ok  ' if c.ok else 'FAIL'}  {c.name}: {c.detail}" for c in checks)
    result = {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]}
    return result, text, 0 if all(c.ok for c in checks) else 1


def _summary(folder: Path) -> str:
    from tangentlora.report import RunFolder, comparison_table

    return comparison_table(RunFolder(folder).read_run()) + f"\n\nReport: {folder / 'report.html'}"


if __name__ == "__main__":
    sys.exit(main())
