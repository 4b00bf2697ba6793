"""What a run folder says, read with numpy alone: the answer and what the run recorded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError

Array = NDArray[np.float64]

SEALED = ("solution.safetensors", "certificate.json")
"""The files whose SHA-256 a run records."""


@dataclass(frozen=True)
class Answer:
    """Factors u (m,r) and v (n,r) per layer, and the labels they were fitted to."""

    factors: dict[str, tuple[Array, Array]]
    labels: NDArray[Any]


@dataclass(frozen=True)
class RunRecord:
    """What run.json says of one answer: its problem, its own numbers and the SHA-256 of its files.

    `root` is the folder of run.json, `record` all that it holds, `twice` the answers listed more than once.
    """

    loss: str
    lam: float
    tolerance: float
    key: str
    store: Path
    numbers: dict[str, Any]
    root: Path
    record: dict[str, Any]
    twice: list[str]
    seals: dict[str, str]


def read_run(folder: Path) -> RunRecord:
    """Return what run.json, in the answer's folder or the one above, says of it.

    Raises InputError where it is missing, damaged or does not list the answer.
    """
    main = (folder / "run.json").exists()
    path = (folder if main else folder.resolve().parent) / "run.json"
    name = "." if main else folder.resolve().name
    run = read_json(path, "name the --output-dir of an earlier fit or demo")
    try:
        configuration, tangent = run["configuration"], run["tangent"]
        entries = [entry for entry in run["runs"] if entry["folder"] == name]
        folders = [str(entry["folder"]) for entry in run["runs"]]
        if entries:
            return RunRecord(
                loss=str(configuration["loss"]),
                lam=_positive(configuration["lam"]),
                tolerance=_positive(configuration["tolerance"]),
                key=str(tangent["key"]),
                store=Path(tangent["store"]),
                numbers=dict(entries[0]),
                root=path.parent,
                record=run,
                twice=sorted({name for name in folders if folders.count(name) > 1}),
                seals={str(file): str(digest) for file, digest in entries[0]["sha256"].items()},
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"got {path}, which lacks what a check needs ({type(error).__name__}: {error}), expected the "
            "file as fit wrote it: run fit again"
        ) from error
    raise InputError(
        f"got {folder}, which {path} does not list among its runs, expected the folder of a run: name the "
        "--output-dir of an earlier fit or demo"
    )


def read_answer(path: Path) -> Answer:
    """Return the factors and labels of an answer; raises InputError where they cannot be read."""
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        names = sorted(key[:-2] for key in tensors if key.endswith("/u"))
        factors = {
            name: (tensors[f"{name}/u"].astype(np.float64), tensors[f"{name}/v"].astype(np.float64))
            for name in names
        }
        return Answer(factors, tensors["labels"])
    except Exception as error:  # safetensors raises a type of its own for each kind of damage
        raise InputError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected the factors and labels "
            "that fit writes: run fit again"
        ) from error


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return a JSON object; raises InputError, with the remedy, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError("not an object")
        return value
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected a JSON file that fit "
            f"wrote: {remedy}"
        ) from error


def _positive(value: Any) -> float:
    """Return a finite number of at least 0; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is no number of at least 0")
    return float(value)
