"""benchmarks/results/*.json → docs/benchmarks.md: every claim, what was measured, and whether it holds.

python benchmarks/pages.py
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outcome import Claim

HERE = Path(__file__).parent
NO_BREAK = "\N{NO-BREAK SPACE}"
INTRODUCTION = """\
# Benchmarks

Every claim about speed and size, each against a peer that was measured in the same run. `make bench` measures
them all again by the scripts below, and `python benchmarks/pages.py` makes this page from their JSON in
[benchmarks/results](../benchmarks/results); no figure in it is written by hand.

Times are no claims: they depend on the machine and on what else it does. A ratio of two times depends on that
less where the two are taken in turn in one run, as here. It is the peer's time over ours unless the row says
otherwise, given as least / median / largest of the repeated runs, and its median is held against the target.
One that does not vary is given once. ≥ stands before a lower bound, as where a peer did not finish in time.
"""


@dataclass(frozen=True)
class Result:
    """One file of results, and the script that made it."""

    name: str
    content: Mapping[str, Any]
    script: str
    method: str


def verdict(claim: Claim) -> str:
    """Return whether the median meets the target, or that neither can be said; nothing without a target."""
    target, median = claim["target"], claim["ratio"]["median"]
    if target is None:
        return ""
    if claim["direction"] == "at least":
        missed = "not shown" if claim.get("bound") else "**no**"
        return "yes" if median >= target else missed
    if claim.get("bound") and median <= target:
        return "not shown"
    return "yes" if median <= target else "**no**"


def number(value: float) -> str:
    """Return three significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def row(claim: Claim) -> str:
    """Return one line of the table."""
    found = [number(claim["ratio"][key]) for key in ("min", "median", "max")]
    ratio = found[0] if len(set(claim["ratio"].values())) == 1 else " / ".join(found).replace(" ", NO_BREAK)
    bound = f"≥{NO_BREAK}" if claim.get("bound") else ""
    sign = {"at least": "≥", "at most": "≤"}[claim["direction"]]
    asked = "none" if claim["target"] is None else f"{sign}{NO_BREAK}{number(claim['target'])}"
    cells = [claim["work"], claim["peer"], bound + ratio, asked, verdict(claim)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(claims: Iterable[Claim]) -> str:
    """Return the table of all claims, those with a target first."""
    head = ["| work | against | ratio | target | reached |", "|---|---|--:|--:|---|"]
    ordered = sorted(claims, key=lambda claim: claim["target"] is None)
    return "\n".join([*head, *map(row, ordered)]) + "\n"


def script_of(name: str, folder: Path) -> Path:
    """Return the script that the result is named after: `lambda_path_sst2.json` is of `lambda_path.py`."""
    scripts = [path for path in folder.glob("*.py") if f"{name}_".startswith(f"{path.stem}_")]
    if not scripts:
        raise SystemExit(f"got {name}.json, expected a result that is named after a script in {folder}")
    return max(scripts, key=lambda path: len(path.stem))


def read(results: Path, scripts: Path) -> list[Result]:
    """Return all results that claim something, in the order of their names."""
    found = []
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text())
        if "claims" in content:
            script = script_of(path.stem, scripts)
            method = ast.get_docstring(ast.parse(script.read_text())) or ""
            found.append(Result(path.stem, content, script.name, method))
    return found


def machines(results: Sequence[Result]) -> str:
    """Return a line for each machine, or set of versions, and the results that were measured there."""
    where: dict[str, list[str]] = {}
    for result in results:
        known = {key: value for key, value in result.content["machine"].items() if key != "threads"}
        known = {"processor": known.pop("processor"), **known}
        where.setdefault(", ".join(_said(key, value) for key, value in known.items()), []).append(result.name)
    if len(where) == 1:
        return f"{next(iter(where))}.\n"
    return "".join(f"- {text}: {', '.join(f'`{name}`' for name in names)}\n" for text, names in where.items())


def _said(key: str, value: Any) -> str:
    plain = {"processor": "{}", "cores": "{} cores", "memory_gb": "{} GB of memory", "system": "{}"}
    return plain.get(key, f"{key} {{}}").format(value)


def how_often(result: Result) -> str:
    """Return a line on the threads and the runs of a result, with the way to its JSON."""
    threads, repeats = result.content["machine"]["threads"], result.content.get("repeats", 1)
    counted = f"{repeats} runs" if repeats > 1 else "one run"
    return (
        f"{'One thread' if threads == 1 else f'{threads} threads'}, {counted}; "
        f"[{result.name}.json](../benchmarks/results/{result.name}.json).\n"
    )


def page(results: Sequence[Result]) -> str:
    """Return docs/benchmarks.md."""
    claims = [claim for result in results for claim in result.content["claims"]]
    parts = [
        INTRODUCTION,
        "## What was measured\n",
        table(claims),
        "## On which machine\n",
        machines(results),
    ]
    parts.append("## How each was measured\n")
    for script, of_script in itertools.groupby(results, key=lambda result: result.script):
        same = list(of_script)
        parts.append(f"### `benchmarks/{script}`\n\n{same[0].method}\n")
        parts += [how_often(result) for result in same]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    options = parser.parse_args()
    partial = options.output.with_name(f".{options.output.name}.partial")
    partial.write_text(page(read(options.results, HERE)))
    partial.replace(options.output)


if __name__ == "__main__":
    main()
