"""One verb run by several processes: all do the same, process 0 alone prints and keeps its run folder."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

from tangentlora import processes
from tangentlora.errors import InputError

SHARED = ("demo", "fit", "path")
"""The verbs whose examples are shared among processes."""

FIRST_ALONE = ("verify", "report", "doctor")
"""The verbs that process 0 runs while the others leave at once."""


class Terminated(KeyboardInterrupt):
    """The launcher asked this process to end; no handler of errors in between takes it for one of its own."""


@contextmanager
def taking_part(options: argparse.Namespace) -> Iterator[None]:
    """Meet the other processes of the run before the verb and wait for them after it.

    Processes other than 0 are quiet, and write their run folder to a place that is deleted. Raises InputError
    for verbs that take one process, and as `processes.join` does.
    """
    _, total = processes.launched()
    if total == 1 or options.verb in FIRST_ALONE:
        yield
        return
    processes.join(getattr(options, "device", None) or "cpu")
    if options.verb not in SHARED:
        raise InputError(
            f"got {total} processes for {options.verb}, expected one, since only {', '.join(SHARED)} share "
            f"their work: start tangentlora {options.verb} without torchrun"
        )
    with _terminable(), tempfile.TemporaryDirectory(prefix="tangentlora-") as scratch:
        if not processes.first():
            options.quiet, options.output_dir = True, Path(scratch, "run")
        yield
        processes.barrier("the end")


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing, and leave with status 0 where argparse leaves: process 0 says the same and has the say.

    A launcher that sees another status first would end process 0 before it has spoken.
    """
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            yield
        except SystemExit as left:
            left.code = 0
            raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let the launcher's signal to end unwind the stack, so that what is half written is removed."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
