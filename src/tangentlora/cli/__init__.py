"""The command line: parse, call, print. Nothing is decided here, and `--help` imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, final

from tangentlora import options as add, processes
from tangentlora.cli import adapters, compress, folders, runs, theorems, together
from tangentlora.cli.result import Result
from tangentlora.errors import InputError

VERBS: dict[str, tuple[Callable[[Any], None], Callable[[argparse.Namespace], Result]]] = {
    "demo": (add.add_demo, runs.demo),
    "fit": (add.add_fit, runs.fit),
    "path": (add.add_path, theorems.path),
    "advise": (add.add_advise, theorems.advise),
    "verify": (add.add_verify, folders.verify),
    "examine": (add.add_examine, theorems.examine),
    "landscape": (add.add_landscape, theorems.landscape),
    "reproduce": (add.add_reproduce, runs.reproduce),
    "audit": (add.add_audit, adapters.audit),
    "compress": (add.add_compress, compress.compress),
    "report": (add.add_report, folders.report),
    "doctor": (add.add_doctor, folders.doctor),
}
"""What adds each verb's options, and what runs it; in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 for done, 1 for an answer of no, 2 for bad input, told in one line on stderr.

    Of several processes, process 0 prints and returns this; 3 says that one of them was lost.
    """
    try:
        speaks = processes.launched()[0] == 0
    except InputError as error:
        return _ended(2, str(error))
    with contextlib.nullcontext() if speaks else together.silence():
        options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    if options.verb in together.FIRST_ALONE and not speaks:
        return 0
    _, run = VERBS[options.verb]
    try:
        with together.taking_part(options):
            result = run(options)
    except InputError as error:
        return _ended(2, str(error))
    except processes.GroupError as error:
        return _ended(3, str(error))
    except OSError as error:
        return _ended(
            2,
            f"got an error from the file system ({error}), expected files that can be read and "
            "written: free some space, or choose another folder with --output-dir or --tangent-dir",
        )
    except together.Terminated:
        return _ended(
            3,
            "got the launcher's signal to end, as when another process is gone, expected all of them to "
            "reach the end: see what it said last, and start the run again",
        )
    except KeyboardInterrupt:
        return _ended(130, "interrupted; what was written stays as it is")
    finally:
        processes.leave()
    if not speaks:
        return 0  # the answer is process 0's, and the launcher would end it for another's status
    print(_json(result.values) if options.json else result.text)
    return 1 if result.negative else 0


def _ended(status: int, sentence: str) -> int:
    """Print one line on stderr, unless another process has told why the run ends; return the status."""
    processes.end(lambda: print("tangentlora:", " ".join(sentence.split()), file=sys.stderr, flush=True))
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
    for add_options, _ in VERBS.values():
        add_options(verbs)
    return parser
