"""Check a certificate from the files alone, with numpy and code that shares nothing with solvers or certificates.

The Jacobian is read from the store, the answer and the labels from solution.safetensors, and every field of
certificate.json is computed anew: objective, lower bound, gap, spectral norms, ranks and constraints. A file that was
altered, a λ that is not the one solved for, or a certificate that claims too much is rejected with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError
from tangentlora.theory.recompute import Layer, recompute

Array = NDArray[np.float64]

AGREEMENT = 1e-9
"""Largest difference between a recorded and a recomputed number, relative to max(1, its size)."""


@dataclass(frozen=True)
class Verification:
    """`valid` says that every recorded number is right, `certified` that they also prove the claim at the tolerance."""

    valid: bool
    certified: bool
    reasons: tuple[str, ...]
    recomputed: dict[str, Any]

    def sentence(self) -> str:
        """Return the verdict in one sentence."""
        if not self.valid:
            return "Rejected: " + "; ".join(self.reasons) + "."
        gap, tolerance = self.recomputed["relative_gap"], self.recomputed["tolerance"]
        if self.certified:
            return f"Valid: the answer is within {gap:.1e} (tolerance {tolerance:.0e}) of the global optimum."
        return f"Valid, but not a global optimum: the gap {gap:.1e} is above the tolerance {tolerance:.0e}."


def verify(folder: Path | str, store: Path | str | None = None) -> Verification:
    """Verify the certificate in a run folder; `store` names the folder of the tangent if it has moved.

    Raises InputError where a file is missing or unreadable, so that nothing can be said.
    """
    folder = Path(folder)
    claimed = _json(folder / "certificate.json")
    run = _json((folder if (folder / "run.json").exists() else folder.resolve().parent) / "run.json")
    sealed = _seals(run, folder)
    answer = _tensors(folder / "solution.safetensors")
    where = Path(store) if store is not None else Path(run["tangent"]["store"])
    layers, f0, key = _read_store(where)
    if set(layers) != set(answer.factors):
        raise InputError(
            f"got factors for {sorted(answer.factors)} and a store for {sorted(layers)}, expected the same layers: name the "
            "store of this run with --store"
        )
    reasons = []
    if run["tangent"]["key"] != key:
        reasons.append(f"the run was made on the tangent {run['tangent']['key']}, but the store holds {key}")
    for name, digest in sealed.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            reasons.append(f"{name} is not the file that was written")
    if run["configuration"]["lam"] != claimed.get("lam"):
        reasons.append(
            f"the certificate is for λ = {claimed.get('lam')}, but the run was made with λ = {run['configuration']['lam']}"
        )
    recomputed = recompute(layers, f0, answer.factors, answer.labels, claimed)
    reasons += _differences(claimed, recomputed)
    return Verification(not reasons, not reasons and recomputed["certified"], tuple(reasons), recomputed)


def _seals(run: dict[str, Any], folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the answer in this folder, as the run recorded them."""
    for answer in run["runs"]:
        if answer["folder"] == ("." if (folder / "run.json").exists() else folder.resolve().name):
            return dict(answer["sha256"])
    raise InputError(
        f"got {folder}, which {folder / 'run.json'} does not list among its runs, expected the folder of a run: name the "
        "--output-dir of an earlier fit or demo"
    )


@dataclass(frozen=True)
class _Answer:
    factors: dict[str, tuple[Array, Array]]
    labels: NDArray[Any]


def _differences(claimed: dict[str, Any], recomputed: dict[str, Any]) -> list[str]:
    reasons = []
    for name, value in recomputed.items():
        if name not in claimed:
            reasons.append(f"the certificate lacks {name}")
            continue
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for layer, ours in pairs:
            theirs = claimed[name].get(layer) if layer and isinstance(claimed[name], dict) else claimed[name]
            if not _agree(theirs, ours):
                label = f"{name} of {layer}" if layer else name
                reasons.append(f"{label} is recorded as {theirs} and recomputed as {ours}")
    return reasons


def _agree(theirs: Any, ours: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float) and not isinstance(theirs, bool):
        return math.isfinite(theirs) and abs(theirs - ours) <= AGREEMENT * max(1.0, abs(ours))
    return type(theirs) is type(ours) and bool(theirs == ours)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return value
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected a JSON file of a run folder: name the "
            "--output-dir of an earlier fit or demo"
        ) from error


def _tensors(path: Path) -> _Answer:
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        names = sorted(key[:-2] for key in tensors if key.endswith("/u"))
        factors = {
            name: (tensors[f"{name}/u"].astype(np.float64), tensors[f"{name}/v"].astype(np.float64))
            for name in names
        }
        return _Answer(factors, tensors["labels"])
    except Exception as error:  # safetensors raises a type of its own for each kind of damage
        raise InputError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected the factors and labels that fit writes: "
            "run fit again"
        ) from error


def _read_store(folder: Path) -> tuple[dict[str, Layer], Array, str]:
    from safetensors.numpy import load

    manifest = _json(folder / "manifest.json")
    parts: dict[str, list[Layer]] = {}
    outputs = []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise InputError(
                f"got a damaged store at {folder}: {shard['file']} is missing or does not match its checksum, expected the "
                "file as it was written: run fit again to linearise anew"
            )
        tensors = load(content)
        outputs.append(tensors["f0"].astype(np.float64))
        for key in tensors:
            if key.endswith("/x"):
                name = key[:-2]
                parts.setdefault(name, []).append(
                    Layer(
                        tensors[key].astype(np.float64),
                        tensors[f"{name}/g"].astype(np.float64),
                        tensors[f"{name}/counts"],
                    )
                )
    layers = {
        name: Layer(*(np.concatenate([getattr(p, field) for p in pieces]) for field in ("x", "g", "counts")))
        for name, pieces in parts.items()
    }
    return layers, np.concatenate(outputs), str(manifest["key"])
