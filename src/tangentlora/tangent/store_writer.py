"""A store of tangents as it is written: shard after shard, the manifest last, then one rename.

Each row's output-gradient is stored as a band, and inputs that two layers have in common are stored once;
docs/run-folder.md, "The store", has the layout.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.stored_bands import to_bands
from tangentlora.tangent.tangent import key_of

SHARD_BYTES = 2**27
"""About how many bytes a shard's rows take in memory; an example is never divided."""

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of a shard; `shared` names, for each layer without x, the one whose x it has."""

    file: str
    examples: int
    sha256: str
    bytes: int
    shared: dict[str, str] = field(default_factory=dict)


class ShardWriter:
    """Writes rows to a folder as they come, in files `shard-PROCESS-NUMBER`, and holds one shard at most.

    Rows and outputs are in float32 on the CPU. The same calls write the same bytes.
    """

    def __init__(self, folder: Path, process: int = 0) -> None:
        self._folder, self._process = folder, process
        self._written: list[ShardEntry] = []
        self._held: list[tuple[Tensor, Tensor, Jacobian]] = []
        self._held_bytes = 0

    def add(self, index: Int[Tensor, " B"], f0: Float[Tensor, "B K"], layers: Mapping[str, Rows]) -> None:
        """Take outputs and rows of the examples `index`, and write every shard that is full by then."""
        part, start = (index, f0, Jacobian(layers)), 0
        for stop, size in enumerate(_sizes(layers)):
            if self._held_bytes and self._held_bytes + size > SHARD_BYTES:
                self._hold(part, start, stop)
                self._write()
                start = stop
            self._held_bytes += size
        self._hold(part, start, len(index))

    def close(self) -> list[ShardEntry]:
        """Write what is left, and return the entries of all shards for the manifest."""
        if self._held:
            self._write()
        return self._written

    def _hold(self, part: tuple[Tensor, Tensor, Jacobian], start: int, stop: int) -> None:
        index, f0, rows = part
        if stop - start < len(index):  # a copy, so that the rest can be freed
            rows = rows.select(range(start, stop))
        if stop > start:
            self._held.append((index[start:stop], f0[start:stop], rows))

    def _write(self) -> None:
        from safetensors.torch import save_file

        indices, outputs, parts = zip(*self._held, strict=True)
        self._held, self._held_bytes = [], 0
        index = torch.cat(indices)
        tensors, shared = pack(concatenate(parts).layers)
        tensors |= {"index": index, "f0": torch.cat(outputs)}
        path = self._folder / f"shard-{self._process:03d}-{len(self._written):05d}.safetensors"
        save_file(tensors, path)
        self._written.append(
            ShardEntry(path.name, len(index), file_sha256(path), path.stat().st_size, shared)
        )


def pack(layers: Mapping[str, Rows]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return rows as they are stored, tensors by name, and the layers that have the x of an earlier one.

    `LAYER/x` (R,n), `LAYER/counts`, `LAYER/g` (R,K,w) and, where w < m, `LAYER/start` (R).
    """
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, rows in layers.items():
        band, start = to_bands(rows.g)
        tensors |= {f"{name}/g": band.contiguous(), f"{name}/counts": rows.counts.contiguous()}
        if start is not None:
            tensors[f"{name}/start"] = start
        owners = (other for other in layers if f"{other}/x" in tensors)
        owner = next((other for other in owners if torch.equal(tensors[f"{other}/x"], rows.x)), None)
        if owner is None:
            tensors[f"{name}/x"] = rows.x.contiguous()
        else:
            shared[name] = owner
    return tensors, shared


def _sizes(layers: Mapping[str, Rows]) -> list[int]:
    """Return the bytes in memory of each example's rows."""
    per_row = {name: 4 * (rows.shape[1] + rows.n_outputs * rows.shape[0]) for name, rows in layers.items()}
    total = torch.stack([rows.counts * per_row[name] for name, rows in layers.items()]).sum(0)
    sizes: list[int] = total.tolist()
    return sizes


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Make a hidden folder beside `folder` to write in, which is gone at the end unless it was renamed."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(
    partial: Path,
    folder: Path,
    identity: Mapping[str, Any],
    shards: Sequence[ShardEntry],
    n_outputs: int,
    shapes: Sequence[tuple[int, int]],
) -> None:
    """Write the manifest of all shards, of all processes, and rename `partial` to `folder`.

    A `folder` that another run has made meanwhile is left as it is: its name is the hash of what it holds.
    """
    examples = sum(shard.examples for shard in shards)
    manifest = {
        "key": key_of(identity),
        "identity": identity,
        "n_outputs": n_outputs,
        "dense_bytes": 4 * examples * n_outputs * sum(m * n for m, n in shapes),
        "bytes": sum(shard.bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
    try:
        os.replace(partial, folder)
    except OSError:
        if not folder.exists():  # else another process wrote the same tangent first
            raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
