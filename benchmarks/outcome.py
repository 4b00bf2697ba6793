"""What every benchmark says of the machine, of repeated runs, and where its JSON goes."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def machine(threads: int) -> dict[str, Any]:
    """Return what ratios depend on; seconds depend on more, which is why they are no claims."""
    return {"processor": platform.machine(), "threads": threads, "torch": torch.__version__}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the least, the median and the largest."""
    return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print a result as JSON and write it where it is wanted."""
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")
