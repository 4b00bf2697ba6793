"""The verb that makes a trained adapter smaller: compress."""

from __future__ import annotations

import argparse
import textwrap

from tangentlora.cli.result import Result
from tangentlora.options import given_for
from tangentlora.places import require_writable


def compress(options: argparse.Namespace) -> Result:
    """Compress an adapter and write the smaller one; no with --strict where it fails on the real network."""
    from tangentlora.studies.settings import Settings

    own = {"rank", "tolerance"}  # which here are the compression's and not the problem's
    given = {name: value for name, value in given_for(Settings, options).items() if name not in own}
    from tangentlora.studies.early import require_adapter
    from tangentlora.studies.limits import check_compression

    check_compression(options.rank, options.tolerance)
    require_adapter(options.adapter, given)
    require_writable(options.output_dir)
    from tangentlora.studies.compress_adapter import compress_adapter
    from tangentlora.studies.opened import open_adapter

    with open_adapter(options.adapter, given) as opened:
        found, written = compress_adapter(
            opened,
            options.output_dir,
            rank=options.rank,
            tolerance=options.tolerance,
            polish=options.polish,
            batch_size=options.batch_size or Settings.batch_size,
            progress=not options.quiet,
        )
        notes = opened.notes
    values = found.record() | {
        "data_check": opened.check.leaving("dev").describe(),
        "notes": list(notes),
        "adapter": written and str(written.folder),
        "adapter_error": written and written.error,
    }
    nothing = "Nothing is left, so that no adapter is written: the network without one gives these outputs."
    said = (*notes, written.message if written else nothing)
    text = "\n".join([found.table(), *(textwrap.fill(sentence, 100) for sentence in said)])
    return Result(values, text, options.strict and not found.standing.holds)
