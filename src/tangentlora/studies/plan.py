"""What linearising and solving will take, beside what there is: in words, as JSON, and as a refusal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tangentlora.errors import InputError
from tangentlora.report.wording import data_size

_REMEDY = "--layers last, fewer --target-modules or a smaller --test-limit"


@dataclass(frozen=True)
class PlannedSet:
    """What one set of examples takes, `stored` and `dense` in bytes.

    `tokens` is None for images and sounds, `seconds` where nothing was timed.
    """

    name: str
    examples: int
    tokens: int | None
    ready: bool
    stored: int
    dense: int
    seconds: float | None

    def line(self, backward: int, most: str) -> str:
        """Return what is said of the set; `most` stands before what is an upper bound."""
        tokens = "" if self.tokens is None else f" of {self.tokens:,} tokens"
        begin = f"{self.name}: {self.examples:,} examples{tokens}, "
        if self.ready:
            return f"{begin}whose tangent is in the store already"
        passes = f"{self.examples:,} forward and {backward * self.examples:,} backward passes"
        stored = f"{most}{data_size(self.stored)} to store (dense: {data_size(self.dense)})"
        return f"{begin}{passes}, {stored}{_duration(self.seconds)}"


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what there is to do it with: `free` bytes on the disk, `memory` bytes in all.

    An example has so many `outputs` and takes so many `backward` passes. `linearising` and `solving` are
    peaks of memory; `in_blocks` is that of solving where the rows are read from the store block by block.
    Where nothing was `measured` all these are upper bounds.
    """

    sets: tuple[PlannedSet, ...]
    outputs: int
    backward: int
    measured: bool
    folder: Path
    free: int
    memory: int
    linearising: int
    solving: int
    in_blocks: int

    @property
    def stored(self) -> int:
        """Bytes that the store will grow by."""
        return sum(part.stored for part in self.sets)

    @property
    def reads_blocks(self) -> bool:
        """Say whether the rows do not fit in memory and have to be read from the store in blocks."""
        return self.solving > self.memory

    @property
    def peak(self) -> int:
        """The most memory that the run takes, in bytes."""
        return max(self.linearising, self.in_blocks if self.reads_blocks else self.solving)

    @property
    def fits(self) -> bool:
        """Say whether the store fits on the disk and the run in memory."""
        return self.stored <= self.free and self.peak <= self.memory

    def require(self) -> None:
        """Raise InputError where the store cannot fit on the disk or the run in memory."""
        if self.stored > self.free:
            raise InputError(
                f"got tangents of {data_size(self.stored)} to store in {self.folder}, expected at most the "
                f"{data_size(self.free)} that are free there: choose another --tangent-dir, {_REMEDY}"
            )
        if self.peak > self.memory:
            batch = self.linearising == self.peak
            remedy = "a smaller --batch-size or --max-length, " if batch else ""
            raise InputError(
                f"got a run that takes {data_size(self.peak)} of memory to "
                f"{'linearise a batch' if batch else 'solve'}, expected at most {data_size(self.memory)}: "
                f"choose {remedy}{_REMEDY}, give a larger --memory if there is more, or use several "
                "processes with torchrun"
            )

    def text(self) -> str:
        """Return the plan in a few lines."""
        most, about = ("", "about ") if self.measured else ("at most ", "at most ")
        lines = [part.line(self.backward, most) for part in self.sets]
        blocks = ", with the rows read from the store in blocks" if self.reads_blocks else ""
        lines.append(f"memory: {about}{data_size(self.peak)} of {data_size(self.memory)}{blocks}")
        if self.stored:
            lines.append(f"disk: {about}{data_size(self.stored)} of {data_size(self.free)} free")
        return "\n  ".join(["plan", *lines])

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self) | {"folder": str(self.folder), "stored": self.stored, "peak": self.peak}


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f", about {max(seconds, 1):.0f} s"
    return f", about {seconds / 60:.0f} min" if seconds < 5400 else f", about {seconds / 3600:.1f} h"
