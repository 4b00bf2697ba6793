"""What is done to a process before it runs a command in the tests of several; imported there by name."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def share_all(rank: int) -> None:
    """Share the examples of however small a store, as those of a large one are."""
    from tangentlora.tangent import shared_store

    shared_store.WHOLE_BYTES = 0


def _on_call(home: Any, name: str, number: int, do: Callable[[], object]) -> None:
    """Do something at the given call of a function, which goes on after it."""
    function, calls = getattr(home, name), iter(range(sys.maxsize))

    def counted(*given: Any, **more: Any) -> Any:
        if next(calls) == number:
            do()
        return function(*given, **more)

    setattr(home, name, counted)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_linearising(rank: int) -> None:
    """Kill process 1 at its second batch."""
    from tangentlora.tangent import linearize

    if rank == 1:
        _on_call(linearize, "capture", 1, _die)


def die_solving(rank: int) -> None:
    """Kill process 1 at its fifth adjoint."""
    from tangentlora.tangent.sharded import ShardedJacobian

    share_all(rank)
    if rank == 1:
        _on_call(ShardedJacobian, "at", 5, _die)


def be_ended(rank: int) -> None:
    """Let process 1 get the signal to end at its second batch, as a launcher sends it."""
    from tangentlora.tangent import linearize

    if rank == 1:
        _on_call(linearize, "capture", 1, lambda: os.kill(os.getpid(), signal.SIGTERM))


def drift(rank: int) -> None:
    """Change the factors of process 1 by a bit in the middle of a solve."""
    from tangentlora.solvers import certified

    share_all(rank)
    function = certified.truncate

    def nudged(*given: Any) -> Any:
        found = function(*given)
        return {name: (u * (1 + 2.0**-52), v) for name, (u, v) in found.items()} if rank == 1 else found

    certified.truncate = nudged
