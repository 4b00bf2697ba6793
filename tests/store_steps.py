"""What each of several processes does in the tests of a store in common; the processes import it by name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from tangentlora import processes
from tangentlora.models.targets import Target
from tangentlora.tangent import shared_store, store_writer
from tangentlora.tangent.jacobian import Jacobian
from tangentlora.tangent.sharded import ShardedJacobian
from tangentlora.tangent.store import save_tangent
from tangentlora.tangent.tangent import FORMAT, Tangent


def saved_store(folder: Path, jacobian: Jacobian, shard_bytes: int) -> Path:
    """Write a tangent to shards of so many bytes; return its folder."""
    targets = tuple(Target(name, name, shape) for name, shape in jacobian.shapes.items())
    f0 = torch.randn(jacobian.n_examples, jacobian.n_outputs)
    described = [asdict(target) for target in targets]
    identity = {"format": FORMAT, "n_examples": len(f0), "targets": described}
    before, store_writer.SHARD_BYTES = store_writer.SHARD_BYTES, shard_bytes
    try:
        save_tangent(Tangent(f0, jacobian, targets, identity), folder)
    finally:
        store_writer.SHARD_BYTES = before
    return folder


def loaded(store: Path, in_blocks: bool) -> tuple[Tensor, Tensor, Tensor, str]:
    """Return outputs, numbers of the examples, kernel and key of what a process loads."""
    shared_store.WHOLE_BYTES = 0
    tangent = shared_store.load_share(store, in_blocks=in_blocks)
    jacobian = tangent.jacobian
    assert isinstance(jacobian, ShardedJacobian)
    return tangent.f0, jacobian.index, jacobian.gram(), tangent.key


def apart(folder: Path) -> bool:
    """Ask for a store that only process 0 sees."""
    store = folder / f"{processes.rank()}" / "key"
    if processes.first():
        store.mkdir(parents=True)
    return shared_store.is_stored(store)
