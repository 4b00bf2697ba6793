"""Made-up but consistent run folders: no number in them was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tangentlora.report.folder import RunFolder

QUERY = "encoder.layer.5.attention.self.query"
VALUE = "encoder.layer.5.attention.self.value"
OPTIMUM = 0.7312465
BOUND = OPTIMUM - 3.1e-10
LIMITS = {1: 0.94, 2: 0.80, 4: 0.7325, 8: 0.7312893, 16: 0.7312715}
"""Where the LoRA run of each rank ends, above the optimum."""

EPOCHS = [0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 57, 80, 113, 160, 226, 320, 400, 500]


def scores(test: float | None, train: float = 0.9, n: int = 336) -> dict[str, float | None]:
    return {
        "train_accuracy": train,
        "test_accuracy": None if test is None else round(test * n) / n,
        "train_loss": 0.41,
        "test_loss": None if test is None else 0.95,
    }


def answer(name: str, objective: float | None, **more: Any) -> dict[str, Any]:
    gap = None if objective is None else 1.2 * (objective - BOUND)
    ranks = more.pop("ranks", {QUERY: 0, VALUE: 3})
    spectrum = [2.1, 1.3, 0.41, 0.2, 0.09]
    values = {
        "name": name,
        "folder": name.replace(" ", "-").replace("=", ""),
        "solver": "sgd",
        "rank": None,
        "status": "EPOCHS_SPENT",
        "message": "The epochs ended before the gap reached the tolerance: train for more epochs.",
        "epochs": 500,
        "objective": objective,
        "factored_objective": objective,
        "lower_bound": None if objective is None else objective - gap,
        "gap": gap,
        "relative_gap": gap,
        "certified": False,
        "rank_reached": max(ranks.values(), default=0),
        "ranks": ranks,
        "singular_values": {layer: spectrum[:r] for layer, r in ranks.items()},
        "linearised": scores(0.712),
        "real": scores(0.698),
        "seconds": 3.4,
    }
    return values | more


def certified(**more: Any) -> dict[str, Any]:
    facts = {
        "solver": "certified",
        "folder": ".",
        "status": "GLOBAL_OPTIMUM",
        "message": "The duality gap is within the tolerance: this is the global optimum.",
        "epochs": 214,
        "lower_bound": BOUND,
        "gap": 3.1e-10,
        "relative_gap": 3.1e-10,
        "certified": True,
    }
    return answer("certified", **({"objective": OPTIMUM} | facts | more))


def run(answers: list[dict[str, Any]], *, test_set: bool = True, **more: Any) -> dict[str, Any]:
    values = {
        "format": 1,
        "tangentlora": "0.1.0",
        "command": "demo" if len(answers) > 1 else "fit",
        "configuration": {
            "model": "minilm",
            "data": "bundled",
            "task": "questions",
            "readout": {"kind": "prototypes", "scale": 20.0},
            "target_modules": ["query", "value"],
            "layers": "last",
            "loss": "cross_entropy",
            "lam": 0.1,
            "seed": 0,
            "tolerance": 1e-6,
            "batch_size": 32,
            "dtype": "float32",
            "device": "cpu",
        },
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        "data": {
            "source": "bundled",
            "task": "questions",
            "label_names": ["number", "place", "person", "thing"],
            "n_train": 64,
            "n_test": 336 if test_set else 0,
        },
        "tangent": {
            "key": "5b0c",
            "store": "tangents/5b0c",
            "n_examples": 64,
            "n_outputs": 4,
            "shapes": {QUERY: [384, 384], VALUE: [384, 384]},
            "bytes": 7_340_032,
            "dense_bytes": 301_989_888,
            "constraints": 192,
        },
        "before": scores(0.56, train=0.58) | {"train_loss": 1.18, "test_loss": 1.2},
        "runs": answers,
    }
    if not test_set:
        for row in [values["before"], *(r[k] for r in answers for k in ("linearised", "real"))]:
            row["test_accuracy"] = row["test_loss"] = None
    return values | more


def demo() -> dict[str, Any]:
    lora = [
        answer(
            f"LoRA r={rank}",
            limit,
            rank=rank,
            ranks={QUERY: 0, VALUE: min(rank, 3)},
            linearised=scores(0.61 + 0.022 * min(rank, 5)),
            real=scores(0.60 + 0.021 * min(rank, 5)),
        )
        for rank, limit in LIMITS.items()
    ]
    full = answer("full fine-tuning", OPTIMUM + 4e-8, solver="proximal", ranks={QUERY: 0, VALUE: 4},
                  singular_values={QUERY: [], VALUE: [2.1, 1.3, 0.41, 6e-5]}, status="GLOBAL_OPTIMUM",
                  certified=True, gap=9e-7, relative_gap=9e-7, lower_bound=OPTIMUM + 4e-8 - 9e-7)  # fmt: skip
    return run([*lora, full, certified()])


def metrics(values: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in values["runs"]:
        end = entry["objective"]
        for epoch in EPOCHS if entry["solver"] != "certified" else [0, 214]:
            speed = 0.022 * (entry["rank"] or 20) ** 0.5
            fraction = math.exp(-speed * epoch) if entry["solver"] != "certified" else float(epoch == 0)
            objective = 1.18 + 1e9 * epoch if end is None else end + (1.18 - end) * fraction
            test = entry["linearised"]["test_accuracy"]
            noise = 0.012 * math.sin(epoch * 0.7 + (entry["rank"] or 3)) * min(1, epoch / 5) * (epoch < 300)
            rows.append(
                {
                    "run": entry["name"],
                    "epoch": epoch,
                    "objective": None if end is None and epoch > 20 else objective,
                    "gap": 3 * (objective - BOUND) + 1e-9,
                    "measures": {}
                    if test is None
                    else {"test_accuracy": test + (0.56 - test) * fraction + noise},
                }
            )
    return rows


def certificate(**more: Any) -> dict[str, Any]:
    values = {
        "objective": OPTIMUM,
        "lower_bound": BOUND,
        "gap": 3.1e-10,
        "relative_gap": 3.1e-10,
        "rounding": 4.2e-13,
        "tolerance": 1e-6,
        "certified": True,
        "factored_objective": OPTIMUM,
        "factored_gap": 3.1e-10,
        "loss": "cross_entropy",
        "lam": 0.1,
        "dual_scale": 0.9999999,
        "spectral_norms": {QUERY: 0.0712345, VALUE: 0.10000001},
        "ranks": {QUERY: 0, VALUE: 3},
        "constraints": 192,
        "n_examples": 64,
        "n_outputs": 4,
        "dtype": "float64",
    }
    return values | more


def write(path: Path, values: dict[str, Any], proof: dict[str, Any] | None = None) -> RunFolder:
    """Write the folder with the plain standard library, as another program would."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps(values))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(values)))
    if proof is not None:
        (path / "certificate.json").write_text(json.dumps(proof))
    return RunFolder(path)
