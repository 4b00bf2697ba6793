"""A tangent in a store, read with numpy alone and one shard at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError
from tangentlora.theory.evidence import Array, read_json

_FORMAT = 3
_REMEDY = "name the folder of the run's tangent with --store, or run fit again to linearise anew"


@dataclass(frozen=True)
class Layer:
    """Rows x (R,n) and g (R,K,m) of one layer, `counts[i]` of them for example i: J_ik = Σ g_k xᵀ.

    `sizes` (R,K) are the norms ‖g_ρk‖‖x_ρ‖, or what those of the stored rows add up to where g combines them.
    """

    x: Array
    g: Array
    counts: NDArray[np.int64]
    sizes: Array

    def sums(self, rows: Array) -> Array:
        """Return the sums of rows over each example along the first axis."""
        totals = np.zeros((len(self.counts), *rows.shape[1:]))
        np.add.at(totals, self.example, rows)
        return totals

    @property
    def example(self) -> NDArray[np.int64]:
        """The example, as counted in this shard, that each row belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


@dataclass(frozen=True)
class Shard:
    """Some examples, numbered as in the whole set, and their rows in every layer."""

    index: NDArray[np.int64]
    layers: dict[str, Layer]


@dataclass(frozen=True)
class Place:
    """Where a layer's update (m,n) is added: a module's weight or rows of it, stored (n,m) if transposed."""

    module: str
    rows: tuple[int, int] | None
    transposed: bool


@dataclass(frozen=True)
class Store:
    """A tangent on disk: f0 (N,K), each layer's shape (m,n), and one function per shard that reads it.

    `key` is the hash of what the tangent was made from, `places` says where the layers' updates go.
    """

    f0: Array
    shapes: dict[str, tuple[int, int]]
    shards: Sequence[Callable[[], Shard]]
    key: str
    places: Mapping[str, Place] = field(default_factory=dict)


def read_store(folder: Path) -> Store:
    """Return the tangent in a folder; raises InputError where a file is missing, damaged or altered."""
    from safetensors import safe_open

    manifest = read_json(folder / "manifest.json", _REMEDY)
    try:
        identity = manifest["identity"]
        text = json.dumps(identity, sort_keys=True)
        if manifest["key"] != hashlib.sha256(text.encode()).hexdigest()[:32]:
            raise ValueError("its key is not that of its identity")
        if identity["format"] != _FORMAT:
            raise ValueError(f"its format is {identity['format']!r} and not {_FORMAT}")
        shapes = {str(t["name"]): (_count(t["shape"][0]), _count(t["shape"][1])) for t in identity["targets"]}
        if not shapes or len(shapes) != len(identity["targets"]):
            raise ValueError("its layers have no names of their own")
        outputs, index = [], []
        for entry in manifest["shards"]:
            if not (folder / entry["file"]).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{entry['file']} lies elsewhere")
            if sha256_of(folder / entry["file"]) != entry["sha256"]:
                raise ValueError(f"{entry['file']} is missing or does not match its checksum")
            with safe_open(folder / entry["file"], framework="numpy") as file:
                outputs.append(_floats(file.get_tensor("f0"), "f0", 2))
                index.append(_whole(file.get_tensor("index"), "index"))
                if len(outputs[-1]) != len(index[-1]):
                    raise ValueError(f"{entry['file']} has other examples in f0 than in index")
        order = np.concatenate(index)
        if sorted(order.tolist()) != list(range(len(order))):
            raise ValueError("its shards do not hold every example once")
        f0 = np.concatenate(outputs)[np.argsort(order)]
        if not f0.size or manifest.get("n_outputs", f0.shape[1]) != f0.shape[1]:
            raise ValueError(f"its outputs are of shape {f0.shape}")
        C = contrasts(f0.shape[1]) if identity.get("centred", False) else np.eye(f0.shape[1])
        readers = [partial(_read, folder, entry, shapes, C) for entry in manifest["shards"]]
        return Store(f0, shapes, readers, str(manifest["key"]), _places(identity["targets"]))
    except Exception as error:  # safetensors raises a type of its own for each kind of damage
        raise _damaged(folder, error) from error


def _read(folder: Path, entry: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]], C: Array) -> Shard:
    """Read one shard, whose rows are of the outputs z ↦ C z; raises InputError where it is not so."""
    from safetensors import safe_open

    try:
        layers = {}
        with safe_open(folder / entry["file"], framework="numpy") as file:
            names = set(file.keys())
            index = _whole(file.get_tensor("index"), "index")
            for name, (m, n) in shapes.items():
                g = _floats(file.get_tensor(f"{name}/g"), f"{name}/g", 3)
                x = _floats(file.get_tensor(f"{entry['shared'].get(name, name)}/x"), f"{name}/x", 2)
                if f"{name}/start" in names:
                    g = _unbanded(g, _whole(file.get_tensor(f"{name}/start"), f"{name}/start"), m)
                counts = _whole(file.get_tensor(f"{name}/counts"), f"{name}/counts")
                if (len(counts), counts.sum(), len(x)) != (len(index), len(g), len(g)):
                    raise ValueError(f"the rows of {name} are not those of its examples")
                if (g.shape[2], x.shape[1]) != (m, n):
                    raise ValueError(f"the rows of {name} are not those of a matrix {m} x {n}")
                if g.shape[1] != len(C):
                    raise ValueError(f"the rows of {name} are of {g.shape[1]} outputs and not of {len(C)}")
                norms = np.linalg.norm(g, axis=2) * np.linalg.norm(x, axis=1)[:, None]
                layers[name] = Layer(x, C.T @ g, counts, norms @ np.abs(C))
        return Shard(index, layers)
    except Exception as error:  # as above
        raise _damaged(folder, error) from error


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no number of rows or columns")
    return value


def _floats(tensor: NDArray[Any], name: str, dimensions: int) -> Array:
    """Return a tensor in float64; raises ValueError unless it holds finite real numbers."""
    if tensor.dtype.kind != "f" or tensor.ndim != dimensions:
        raise ValueError(
            f"{name} is of {tensor.dtype} in {tensor.ndim} dimensions and not real in {dimensions}"
        )
    if not np.isfinite(tensor).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return tensor.astype(np.float64)


def _whole(tensor: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Return a vector of whole numbers of at least 0; raises ValueError for anything else."""
    if tensor.dtype.kind not in "iu" or tensor.ndim != 1 or (len(tensor) and tensor.min() < 0):
        raise ValueError(f"{name} is no list of whole numbers of at least 0")
    return tensor.astype(np.int64)


def _places(targets: Sequence[Mapping[str, Any]]) -> dict[str, Place]:
    places = {}
    for target in targets:
        rows = target.get("rows")
        whole = None if rows is None else (int(rows[0]), int(rows[1]))
        place = Place(str(target.get("module", target["name"])), whole, bool(target.get("transposed", False)))
        places[str(target["name"])] = place
    return places


def contrasts(k: int) -> Array:
    """Return k − 1 orthonormal combinations of k outputs: their mean of the first j less the next one."""
    C = np.tril(np.ones((k - 1, k)))
    C[np.arange(k - 1), np.arange(1, k)] = -np.arange(1, k)
    found: Array = C / np.linalg.norm(C, axis=1, keepdims=True)
    return found


def _unbanded(band: Array, start: NDArray[np.int64], m: int) -> Array:
    """Return g (R,K,m) from its bands: row ρ is zero but for the columns start_ρ, start_ρ + 1, …."""
    if len(start) != len(band) or (len(start) and start.max() + band.shape[2] > m):
        raise ValueError("its bands do not lie within the columns of a layer")
    g = np.zeros((*band.shape[:2], m))
    columns = start[:, None, None] + np.arange(band.shape[2])
    np.put_along_axis(g, columns, band, axis=2)
    return g


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, nothing for a file that is not there."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return InputError(
        f"got a damaged store at {folder} ({reason}), expected the files as they were written: {_REMEDY}"
    )
