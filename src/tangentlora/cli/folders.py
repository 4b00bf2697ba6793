"""The verbs that read what is there: verify and report a run folder, doctor the installation."""

from __future__ import annotations

import argparse

from tangentlora.cli.result import Result
from tangentlora.places import require_run


def verify(options: argparse.Namespace) -> Result:
    """Check a certificate anew; no where it is rejected, with --strict also where it certifies nothing."""
    from dataclasses import asdict

    require_run(options.folder, part=True)
    from tangentlora.theory.verify import verify

    result = verify(options.folder, options.store)
    negative = not result.valid or (options.strict and not result.certified)
    return Result(asdict(result), result.sentence(), negative)


def report(options: argparse.Namespace) -> Result:
    """Write figures, page and model card again."""
    require_run(options.folder)
    from tangentlora.report import RunFolder, write_card, write_report

    path = write_report(RunFolder(options.folder))
    write_card(RunFolder(options.folder))
    RunFolder(options.folder).seal_pages()
    return Result({"report": str(path)}, f"Wrote {path}.")


def doctor(options: argparse.Namespace) -> Result:
    """Check the installation; no where a check fails."""
    from tangentlora.studies.doctor import examine

    checks = examine(options.device)
    text = "\n".join(f"{'ok  ' if c.ok else 'FAIL'}  {c.name}: {c.detail}" for c in checks)
    values = {"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]}
    return Result(values, text, not all(c.ok for c in checks))
