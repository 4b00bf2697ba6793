"""Made-up but consistent studies, drawn from a seed: no number in them was measured."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

QUERY = "encoder.layer.5.attention.self.query"
VALUE = "encoder.layer.5.attention.self.value"
TASKS = ("sst2", "qnli", "mr", "cr", "qqp", "subj")
SEEDS = (13, 21, 42)
RANKS = (1, 2, 4, 8, 16, 32, 64)
LAMS = (0.1, 0.01, 0.001)
LAM = 0.01
EPOCHS = 1000
WITHIN = 1e-3
LOGGED = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 37, 50, 68, 92, 125, 169, 229, 310, 419, 567, 767, 1000]
SIDE = 384


def study(
    tasks: tuple[str, ...] = TASKS,
    seeds: tuple[int, ...] = SEEDS,
    ranks: tuple[int, ...] = RANKS,
    lams: tuple[float, ...] = LAMS,
) -> dict[str, Any]:
    """Return results.json with every variant."""
    return {
        "format": 1,
        "tangentlora": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "study": {
            "name": "made",
            "title": "Six tasks, made up",
            "about": "Nothing here was measured.",
            "within": WITHIN,
        },
        "cases": [_case(task, seed, ranks, lams) for task in tasks for seed in seeds],
    }


def timings(values: dict[str, Any]) -> dict[str, Any]:
    """Return timings.json: 20 s to linearise, 1 s for each certified cell and 5 s for any other."""
    return {
        case["name"]: {
            "linearise": 20.0,
            "cells": {c["slug"]: 1.0 if c["variant"] == "certified" else 5.0 for c in case["cells"]},
        }
        for case in values["cases"]
    }


def write(folder: Path, values: dict[str, Any]) -> Path:
    """Write both files with the plain standard library, as another program would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(values))
    (folder / "timings.json").write_text(json.dumps(timings(values)))
    return folder


def without(values: dict[str, Any], *variants: str) -> dict[str, Any]:
    """Return the study without the cells of these variants."""
    cases = [c | {"cells": [r for r in c["cells"] if r["variant"] not in variants]} for c in values["cases"]]
    return values | {"cases": cases}


def scores(test: float, dev: float | None = None, n: int = 872) -> dict[str, float]:
    dev = test if dev is None else dev
    return {
        "train_accuracy": 1.0,
        "dev_accuracy": round(dev * 32) / 32,
        "test_accuracy": round(test * n) / n,
        "train_loss": 0.08,
        "dev_loss": 1.1 - dev,
        "test_loss": 1.1 - test,
    }


def _case(task: str, seed: int, ranks: tuple[int, ...], lams: tuple[float, ...]) -> dict[str, Any]:
    rng = random.Random(f"{task} {seed}")
    hard = 0.05 * (sum(map(ord, task)) % 7)
    optimum, start, goal = 0.22 + hard + rng.gauss(0, 0.02), 0.71 + rng.gauss(0, 0.02), 0.9 - hard
    goal += rng.gauss(0, 0.015)
    before = 0.55 + 0.2 * rng.random()
    spectrum = sorted((rng.expovariate(0.6) for _ in range(3)), reverse=True)
    free = {
        "ranks": {QUERY: 1, VALUE: 2},
        "rank_reached": 2,
        "singular_values": {QUERY: spectrum[1:2], VALUE: spectrum[::2]},
    }
    cells = []
    for lam in lams:
        gap = 10 ** rng.uniform(-8.5, -7)
        dev = goal - 0.03 * abs(math.log10(lam / LAM)) + rng.gauss(0, 0.02)
        cells.append(
            _cell(f"certified-lam{lam:g}", f"certified optimum, λ = {lam:g}", "certified", None, lam)
            | {"status": "GLOBAL_OPTIMUM", "epochs": 210, "gap": gap, "relative_gap": gap, "certified": True}
            | {"objective": optimum * (lam / LAM) ** 0.3, "optimum": optimum * (lam / LAM) ** 0.3}
            | {
                "excess": 0.0,
                "relative_excess": 0.0,
                "linearised": scores(goal, dev),
                "real": scores(goal - 0.01),
            }
            | free
        )
    for rank in ranks:
        stuck = max(0.0, 0.06 * rng.random() ** 0.5 - 0.02) if rank == 1 else 0.0
        speed = 0.012 * rank**0.45 * rng.uniform(0.85, 1.15)
        cells.append(
            _cell(f"lora-r{rank}", f"LoRA r={rank}", "lora", rank, LAM)
            | _training(rng, optimum, start, stuck, speed, before, goal - stuck)
            | {"ranks": {QUERY: 1, VALUE: min(2, rank)}, "rank_reached": min(2, rank)}
            | {"singular_values": {QUERY: spectrum[1:2], VALUE: spectrum[::2]}}
        )
    dust = [1e-4 * math.exp(-0.3 * k) * rng.uniform(0.6, 1.4) for k in range(30)]
    cells.append(
        _cell("full", "full fine-tuning", "full", None, LAM)
        | _training(rng, optimum, start, 0.0, 0.2, before, goal)
        | free
        | {"singular_values": {QUERY: spectrum[1:2] + dust[::2], VALUE: spectrum[::2] + dust[1::2]}}
    )
    rank = 8 if 8 in ranks else ranks[0]
    left_out = scores(0.5 + 0.5 * (goal - 0.55))
    cells.append(
        _cell(f"published-r{rank}", f"published code, r={rank}", "published", rank, LAM)
        | _training(rng, optimum, start, 0.05 + 0.03 * rng.random(), 0.03, before, goal - 0.01)
        | {"singular_values": {QUERY: [9.0, 3.0], VALUE: [8.0, 4.0, 1.0]}, "without_f0": left_out}
    )
    for slug, name, real in (
        ("zero-shot", "zero-shot", before),
        ("logistic-regression", "logistic regression", goal - 0.03 + rng.gauss(0, 0.02)),
        ("peft-lora", "PEFT LoRA, AdamW", goal - 0.005 + rng.gauss(0, 0.02)),
    ):
        cells.append(_cell(slug, name, slug, None, None) | {"real": scores(real), "linearised": None})
    return {
        "name": f"{task}-{seed}",
        "task": task,
        "seed": seed,
        "model": "minilm",
        "readout": "prototypes",
        "n_train": 32,
        "n_dev": 32,
        "n_test": 872,
        "n_outputs": 2,
        "label_names": ["0", "1"],
        "shapes": {QUERY: [SIDE, SIDE], VALUE: [SIDE, SIDE]},
        "constraints": 32,
        "tangent_bytes": 1_000_000,
        "dense_bytes": 9_000_000,
        "before": scores(before) | {"train_loss": max(start, 2.0)},
        "cells": cells,
    }


def _cell(slug: str, name: str, variant: str, rank: int | None, lam: float | None) -> dict[str, Any]:
    trained = 2 * SIDE * SIDE if rank is None else 4 * SIDE * rank
    return {
        "slug": slug,
        "name": name,
        "variant": variant,
        "rank": rank,
        "lam": lam,
        "status": "EPOCHS_SPENT",
        "epochs": EPOCHS,
        "objective": None,
        "factored_objective": None,
        "lower_bound": None,
        "gap": None,
        "relative_gap": None,
        "certified": False,
        "optimum": None,
        "excess": None,
        "relative_excess": None,
        "epochs_to_optimum": None,
        "trained_parameters": trained,
        "state_bytes": 8 * trained,
        "rank_reached": rank,
        "ranks": {},
        "singular_values": {},
        "curve": [],
        "trace": {"epoch": [], "objective": []},
        "linearised": None,
        "real": None,
        "without_f0": None,
        "chosen": {},
    }


def _training(
    rng: random.Random, optimum: float, start: float, stuck: float, speed: float, before: float, goal: float
) -> dict[str, Any]:
    """Return the training of one cell: F falls from start to optimum + stuck."""
    trace = sorted({round(EPOCHS ** (k / 119)) for k in range(120)} | {0})

    def objective(epoch: int) -> float:
        away = 0.8 * math.exp(-speed * epoch) + 0.2 / (1 + speed * epoch) ** 4
        return optimum + stuck + (start - optimum - stuck) * away

    values = [objective(epoch) for epoch in trace]
    reached = [e for e, f in zip(trace, values, strict=True) if f - optimum <= WITHIN * max(1, abs(optimum))]
    excess = values[-1] - optimum
    gap = 3 * excess + 10 ** rng.uniform(-8, -7)
    wobble = rng.uniform(0, 6)
    curve = [
        {
            "epoch": epoch,
            "objective": objective(epoch),
            "gap": 3 * (objective(epoch) - optimum),
            "train_accuracy": 1.0,
            "train_loss": objective(epoch),
            "test_accuracy": goal
            + (before - goal) * math.exp(-2 * speed * epoch)
            + 0.01 * math.sin(wobble + epoch**0.5) * min(1, speed * epoch),
            "test_loss": 0.4,
        }
        for epoch in LOGGED
    ]
    return {
        "objective": values[-1],
        "factored_objective": values[-1],
        "lower_bound": values[-1] - gap,
        "gap": gap,
        "relative_gap": gap / max(1, abs(values[-1])),
        "certified": gap < 1e-5,
        "optimum": optimum,
        "excess": excess,
        "relative_excess": excess / max(1, abs(optimum)),
        "epochs_to_optimum": reached[0] if reached else None,
        "curve": curve,
        "trace": {"epoch": trace, "objective": values},
        "linearised": scores(goal),
        "real": scores(goal - 0.01),
    }
