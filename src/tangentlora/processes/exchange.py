"""What the processes of a run exchange: sums and gathered rows, each with a check that all are in step.

Every process takes the same steps with the same numbers. A process on other numbers would take other steps
sooner or later, and exchanges of different steps crash, hang or, worst, add up. So each begins with a message
of one size for all steps that carries a checksum of the step and of what went into it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, final

from tangentlora.processes import group
from tangentlora.processes.group import GroupError, guarded

if TYPE_CHECKING:
    from torch import Tensor

_ROUND = "a round of batches"
_FIRST = 1024  # numbers that travel with the checksum; the others follow in a message of their own


def sum_over(tensors: Sequence[Tensor], step: str, agreed: Iterable[Tensor | str] = ()) -> list[Tensor]:
    """Return the sum over the processes of each tensor, added in float64: the same bytes in all of them.

    `step` and `agreed` are what must be the same everywhere: the name of the step and what went into it.
    Raises GroupError where they differ, or a process is gone.
    """
    if group.count() == 1:
        return list(tensors)
    import torch

    where = next((t.device for t in tensors if t.is_cuda), torch.device("cpu"))
    flat = torch.cat([t.detach().to(where, torch.float64).flatten() for t in tensors])
    total = _summed(flat, step, checksum([f"{step} {[tuple(t.shape) for t in tensors]}", *agreed]))
    parts = torch.split(total, [t.numel() for t in tensors])
    return [part.reshape(t.shape).to(t.device, t.dtype) for part, t in zip(parts, tensors, strict=True)]


def gather_rows(
    local: Tensor, index: Tensor, n: int, step: str, agreed: Iterable[Tensor | str] = ()
) -> Tensor:
    """Return (n, …), whose row index[j] is the process's own row j: every row belongs to one process.

    Raises GroupError as `sum_over` does.
    """
    rows = local.new_zeros(n, *local.shape[1:])
    rows[index] = local
    return sum_over([rows], step, agreed)[0]


def gather_values(value: Any, step: str) -> list[Any]:
    """Return what each process gave, in their order; for small values.

    Raises GroupError as `sum_over` does.
    """
    if group.count() == 1:
        return [value]
    from torch import distributed

    barrier(step)
    values: list[Any] = [None] * group.count()
    with guarded():
        distributed.all_gather_object(values, value)
    return values


def barrier(step: str) -> None:
    """Wait until every process is at this step; raises GroupError as `sum_over` does."""
    if group.count() > 1:
        import torch

        sum_over([torch.zeros(0)], step)


def checksum(parts: Iterable[Tensor | str]) -> int:
    """Return the CRC-32 of texts and of the bytes and shapes of tensors, in this order."""
    code = 0
    for part in parts:
        if isinstance(part, str):
            code = zlib.crc32(part.encode(), code)
        else:
            code = zlib.crc32(f"{tuple(part.shape)} {part.dtype};".encode(), code)
            code = zlib.crc32(part.detach().cpu().contiguous().numpy().data, code)
    return code


@final
class Tally:
    """The examples done by all processes together, told in rounds: progress, and a sign of life of each.

    The sum of a round is waited for in the next one, so that a slow batch does not hold up the others. With
    `shared` false a process counts for itself.
    """

    def __init__(self, shared: bool = True) -> None:
        self._alone = not shared or group.count() == 1
        self._waiting: tuple[Any, Tensor] | None = None
        self._rounds = self._done = 0

    def add(self, examples: int) -> int:
        """Count this round's examples and return those of all processes as far as they are known.

        Raises GroupError where a process is gone.
        """
        self._rounds += 1
        if self._alone:
            self._done += examples
            return self._done
        import torch
        from torch import distributed

        done = self._settled()
        head = _head(torch.tensor([float(examples)], dtype=torch.float64), checksum([_ROUND]))
        with guarded():
            self._waiting = distributed.all_reduce(head, async_op=True), head
        return done

    def finish(self, rounds: int) -> int:
        """Take part in the rounds that are left of so many, and return the examples of all processes.

        Raises GroupError where a process is gone.
        """
        while self._rounds < rounds:
            self.add(0)
        return self._settled()

    def _settled(self) -> int:
        if self._waiting is not None:
            work, head = self._waiting
            with guarded():
                work.wait()
            self._done += int(_body(head, _ROUND)[0])
            self._waiting = None
        return self._done


def _summed(flat: Tensor, step: str, mark: int) -> Tensor:
    """Return the sum of the vectors of all processes, whose marks have to be the same."""
    import torch
    from torch import distributed

    head, rest = _head(flat, mark), flat[_FIRST:].contiguous()
    with guarded():
        distributed.all_reduce(head)
    body = _body(head, step)[: len(flat)]
    if len(rest):
        with guarded():
            distributed.all_reduce(rest)
    return torch.cat([body, rest])


def _head(flat: Tensor, mark: int) -> Tensor:
    """Return the message that every exchange begins with: a mark of each process, then the first numbers."""
    head = flat.new_zeros(group.count() + _FIRST)
    head[group.rank()] = mark
    head[group.count() : group.count() + len(flat)] = flat[:_FIRST]
    return head


def _body(head: Tensor, step: str) -> Tensor:
    """Return the numbers of a message that was summed; raise GroupError where its marks differ."""
    with guarded():
        marks = head[: group.count()].tolist()
    apart = [number for number, found in enumerate(marks) if found != marks[0]]
    if apart:
        raise GroupError(
            f"got other numbers in process {apart[0]} than in process 0 at the step {step!r}, expected the "
            "same bytes in all processes: run them on machines of one kind, with the same versions and the "
            "same OMP_NUM_THREADS, or run one process"
        )
    return head[group.count() :]
