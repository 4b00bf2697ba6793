"""What each of several processes does in the tests of `processes`; the processes import it by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tangentlora import processes


def own(rank: int, *shape: int) -> Tensor:
    """Return numbers of a process's own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def exchange() -> dict[str, Any]:
    """Return one of each kind of exchange."""
    rank, count = processes.rank(), processes.count()
    index = torch.arange(7)[rank::count]
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e300, 5e-324], dtype=torch.float64)
    tally = processes.Tally()
    told = [tally.add(rank + 1) for _ in range(5 - rank)]
    done = tally.finish(5)
    return {
        "short": processes.sum_over([own(rank, 3, 2), own(rank + 9, 4)], "short"),
        "long": processes.sum_over([own(rank, 700, 5)], "long", ["agreed", torch.ones(3)])[0],
        "exact": processes.sum_over([own(rank, 2000).float()], "exact")[0],
        "whole": processes.sum_over([torch.tensor([2**50 - rank, rank])], "whole")[0],
        "none": processes.sum_over([torch.zeros(0, 3)], "none")[0],
        "rows": processes.gather_rows(own(0, 7, 3)[index], index, 7, "rows"),
        "special": processes.gather_rows(special[rank::count], torch.arange(5)[rank::count], 5, "special"),
        "values": processes.gather_values({"rank": rank}, "values"),
        "told": told,
        "done": done,
    }


def _refusal(step: Callable[[], object]) -> str:
    try:
        step()
    except processes.GroupError as error:
        return str(error)
    return ""


def _round(tally: processes.Tally) -> None:
    tally.add(1)
    tally.finish(1)


def drift() -> dict[str, str]:
    """Return what was said where the processes are at other steps, and that they can still meet after it."""
    rank = processes.rank()
    off = float(rank == 1)
    tally = processes.Tally()
    agreed = torch.ones(5, dtype=torch.float64)
    nudged = agreed * (1 + off * torch.finfo(torch.float64).eps)
    return {
        "none": _refusal(lambda: processes.sum_over([agreed], "step", [agreed])),
        "last bit": _refusal(lambda: processes.sum_over([agreed], "step", [nudged])),
        "name": _refusal(lambda: processes.sum_over([agreed], f"step {off}")),
        "length": _refusal(lambda: processes.sum_over([torch.ones(5 if rank else 5000)], "step")),
        "shape": _refusal(lambda: processes.sum_over([torch.ones(2, 3) if rank else torch.ones(6)], "step")),
        "kind": _refusal(
            lambda: processes.barrier("step") if rank else processes.gather_values(rank, "another")
        ),
        "round": _refusal(lambda: processes.barrier("step") if rank == 1 else _round(tally)),
        "order": _refusal(lambda: processes.sum_over([agreed], "s", [agreed, nudged - 1][:: 1 - 2 * rank])),
        "after": _refusal(lambda: processes.barrier("after")),
    }


def killed(how: str) -> tuple[str, float]:
    """Kill process 1 while the others wait for it; return what they say and after how many seconds."""
    tally = processes.Tally()
    tally.add(1)
    tally.finish(1)
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.perf_counter()

    def wait() -> None:
        if how == "sum":
            processes.sum_over([torch.zeros(3000)], "sum")
        for _ in range(3):
            tally.add(1)

    return _refusal(wait), time.perf_counter() - start
