"""Run a study: linearise every case once, run its cells, and go on after a kill where it stopped.

A cell's record is written whole when the cell is done, under a key that holds everything it depends on. A
later run of the same study finds it there; results.json is assembled from the records alone, so that a run
that was killed at any point ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tangentlora.data import Examples
from tangentlora.errors import InputError
from tangentlora.progress import bar
from tangentlora.report.folder import RunFolder
from tangentlora.studies.assemble import assemble, describe_case
from tangentlora.studies.baselines import Baseline, logistic_regression, peft_lora, zero_shot
from tangentlora.studies.cells import Scalars, chosen_by_dev, run_cell, run_real
from tangentlora.studies.made import with_made
from tangentlora.studies.measure import LinearisedSet, linearised_scores, linearised_sets
from tangentlora.studies.notes import sentences
from tangentlora.studies.prepare import Prepared, prepare
from tangentlora.studies.scalars import ScalarWriter
from tangentlora.studies.study import BASELINES, Case, Cell, Plan


def run_study(
    plan: Plan, output_dir: Path, *, progress: bool = False, tensorboard: bool = False
) -> dict[str, Any]:
    """Run all cells that are not done, write results.json and timings.json, and return the former.

    A rank above the smaller side of an adapted matrix is left out. Raises InputError for data or networks
    that cannot be used, for a record in `output_dir` that is damaged, and, with `tensorboard`, where that
    package is absent.
    """
    folder = RunFolder(output_dir)
    writer = ScalarWriter(output_dir / "tensorboard") if tensorboard else None
    done: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    timings: dict[str, Any] = {}
    results: dict[str, Any] = {}
    cells = sum(len(case.cells) for case in plan.cases)
    with bar(cells, plan.study.name, "cell", progress) as shown:
        for case in plan.cases:
            shown.set_postfix_str(f"{case.name}: linearising")
            run = _CaseRun(folder, with_made(case, plan.size, progress=progress))
            if progress:
                found = run.prepared
                said = [found.check.told(), *sentences(found.network, found.splits.task, found.cut)]
                shown.write(f"{case.name}: " + "\n".join(said), file=sys.stderr)
            records = []
            for cell in run.cells():
                shown.set_postfix_str(f"{case.name}: {cell.name}")
                records.append(run.record(cell, None if writer is None else writer.of(case, cell)))
                shown.update()
            shown.set_postfix_str(f"{case.name}: the real network")
            run.add_real(records)
            done.append((run.description, records))
            timings[case.name] = {
                "linearise": run.seconds,
                "cells": {record["slug"]: round(record["seconds"], 3) for record in records},
            }
            results = assemble(plan, done)
            folder.write_json("results.json", results)
            folder.write_json("timings.json", timings)
    return results


class _CaseRun:
    """One case in its folder: linearised at once, its cells run or read back one by one."""

    def __init__(self, folder: RunFolder, case: Case) -> None:
        self.folder, self.case = folder, case
        start = time.perf_counter()
        self.prepared: Prepared = prepare(case.settings, dev=True)
        self.sets: Sequence[LinearisedSet] = linearised_sets(self.prepared)
        self.description = describe_case(case, self.prepared, linearised_scores(self.sets, {}))
        # what it took the first time: later it comes from the store
        kept = self._read("case.json")
        self.seconds: float = round(time.perf_counter() - start, 3) if kept is None else kept["linearise"]
        if kept is None:
            data = {"data_check": self.prepared.check.describe()}
            self._write("case.json", {"linearise": self.seconds, "key": self._key(None), **data})

    def cells(self) -> tuple[Cell, ...]:
        """Return the cells that this network can run: a rank above a side of a matrix is left out."""
        most = min(min(shape) for shape in self.prepared.problem.jacobian.shapes.values())
        return tuple(cell for cell in self.case.cells if cell.rank is None or cell.rank <= most)

    def record(self, cell: Cell, scalars: Scalars | None) -> dict[str, Any]:
        """Return the cell's record: the one in the folder if it is of this very problem, else a new one."""
        if cell.variant in BASELINES:
            return self._found(f"{cell.slug}.json", cell, lambda: _baseline(self.prepared, cell))
        return self._found(
            f"{cell.slug}.json", cell, lambda: run_cell(self.prepared, self.sets, cell, scalars)
        )

    def add_real(self, records: Sequence[dict[str, Any]]) -> None:
        """Add the real network's scores, a pass over all examples each, to the records that the grid names.

        Of the certified answers these are the one at the first λ and the one that the dev set chooses.
        """
        grid = self.case.grid
        lams = {grid.lams[0], chosen_by_dev(records)}
        for record in records:
            cell = Cell(record["variant"], record["rank"], record["lam"])
            named = cell.variant in grid.real and cell.variant not in BASELINES
            if named and (cell.variant != "certified" or cell.lam in lams):
                make = partial(run_real, self.prepared, self.sets, cell)
                scored = self._found(f"real-{cell.slug}.json", cell, make)
                record |= {key: scored.get(key) for key in ("real", "real_network")}

    def _found(self, name: str, cell: Cell, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what an earlier run wrote under this name for this very problem, else what `make` makes."""
        key = self._key(cell)
        found = self._read(name)
        if found is None or found["key"] != key:
            self._write(name, {"key": key} | make())
            found = self._read(name)  # what is assembled is what was written, now and after a kill
        assert found is not None
        return found

    def _key(self, cell: Cell | None) -> str:
        settings = asdict(self.case.settings) | {"tangent_dir": None, "memory": None}
        parts = (self.prepared.train, self.prepared.dev, self.prepared.test)
        identity = {
            "settings": settings,
            "cell": None if cell is None else asdict(cell),
            "tangents": [None if part is None else part.key for part in parts],
            "labels": [None if part is None else part.labels for part in self._examples()],
            "tangentlora": version("tangentlora"),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def _examples(self) -> tuple[Examples | None, ...]:
        splits = self.prepared.splits
        return splits.train, splits.dev, splits.test

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder.path / "cells" / self.case.name / name
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(
                f"got {path}, which is not JSON ({error}), expected a record as reproduce wrote it: delete it"
            ) from error
        return value

    def _write(self, name: str, value: dict[str, Any]) -> None:
        self.folder.write_json(f"cells/{self.case.name}/{name}", value)


def _baseline(prepared: Prepared, cell: Cell) -> dict[str, Any]:
    """Return the record of a baseline: what the dev set chose, and the real network's scores."""
    network, splits, settings = prepared.network, prepared.splits, prepared.settings
    methods: dict[str, Callable[..., Baseline]] = {
        "zero-shot": zero_shot,
        "logistic-regression": logistic_regression,
        "peft-lora": partial(peft_lora, modules=settings.target_modules, seed=settings.seed),
    }
    result = methods[cell.variant](network, splits, batch_size=settings.batch_size)
    nothing = dict.fromkeys(
        ("rank", "lam", "status", "objective", "factored_objective", "lower_bound", "gap", "relative_gap")
    )
    return nothing | {
        "slug": cell.slug,
        "name": cell.name,
        "variant": cell.variant,
        "epochs": None,
        "learning_rate": None,
        "certified": False,
        "trained_parameters": result.trained_parameters,
        "state_bytes": None,
        "rank_reached": None,
        "ranks": {},
        "singular_values": {},
        "curve": [],
        "trace": [],
        "linearised": None,
        "real": result.scores,
        "real_network": None,
        "without_f0": None,
        "chosen": result.chosen,
        "seconds": result.seconds,
    }
