"""A folder of safetensors shards with a manifest → Tangent, whole or shard by shard; `save_tangent` back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.tangent.band_products import unfolded
from tangentlora.tangent.centred import CentredJacobian, helmert
from tangentlora.tangent.jacobian import Jacobian, concatenate, in_memory
from tangentlora.tangent.layer_rows import LayerRows
from tangentlora.tangent.operator import Operator
from tangentlora.tangent.rows import Rows
from tangentlora.tangent.store_writer import (
    MANIFEST,
    ShardEntry,
    ShardWriter,
    file_sha256,
    partial_folder,
    publish,
)
from tangentlora.tangent.stored_bands import rows_from_bands
from tangentlora.tangent.tangent import FORMAT, Tangent, is_centred, key_of

_ENTRY = {"file", "examples", "sha256", "bytes", "shared"}


def save_tangent(tangent: Tangent, folder: Path) -> None:
    """Write a tangent that is in memory to `folder`, in float32: shards of whole examples, then the manifest.

    A folder that exists already is left as it is: its name is the hash of what it holds. A run that is killed
    leaves at most a hidden `.partial` folder, which nothing reads and anyone may delete.
    """
    if folder.exists():
        return
    held: Operator = tangent.jacobian
    if tangent.centred:  # what is stored are the rows of the contrasts
        held = held.combine_outputs(helmert(held.n_outputs))
    jacobian = in_memory(held, "saving it").to(torch.float32, "cpu")
    with partial_folder(folder) as partial:
        writer = ShardWriter(partial)
        index = torch.arange(jacobian.n_examples)
        writer.add(index, tangent.f0.to("cpu", torch.float32), jacobian.layers)
        shapes = list(jacobian.shapes.values())
        publish(partial, folder, tangent.identity, writer.close(), tangent.f0.shape[1], shapes)


def load_tangent(folder: Path) -> Tangent:
    """Read a tangent back into memory in the order of its examples, every shard's SHA-256 checked.

    Raises InputError where the manifest or a shard is missing, truncated, altered or of another format.
    """
    shards = open_shards(folder)
    check_shards(folder, shards)
    targets = targets_of(folder)
    read = [read_shard(folder, shard, ()) for shard in shards]
    index = torch.cat([part[0] for part in read])
    position = index.argsort()
    if not torch.equal(index[position], torch.arange(len(index))):
        raise _damaged(folder, "its shards do not hold every example once")
    layers: dict[str, Rows] = {}
    for target in targets:  # one at a time: what is read is held twice while it is put in order
        parts = [Jacobian(read_shard(folder, shard, (target,))[2]) for shard in shards]
        layers[target.name] = unfolded(concatenate(parts).select(position).layers[target.name])
    f0 = torch.cat([part[1] for part in read])[position]
    identity = read_manifest(folder)["identity"]
    return Tangent(f0, of_outputs(Jacobian(layers), identity), targets, identity, folder)


def of_outputs(stored: Operator, identity: Mapping[str, Any]) -> Operator:
    """Return the Jacobian of a tangent's outputs from that of its stored rows."""
    return CentredJacobian(stored) if is_centred(identity) else stored


def read_shard(
    folder: Path, shard: ShardEntry, targets: Sequence[Target]
) -> tuple[Int[Tensor, " E"], Float[Tensor, "E K"], dict[str, Rows]]:
    """Return the numbers of a shard's examples, their f0 (E,K) and the rows of the targets asked for.

    The rows of a centred tangent are those of its K−1 contrasts.
    The file is mapped into memory: its numbers are read when they are first used, and where the rows lie in
    bands only these are. Raises InputError where it cannot be read or lacks a target.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / shard.file, framework="pt") as file:
            names = set(file.keys())
            layers: dict[str, Rows] = {}
            for target in targets:
                g, counts = (file.get_tensor(f"{target.name}/{part}") for part in ("g", "counts"))
                x = file.get_tensor(f"{shard.shared.get(target.name, target.name)}/x")
                if f"{target.name}/start" in names:
                    start = file.get_tensor(f"{target.name}/start")
                    layers[target.name] = rows_from_bands(x, g, start, counts, target.shape[0])
                else:
                    layers[target.name] = LayerRows(x, g, counts)
            return file.get_tensor("index"), file.get_tensor("f0"), layers
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"{shard.file} cannot be read ({error})") from error


def open_shards(folder: Path) -> list[ShardEntry]:
    """Return the shards that the manifest lists, whose contents `check_shards` looks at, once.

    Raises InputError as `read_manifest` does and where a file is missing or has another size.
    """
    shards = [ShardEntry(**shard) for shard in read_manifest(folder)["shards"]]
    for shard in shards:
        path = folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise _damaged(folder, f"{shard.file} is missing or does not match its size")
    return shards


def check_shards(folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Raise InputError where the bytes of a shard are not those whose SHA-256 the manifest has."""
    for shard in shards:
        if file_sha256(folder / shard.file) != shard.sha256:
            raise _damaged(folder, f"{shard.file} does not match its checksum")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest; raise InputError where it is missing, unreadable, altered or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        identity = manifest["identity"]
        sound = (
            manifest["key"] == key_of(identity)
            and identity["format"] == FORMAT
            and sum(shard["examples"] for shard in manifest["shards"]) == identity["n_examples"]
            and all(shard.keys() == _ENTRY for shard in manifest["shards"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise InputError(
            f"got {folder}, whose {MANIFEST} is missing, unreadable, altered or of another version, expected "
            f"a store of tangents in format {FORMAT}: delete that folder and run again to make it anew"
        )
    return manifest


def targets_of(folder: Path) -> tuple[Target, ...]:
    """Return the targets of the tangent in a folder; raises InputError as `read_manifest` does."""
    return tuple(
        Target(**{**t, "shape": tuple(t["shape"]), "rows": t["rows"] and tuple(t["rows"])})
        for t in read_manifest(folder)["identity"]["targets"]
    )


def _damaged(folder: Path, reason: str) -> InputError:
    return InputError(
        f"got a damaged store {folder}: {reason}, expected the file as it was written: delete that folder "
        "and run again to make it anew"
    )
