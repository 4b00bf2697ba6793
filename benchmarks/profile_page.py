"""benchmarks/results/profile_jobs.json → docs/profile.md: where the time of every job goes.

python benchmarks/profile_page.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timed_parts import REST

HERE = Path(__file__).parent
RESULT = HERE / "results" / "profile_jobs.json"
PAGE = HERE.parent / "docs" / "profile.md"
CLOSE = 2.0
"""Up to so many times the floor a job is said to be bound by what the floor is made of."""

INTRODUCTION = """\
# Where the time goes

Each table is one job: what its parts take, in percent of the whole and in multiples of the **floor**, the
least time in which its matrix products could be done on this machine. A floor is the largest of

- **arithmetic**: the floating-point operations of all matrix products, counted while the job runs, over the
  best rate of one large product in the same precision;
- **memory**: the bytes of their operands and results over the rate at which a buffer of the size that the job
  works on is read again;
- **hashing**, for what reads the store: its bytes over the rate of SHA-256.

Rates are measured in the same run. A part's time is its own, without what it spends in other parts; of the
repeated runs the one of median length is shown. A job at one or two times its floor can only be made faster
by fewer or smaller products; one far above it spends its time on something else, which its first part names.
`python benchmarks/profile_jobs.py --output benchmarks/results/profile_jobs.json` measures anew and writes
this page; no figure in it is written by hand.
"""


def duration(seconds: float) -> str:
    """Return seconds with three digits in the unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return "0" if seconds == 0 else f"{seconds * 1e6:.2g} µs"


def least(job: Mapping[str, Any]) -> tuple[str, float]:
    """Return which floor is the highest, and its seconds."""
    return max(job["floor"].items(), key=lambda item: item[1])


def table(job: Mapping[str, Any]) -> str:
    """Return the parts, the longest first and what no part took last."""
    _, floor = least(job)
    parts = sorted(job["parts"].items(), key=lambda item: (item[0] == REST, -item[1]))
    lines = ["| part | time | share | times the floor |", "|---|--:|--:|--:|"]
    for name, seconds in (*parts, ("**all**", job["seconds"])):
        share = 100 * seconds / job["seconds"]
        lines.append(f"| {name} | {duration(seconds)} | {share:.1f} % | {seconds / floor:.2f} |")
    return "\n".join(lines)


def floors(job: Mapping[str, Any]) -> str:
    """Return the floors in words."""
    found = [f"{name} {duration(seconds)}" for name, seconds in job["floor"].items() if seconds]
    gflops = " and ".join(
        f"{flops / 1e9:,.3g} GFLOP in {name} at {job['flops_per_second'][name] / 1e9:,.0f} GFLOP/s"
        for name, flops in sorted(job["flops"].items())
    )
    moved = f"{job['bytes'] / 1e9:,.3g} GB touched at {job['bytes_per_second'] / 1e9:,.1f} GB/s"
    return f"Floor: {', '.join(found)} ({f'{gflops}; {moved}' if gflops else 'no matrix products in torch'})."


def verdict(job: Mapping[str, Any]) -> str:
    """Return one sentence on what bounds the job."""
    kind, floor = least(job)
    ratio = job["seconds"] / floor
    name, seconds = max(
        ((name, seconds) for name, seconds in job["parts"].items() if name != REST), key=lambda item: item[1]
    )
    share = f"{100 * seconds / job['seconds']:.0f} %"
    limits = {
        "arithmetic": "the arithmetic of its matrix products",
        "memory": "the memory that its matrix products read and write",
        "hashing": "the hash of the store",
    }
    if ratio <= CLOSE:
        return f"Bound by {limits[kind]}: {ratio:.2f} times the floor, most of it in “{name}” ({share})."
    return (
        f"Bound by “{name}” ({share}): {limits[kind]} accounts for {100 / ratio:.0f} % of the time, the "
        "rest is work that is no large product, such as decompositions, and what every call costs."
    )


def page(result: Mapping[str, Any]) -> str:
    """Return docs/profile.md."""
    made = result["machine"]
    threads = "one thread" if made["threads"] == 1 else f"{made['threads']} threads"
    runs = "one run each" if result["repeats"] == 1 else f"{result['repeats']} runs each"
    where = f"Measured on {made['processor']} with {threads}, torch {made['torch']}, {runs}.\n"
    parts = [INTRODUCTION, where]
    for job in result["jobs"]:
        parts.append(f"## {job['name'][0].upper()}{job['name'][1:]}\n\n{verdict(job)}\n")
        parts.append(f"{table(job)}\n\n{floors(job)}\n")
    return "\n".join(parts)


def write_page(result: Mapping[str, Any], path: Path = PAGE) -> None:
    """Write the page, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page(result))
    partial.replace(path)


def main() -> None:
    """Write the page of a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    write_page(json.loads(options.result.read_text()), options.output)


if __name__ == "__main__":
    main()
