"""How a store is dealt out to processes, and that each has its part of it and all of the outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from process_groups import run_together
from random_jacobians import random_jacobian
from store_steps import apart, loaded, saved_store
from tangentlora.errors import InputError
from tangentlora.tangent.shared_store import deal
from tangentlora.tangent.store import load_tangent
from tangentlora.tangent.store_writer import ShardEntry


def entries(*sizes: tuple[int, int]) -> list[ShardEntry]:
    """Return shards of so many examples and bytes."""
    return [ShardEntry(f"{i}", examples, "", size) for i, (examples, size) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("shards", "count", "expected"),
    [
        (entries((4, 400)), 2, [[0, 0, 1, 1]]),
        (entries((4, 400)), 1, [[0, 0, 0, 0]]),
        (entries((2, 300), (6, 300)), 2, [[0, 0], [1, 1, 1, 1, 1, 1]]),
        (entries((1, 900), (3, 30)), 4, [[0], [1, 2, 3]]),
        (entries((3, 30), (1, 900)), 2, [[0, 0, 0], [1]]),
        (entries((2, 10)), 3, [[0, 1]]),
    ],
)
def test_examples_are_dealt_by_bytes(shards: list[ShardEntry], count: int, expected: list[list[int]]) -> None:
    assert deal(shards, count) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(4))
def test_shares_are_nearly_the_same(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    shards = entries(*torch.randint(1, 50, (20, 2), generator=draw).tolist())
    owners = [owner for shard in deal(shards, count) for owner in shard]
    sizes = [shard.bytes / shard.examples for shard in shards for _ in range(shard.examples)]
    held = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == p) for p in range(count)]
    assert owners == sorted(owners)
    assert set(owners) == set(range(count))
    assert max(held) - min(held) <= 2 * max(sizes)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_process_has_its_part(tmp_path: Path, seed: int, in_blocks: bool) -> None:
    """Seed 1 has one example for three processes."""
    store = saved_store(tmp_path / "store", random_jacobian(seed), 200)
    whole = load_tangent(store)
    found = run_together(3, tmp_path / "found", loaded, store, in_blocks)
    for f0, index, gram, key in found:
        assert torch.equal(f0, whole.f0)
        torch.testing.assert_close(gram, whole.jacobian.gram())
        assert key == whole.key
        assert len(index) <= max(1, -(-len(f0) // 2))
    together = torch.cat([index for _, index, _, _ in found])
    assert torch.equal(together.sort().values, torch.arange(len(whole.f0)))


def test_a_damaged_shard_ends_all(tmp_path: Path) -> None:
    store = saved_store(tmp_path / "store", random_jacobian(0), 200)
    last = max(store.glob("shard-*"))
    damaged = bytearray(last.read_bytes())
    damaged[-1] ^= 1
    last.write_bytes(damaged)
    found = run_together(2, tmp_path / "found", loaded, store, False)
    assert "does not match its checksum" in str(found[1])  # who reads it
    assert "got no answer from another process" in str(found[0])


def test_machines_without_a_folder_in_common_are_told(tmp_path: Path) -> None:
    for error in run_together(2, tmp_path, apart, tmp_path):
        assert isinstance(error, InputError)
        assert "which not all processes see, expected one that all machines have in common" in str(error)
