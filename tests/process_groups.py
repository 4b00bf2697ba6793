"""Functions and commands run by several processes that exchange by gloo, as if a launcher had started them.

They are forked from a server that has imported the libraries once, which takes longer than most tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tangentlora import processes

PATIENCE = 20.0
_IMPORTED = ["peft", "matplotlib.pyplot", "transformers.models.bert.modeling_bert", "tangentlora.studies.fit"]

Step = Callable[..., Any]
"""A function that can be imported by name."""


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what torchrun says to one process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run_together(count: int, folder: Path, step: Step, *given: Any) -> list[Any]:
    """Return what `step(*given)` gave in each process: a value, or the error it raised; None if it died."""
    _start(count, _call, folder, step, given)
    results = [folder / f"{rank}.pt" for rank in range(count)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in results]


@dataclass(frozen=True)
class Ended:
    """How one process of a command ended: its exit status, −9 where it was killed, and what it printed."""

    status: int
    out: str
    err: str


def run_command(
    count: int, folder: Path, arguments: Sequence[str], before: Step | None = None
) -> list[Ended]:
    """Run the command line in several processes, each of which first calls `before`."""
    statuses = _start(count, _command, folder, arguments, before)
    return [
        Ended(status, *((folder / f"{rank}.{part}").read_text() for part in ("out", "err")))
        for rank, status in enumerate(statuses)
    ]


def _start(count: int, target: Step, folder: Path, *given: Any) -> list[int]:
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    # as torchrun does, so that the store outlives the processes
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started = [
        context.Process(target=target, args=(environment(rank, count, store.port), folder, *given))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    try:
        assert all(process.exitcode is not None for process in started), "a process hangs"
    finally:
        for process in started:
            process.kill()
    return [int(process.exitcode or 0) for process in started]


def _call(told: dict[str, str], folder: Path, step: Step, given: tuple[Any, ...]) -> None:
    os.environ |= told
    torch.set_num_threads(1)
    processes.join(patience=PATIENCE)
    try:
        value = step(*given)
    except Exception as error:
        value = error
    torch.save(value, folder / f"{processes.rank()}.pt")
    processes.leave()


def _command(told: dict[str, str], folder: Path, arguments: Sequence[str], before: Step | None) -> None:
    from tangentlora.cli import main

    os.environ |= told
    torch.set_num_threads(1)
    if before is not None:
        before(int(told["RANK"]))
    with contextlib.ExitStack() as opened:
        out, err = (
            opened.enter_context((folder / f"{told['RANK']}.{part}").open("w")) for part in ("out", "err")
        )
        opened.enter_context(contextlib.redirect_stdout(out))
        opened.enter_context(contextlib.redirect_stderr(err))
        sys.exit(main(list(arguments)))
