"""What every benchmark says of the machine, of repeated runs and of its claims, and where its JSON goes."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Claim = dict[str, Any]
LIBRARIES = (
    "torch", "transformers", "peft", "numpy", "scipy", "opacus", "curvlinops-for-pytorch", "cvxpy", "scs",
    "clarabel",
)  # fmt: skip


def machine(threads: int) -> dict[str, Any]:
    """Return what ratios depend on; seconds depend on more, which is why they are no claims."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "python": platform.python_version(),
        **{name: found for name in LIBRARIES if (found := _version(name))},
    }


def _processor() -> str:
    """Return the model name of the processor, and its numbers, as some names say little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    model, family = named.get("model name"), named.get("cpu family")
    if model is None:
        return platform.processor() or platform.machine()
    return f"{model}, family {family} model {named.get('model')}" if family else model


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the least, the median and the largest."""
    return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def claim(
    work: str, peer: str, ratio: dict[str, float], direction: str, target: float | None, bound: bool = False
) -> Claim:
    """Return one row of docs/benchmarks.md: a ratio of `work` to `peer`, and what is asked of its median.

    `direction` is "at least" or "at most"; a target of None asks nothing. `bound` says that the ratio is a
    lower bound, as where a peer did not finish.
    """
    if direction not in ("at least", "at most"):
        raise ValueError(f"got the direction {direction!r}, expected 'at least' or 'at most'")
    row = {"work": work, "peer": peer, "ratio": ratio, "target": target, "direction": direction}
    return {**row, "bound": True} if bound else row


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON and write it where it is wanted, whole or not at all."""
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(text + "\n")
        partial.replace(output)
