"""A store of tangents that several processes write and read: each its own shards, each its own examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora import processes
from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.sharded import ShardedJacobian
from tangentlora.tangent.store import (
    check_shards,
    load_tangent,
    of_outputs,
    open_shards,
    read_manifest,
    read_shard,
    targets_of,
)
from tangentlora.tangent.store_writer import ShardEntry, partial_folder
from tangentlora.tangent.stored import in_blocks as blocks_of
from tangentlora.tangent.tangent import Tangent

WHOLE_BYTES = 2**26
"""Bytes of a store up to which every process reads all of it: in the few coordinates of the span of so few
rows a solve takes less time than its exchanges would."""


def is_stored(folder: Path) -> bool:
    """Say whether the tangent is there, for all processes alike.

    Raises InputError where only some of them see it, which then are on machines without a common folder.
    """
    seen = processes.gather_values(folder.exists(), f"is {folder.name} stored")
    if any(seen) and not all(seen):
        raise _apart(folder)
    return all(seen)


@contextmanager
def common_folder(folder: Path) -> Iterator[Path]:
    """Make one hidden folder beside `folder` for all processes to write in; process 0 makes and removes it.

    Raises InputError where a process does not see it.
    """
    if not processes.first():
        name = processes.gather_values("", f"a folder for {folder.name}")[0]
        yield _seen(folder.with_name(name))
        return
    with partial_folder(folder) as partial:
        processes.gather_values(partial.name, f"a folder for {folder.name}")
        yield _seen(partial)


def load_share(folder: Path, *, in_blocks: bool = False) -> Tangent:
    """Return the tangent in a folder with the part of its Jacobian that this process is to hold, in float32.

    The examples are dealt out in the order of the store, nearly the same number of bytes to each process, so
    that none reads much more than its part. Up to `WHOLE_BYTES` each process holds all of them. With
    `in_blocks` the rows stay in the store: whole shards are dealt out, and read anew for every product.
    Raises InputError as `load_tangent` does.
    """
    shards = open_shards(folder)
    alone = processes.count() == 1
    if not in_blocks and (alone or sum(shard.bytes for shard in shards) <= WHOLE_BYTES):
        return load_tangent(folder)
    dealt = deal(shards, processes.count())
    if in_blocks:
        dealt = [[owners[len(owners) // 2]] * len(owners) for owners in dealt]
    own = [(shard, places) for shard, owners in zip(shards, dealt, strict=True) if (places := _own(owners))]
    check_shards(folder, [shard for shard, _ in own])
    targets, manifest = targets_of(folder), read_manifest(folder)
    f0, local, index = (
        _in_blocks(folder, [shard for shard, _ in own], targets)
        if in_blocks and own
        else _in_memory(folder, own or [(shards[-1], [])], targets)
    )
    n = int(manifest["identity"]["n_examples"])
    held = local if alone else ShardedJacobian(local, index, n)
    f0 = processes.gather_rows(f0, index, n, f"f0 of {folder.name}")
    return Tangent(f0, of_outputs(held, manifest["identity"]), targets, manifest["identity"], folder)


_Part: TypeAlias = tuple[Float[Tensor, "n K"], Operator, Int[Tensor, " n"]]
"""Outputs, Jacobian and numbers of the examples of one process."""


def _in_blocks(folder: Path, shards: Sequence[ShardEntry], targets: Sequence[Target]) -> _Part:
    f0, jacobian = blocks_of(folder, shards, targets)
    return f0, jacobian, jacobian.index


def _in_memory(
    folder: Path, wanted: Sequence[tuple[ShardEntry, Sequence[int]]], targets: Sequence[Target]
) -> _Part:
    """Read the examples at some places of some shards."""
    outputs, parts, indices = [], [], []
    for shard, places in wanted:
        chosen = torch.tensor(places, dtype=torch.long)
        index, f0, layers = read_shard(folder, shard, targets)
        indices.append(index[chosen])
        outputs.append(f0[chosen])
        parts.append(Jacobian(layers).select(chosen))
    return torch.cat(outputs), concatenate(parts), torch.cat(indices)


def deal(shards: Sequence[ShardEntry], count: int) -> list[list[int]]:
    """Return the process of each example, shard by shard, with nearly the same bytes for every process.

    Within a shard the bytes count as spread evenly over its examples. Each process has a run of examples, and
    at least one where there are as many as processes.
    """
    sizes = [shard.bytes / shard.examples for shard in shards for _ in range(shard.examples)]
    n, total, before = len(sizes), sum(sizes), 0.0
    owners: list[int] = []
    for number, size in enumerate(sizes):
        by_bytes = int(count * (before + size / 2) / total)
        before += size
        last = owners[-1] if owners else -1
        needed = count - (n - number)  # so that the examples left suffice for the processes left
        owners.append(min(max(by_bytes, needed, last), last + 1, count - 1))
    ends = iter(owners)
    return [[next(ends) for _ in range(shard.examples)] for shard in shards]


def _own(owners: Sequence[int]) -> list[int]:
    """Return the places in a shard of the examples of this process."""
    return [place for place, owner in enumerate(owners) if owner == processes.rank()]


def _seen(partial: Path) -> Path:
    if not all(processes.gather_values(partial.is_dir(), f"who sees {partial.name}")):
        raise _apart(partial)
    return partial


def _apart(folder: Path) -> InputError:
    return InputError(
        f"got the folder {folder}, which not all processes see, expected one that all machines have in "
        "common: name such a folder with --tangent-dir"
    )
