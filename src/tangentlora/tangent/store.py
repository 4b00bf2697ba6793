"""Tangent ↔ a folder of safetensors shards with a manifest that says what they hold and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from tangentlora.errors import InputError
from tangentlora.models.targets import Target
from tangentlora.tangent.jacobian import Jacobian, LayerRows, concatenate
from tangentlora.tangent.tangent import FORMAT, Tangent, key_of

SHARD_BYTES = 2**28
MANIFEST = "manifest.json"


def save_tangent(tangent: Tangent, folder: Path) -> None:
    """Write the tangent to `folder` in float32: shards of whole examples, then the manifest, then one rename.

    A folder that exists already is left as it is: its name is the hash of what it holds. A run that is killed
    leaves at most a hidden `.partial` folder, which nothing reads and anyone may delete.
    """
    from safetensors.torch import save_file

    if folder.exists():
        return
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        n, k = tangent.jacobian.n_examples, tangent.jacobian.n_outputs
        step = max(1, n * SHARD_BYTES // max(SHARD_BYTES, tangent.jacobian.nbytes))
        shards = []
        for number, start in enumerate(range(0, n, step)):
            index = range(start, min(start + step, n))
            part = tangent.jacobian.select(index).to(torch.float32, "cpu")
            tensors = {"f0": tangent.f0[start : start + step].to("cpu", torch.float32)}
            for name, rows in part.layers.items():
                tensors |= {f"{name}/x": rows.x, f"{name}/g": rows.g, f"{name}/counts": rows.counts}
            path = partial / f"shard-{number:05d}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
            shards.append({"file": path.name, "examples": len(index), "sha256": file_sha256(path)})
        manifest = {
            "key": tangent.key,
            "identity": tangent.identity,
            "n_outputs": k,
            "dense_bytes": 4
            * n
            * k
            * sum(rows * columns for rows, columns in tangent.jacobian.shapes.values()),
            "bytes": tangent.jacobian.nbytes,
            "shards": shards,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True))
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _rename(partial: Path, folder: Path) -> None:
    try:
        os.replace(partial, folder)
    except OSError:
        if not folder.exists():  # else another process wrote the same tangent first
            raise


def load_tangent(folder: Path) -> Tangent:
    """Read a tangent back, every shard checked against its SHA-256.

    Raises InputError where the manifest or a shard is missing, truncated, altered or of another format.
    """
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    targets = tuple(
        Target(**{**t, "shape": tuple(t["shape"]), "rows": t["rows"] and tuple(t["rows"])})
        for t in manifest["identity"]["targets"]
    )
    outputs, parts = [], []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or file_sha256(path) != shard["sha256"]:
            raise InputError(
                f"got a damaged store {folder}: {shard['file']} is missing or does not match its checksum, "
                "expected the file as it was written: delete that folder and run again to make it anew"
            )
        tensors = load_file(path)
        outputs.append(tensors["f0"])
        layers = {
            t.name: LayerRows(*(tensors[f"{t.name}/{part}"] for part in ("x", "g", "counts")))
            for t in targets
        }
        parts.append(Jacobian(layers))
    return Tangent(torch.cat(outputs), concatenate(parts), targets, manifest["identity"], folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest; raise InputError where it is missing, unreadable, altered or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        identity = manifest["identity"]
        sound = (
            manifest["key"] == key_of(identity)
            and identity["format"] == FORMAT
            and sum(shard["examples"] for shard in manifest["shards"]) == identity["n_examples"]
            and all({"file", "sha256"} <= shard.keys() for shard in manifest["shards"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise InputError(
            f"got {folder}, whose {MANIFEST} is missing, unreadable, altered or of another version, expected "
            f"a store of tangents in format {FORMAT}: delete that folder and run again to make it anew"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
