"""The verbs that read what is there: verify and report a run folder, doctor the installation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tangentlora.cli.result import Result
from tangentlora.places import require_run

if TYPE_CHECKING:
    from tangentlora.theory.standing import Standing


def verify(options: argparse.Namespace) -> Result:
    """Check a certificate anew; no where it is rejected, with --strict also where it certifies nothing.

    What the run recorded of the real network is told where the answer does not hold there. It is no part of
    the proof, and changes no exit status.
    """
    from dataclasses import asdict

    require_run(options.folder, part=True)
    from tangentlora.report.standing import describe_standing, recorded_failure
    from tangentlora.theory.verify import verify

    result = verify(options.folder, options.store)
    found = _recorded(options.folder) if result.valid else None
    text = result.sentence()
    if found is not None and not found.holds:
        text = f"{text}\n{recorded_failure(found)}"
    negative = not result.valid or (options.strict and not result.certified)
    recorded = None if found is None else describe_standing(found)
    return Result(asdict(result) | {"real_network": recorded}, text, negative)


def _recorded(folder: Path) -> Standing | None:
    """Return what run.json says of the answer in this folder on the real network."""
    from tangentlora.report import RunFolder
    from tangentlora.theory.evidence import read_run

    record = read_run(folder)
    answers = RunFolder(record.root).read_run().answers
    return next(answer.standing for answer in answers if answer.folder == record.numbers["folder"])


def report(options: argparse.Namespace) -> Result:
    """Write figures, page and model card again."""
    require_run(options.folder)
    from tangentlora.report import RunFolder, write_card, write_report
    from tangentlora.report.columns import wrapped
    from tangentlora.report.verdict import headline

    folder = RunFolder(options.folder)
    path = write_report(folder)
    write_card(folder)
    folder.seal_pages()
    run = folder.read_run()
    lines = [] if run.failing is None else [*wrapped(headline(run)), ""]
    text = "\n".join([*lines, f"Wrote {path}."])
    return Result({"report": str(path), "headline": headline(run)}, text)


def doctor(options: argparse.Namespace) -> Result:
    """Check the installation; no where a check fails."""
    from tangentlora.studies.doctor import examine

    checks = examine(options.device)
    text = "\n".join(f"{'ok  ' if c.ok else 'FAIL'}  {c.name}: {c.detail}" for c in checks)
    values = {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]}
    return Result(values, text, not all(c.ok for c in checks))
