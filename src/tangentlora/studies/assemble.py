"""The records of a study's cells → results.json, with every run set against the certified optimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from tangentlora.studies.prepare import Prepared
from tangentlora.studies.study import Case, Plan
from tangentlora.studies.versions import versions

FORMAT = 1
"""Version of results.json."""

_TRACE_POINTS = 120
_DIGITS = 10  # of a number in results.json; rounding keeps the file small


def describe_case(case: Case, prepared: Prepared, before: Mapping[str, float]) -> dict[str, Any]:
    """Return what results.json says of a case apart from its cells."""
    splits, jacobian = prepared.splits, prepared.train.jacobian
    dense = 4 * prepared.problem.f0.numel() * sum(math.prod(shape) for shape in jacobian.shapes.values())
    return {
        "name": case.name,
        "task": case.task,
        "seed": case.settings.data_seed,
        "model": _model_name(case),
        "readout": prepared.network.reader.describe()["readout"],
        **{f"n_{which}": len(splits.parts.get(which, ())) for which in ("train", "dev", "test")},
        "n_outputs": jacobian.n_outputs,
        "label_names": list(splits.task.labels),
        "shapes": {name: list(shape) for name, shape in jacobian.shapes.items()},
        "constraints": prepared.problem.constraints,
        "tangent_bytes": jacobian.nbytes,
        "dense_bytes": dense,
        "before": dict(before),
    }


def _model_name(case: Case) -> str:
    """Return the network's name without the place on this machine where it lies."""
    if case.made is not None:
        return f"made by the project ({case.made})"
    path = PurePath(case.settings.model)
    return path.name if path.is_absolute() else str(path)


def assemble(plan: Plan, cases: Sequence[tuple[dict[str, Any], Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """Return results.json of the cases that are done: (what `describe_case` says, records of its cells)."""
    return {
        "format": FORMAT,
        "tangentlora": version("tangentlora"),
        "versions": versions(),
        "study": {
            "name": plan.study.name,
            "title": plan.study.title,
            "about": plan.study.about,
            "size": plan.size,
            "within": plan.cases[0].grid.within,
        },
        "cases": [
            _round(case | {"cells": _compared(plan.cases[0].grid.within, records)}) for case, records in cases
        ],
    }


def _compared(within: float, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with their distance to the certified optimum of the same λ."""
    optima = {r["lam"]: r["objective"] for r in records if r["variant"] == "certified" and r["certified"]}
    result = []
    for record in records:
        optimum = optima.get(record["lam"])
        excess = arrival = None
        if optimum is not None:
            excess = record["objective"] - optimum
            near = optimum + within * max(1.0, abs(optimum))
            arrival = next((epoch for epoch, value in record["trace"] if value <= near), None)
        kept = {key: value for key, value in record.items() if key not in ("seconds", "trace", "key")}
        result.append(
            kept
            | {
                "optimum": optimum,
                "excess": excess,
                "relative_excess": None if optimum is None else excess / max(1.0, abs(optimum)),
                "epochs_to_optimum": arrival,
                "trace": _thinned(record["trace"]),
            }
        )
    return result


def _thinned(trace: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Return at most about 120 points of a trace, evenly spread in log(1 + epoch), with first and last."""
    if not trace:
        return {"epoch": [], "objective": []}
    last = len(trace) - 1
    chosen = sorted(
        {round((1 + last) ** (k / (_TRACE_POINTS - 1))) - 1 for k in range(_TRACE_POINTS)} | {last}
    )
    return {"epoch": [trace[i][0] for i in chosen], "objective": [trace[i][1] for i in chosen]}


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_round(item) for item in value]
    return value
