"""Passes over the rows in the shards of a store, for what needs more rows than memory holds.

A shard is mapped into memory, and its rows are turned into float64 a few at a time, so that they are still in
the processor's cache when they are used; bands stay bands. Several shards are worked on at once, by as many
threads as torch may use, and what they give comes in their order: a sum does not depend on the threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.models.targets import Target
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.store import read_shard
from tangentlora.tangent.store_writer import ShardEntry

_PIECE = 2**22  # bytes of rows that are converted at a time and stay in the processor's cache
_FEWEST = 256  # rows of a layer below which a piece costs more to call for than to compute
LARGE = 2**25
"""Bytes of rows for a product as large as a weight matrix: of these there should be few."""

Found = TypeVar("Found")


@final
@dataclass(frozen=True, eq=False)
class ShardPasses:
    """Some shards of a store, to be read in a precision and on a device; `C` combines their outputs.

    `order` has for each shard the places of its examples among all of them. Raises InputError, from any
    method that reads, where a shard cannot be read.
    """

    folder: Path
    shards: tuple[ShardEntry, ...]
    targets: tuple[Target, ...]
    order: tuple[Int[Tensor, " _b"], ...]
    outputs: int
    C: Float[Tensor, "J K"] | None = None
    precision: torch.dtype = torch.float32
    where: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def n_outputs(self) -> int:
        return self.outputs if self.C is None else len(self.C)

    def zeros(self) -> Float[Tensor, "N K"]:
        """Return outputs of zero, (N,K)."""
        n = sum(len(places) for places in self.order)
        return torch.zeros(n, self.n_outputs, dtype=self.precision, device=self.where)

    def to(self, dtype: torch.dtype, where: torch.device | None = None) -> ShardPasses:
        """Return the same in another precision or on another device."""
        where = where or self.where
        order = tuple(places.to(where) for places in self.order)
        C = None if self.C is None else self.C.to(where)
        return replace(self, precision=dtype, where=where, order=order, C=C)

    def combined(self, C: Float[Tensor, "J K"]) -> ShardPasses:
        """Return those of the outputs z ↦ C z."""
        C = C.to(self.where, torch.float64)
        return replace(self, C=C if self.C is None else C @ self.C)

    def read(self, shard: ShardEntry) -> dict[str, Rows]:
        """Return the rows of a shard as they are stored."""
        return read_shard(self.folder, shard, self.targets)[2]

    def made(self, rows: Rows) -> Rows:
        """Return rows that were read, converted and combined."""
        rows = rows.converted(self.precision, self.where)
        return rows if self.C is None else rows.combined(self.C.to(self.precision))

    def pieces(
        self, layers: Mapping[str, Rows], names: Iterable[str], size: int | None = None
    ) -> Iterator[tuple[slice, Jacobian]]:
        """Yield some of a shard's examples, by their places in it, and their Jacobian in these layers.

        They are as many as have `size` bytes, converted and combined.
        """
        chosen = {name: layers[name] for name in names}
        if not chosen:
            return
        n = len(next(iter(chosen.values())).counts)
        numbers = sum(rows.x.numel() + rows.held.numel() for rows in chosen.values())
        most = max(len(rows.x) for rows in chosen.values())
        held = numbers * torch.finfo(self.precision).bits // 8
        step = max(1, (size or _PIECE) * n // max(1, held), _FEWEST * n // max(1, most))
        for start in range(0, n, step):
            run = slice(start, min(n, start + step))
            yield run, Jacobian({t: self.made(rows.run(start, run.stop)) for t, rows in chosen.items()})

    def each(
        self, work: Callable[[Int[Tensor, " B"], dict[str, Rows]], Found]
    ) -> Iterator[tuple[Int[Tensor, " B"], Found]]:
        """Yield the places of each shard's examples and what `work` makes of these and of the shard's rows.

        `work` runs in as many threads as torch may use, each on a shard and with torch in one thread: a few
        rows are too little for two. No more than one result beside those in the making waits to be taken.
        """

        def of_shard(places: Int[Tensor, " B"], shard: ShardEntry) -> Found:
            return work(places, self.read(shard))

        threads = torch.get_num_threads()
        waiting: deque[tuple[Tensor, Future[Found]]] = deque()
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            try:
                for places, shard in zip(self.order, self.shards, strict=True):
                    if len(waiting) > threads:
                        of_first, first = waiting.popleft()
                        yield of_first, first.result()
                    waiting.append((places, workers.submit(of_shard, places, shard)))
                for of_next, result in waiting:
                    yield of_next, result.result()
            finally:
                torch.set_num_threads(threads)  # what the workers set is also that of threads to come

    def outputs_of(
        self, names: Iterable[str], of: Callable[[Jacobian], Float[Tensor, "b K"]]
    ) -> Float[Tensor, "N K"]:
        """Return the outputs that `of` gives of some examples' Jacobian in these layers."""
        total = self.zeros()

        def work(places: Int[Tensor, " B"], layers: dict[str, Rows]) -> Float[Tensor, "B K"]:
            z = total.new_zeros(len(places), total.shape[1])
            for run, piece in self.pieces(layers, names):
                z[run] = of(piece)
            return z

        for places, z in self.each(work):
            total[places] = z
        return total
