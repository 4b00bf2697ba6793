"""Who takes part in a run: the processes that a launcher such as torchrun started, from join to leave."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, final

from tangentlora.errors import InputError

# The names that launchers give them: torchrun and accelerate, then MPI's
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")

PATIENCE = 1800.0
"""Seconds after which a process that is silent counts as lost."""

_LAST = "tangentlora/last"  # the key under which a process says that it ends the run
_FIRST_SPEAKS = 5.0  # seconds that the others give process 0 to tell an error that all of them met


class GroupError(RuntimeError):
    """The run cannot go on: a process is gone, or the processes no longer hold the same numbers.

    The command line prints the message on one line and exits with status 3.
    """


@final
@dataclass(frozen=True)
class _Group:
    rank: int
    count: int
    store: Any


_group: _Group | None = None


def launched() -> tuple[int, int]:
    """Return this process's number and how many there are, as the launcher said it: (0, 1) without one.

    Raises InputError for numbers that make no sense.
    """
    number, total = _environment(_RANK), _environment(_COUNT)
    if number is None or total is None or "MASTER_ADDR" not in os.environ:
        return 0, 1
    if not 0 <= number < total:
        raise InputError(
            f"got process {number} of {total} from the environment, expected numbers below {total}: start "
            "the processes with torchrun, or unset RANK and WORLD_SIZE"
        )
    return number, total


def rank() -> int:
    """Return the number of this process, 0 before `join` and in a run of one."""
    return 0 if _group is None else _group.rank


def count() -> int:
    """Return how many processes work together, 1 before `join` and in a run of one."""
    return 1 if _group is None else _group.count


def first() -> bool:
    """Say whether this is process 0, which alone prints and keeps what all have found."""
    return rank() == 0


def join(device: str = "cpu", patience: float = PATIENCE) -> None:
    """Meet the other processes that the launcher started; nothing where there are none.

    They exchange tensors on cuda devices by NCCL, with one device for each process of a machine, and all
    others by gloo. One that is silent for `patience` seconds counts as lost.
    Raises InputError for a cuda device by number or fewer devices than processes, and GroupError where the
    others do not come.
    """
    global _group
    number, total = launched()
    if total == 1 or _group is not None:
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(total)}  # where MPI has other names for them
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = "gloo"
    if device.startswith("cuda"):
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(_own_device(device, torch.cuda.device_count()))
    limit = timedelta(seconds=patience)
    with guarded():
        store, _, _ = next(rendezvous("env://", timeout=limit))
        distributed.init_process_group(backend, store=store, rank=number, world_size=total, timeout=limit)
    _group = _Group(number, total, store)


def leave() -> None:
    """Part from the other processes; where all has gone well, wait for them with `barrier` first."""
    global _group
    if _group is not None:
        from torch import distributed

        _group = None
        distributed.destroy_process_group()


def end(say: Callable[[], None]) -> None:
    """Let one process tell the user why the run ends: `say` is called unless another has told it.

    Process 0 goes first, since most errors are met by all.
    """
    if _group is None:
        say()
        return
    store, name = _group.store, str(_group.rank)
    with suppress(RuntimeError):  # nobody tells it in that time, or the store is gone with its process
        if _group.rank:
            store.wait([_LAST], timedelta(seconds=_FIRST_SPEAKS))
        if store.check([_LAST]):
            return
    with suppress(RuntimeError):
        if _group.rank and store.compare_set(_LAST, "", name).decode() != name:
            return
    say()
    with suppress(RuntimeError):  # process 0 only now: the launcher may end it once the others are gone
        store.set(_LAST, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what goes wrong between processes into a GroupError; what is exchanged was checked before."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = re.sub(r"^\[\S*\] ", "", first_line).split(". ")[0].rstrip(".")  # gloo names its source file
        raise GroupError(
            f"got no answer from another process ({reason}), expected all of them to reach the end: see "
            "what it said last, and start the run again, which reads finished tangents from the store"
        ) from error


def _own_device(device: str, devices: int) -> int:
    local = _environment(_LOCAL) or 0
    if device != "cuda" or local >= devices:
        raise InputError(
            f"got --device {device} and process {local} on a machine with {devices} cuda devices, expected "
            "--device cuda and a device for every process: lower --nproc-per-node, or use --device cpu"
        )
    return local


def _environment(names: Sequence[str]) -> int | None:
    """Return the first of these environment variables that is a number."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), None)
