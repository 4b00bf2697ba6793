"""A study of two tasks that runs in seconds: tiny networks, written sentences, real code."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

from small_runs import checkpoint
from tangentlora.studies.study import Plan, load_study, plan

WORDS = (("dull", "slow", "bad"), ("great", "funny", "bright"))


def write_kshot(root: Path, seeds: tuple[int, ...] = (13, 21), shots: int = 4) -> Path:
    """Write the published layout for mr (csv without a header) and SST-2 (tsv with one): train, dev, test."""
    for seed in seeds:
        for part, each in (("train", shots), ("dev", shots), ("test", 3 * shots)):
            draw = random.Random(f"{seed} {part}")
            rows = [
                (f"the {draw.choice(('film', 'plot'))} is {draw.choice(WORDS[i % 2])} and odd {i}", i % 2)
                for i in range(2 * each)
            ]
            for task, suffix in (("mr", "csv"), ("SST-2", "tsv")):
                path = root / task / f"{shots}-{seed}" / f"{part}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("w", newline="") as file:
                    writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
                    if suffix == "tsv":
                        writer.writerow(["sentence", "label"])
                    writer.writerows([(y, text) if suffix == "csv" else (text, y) for text, y in rows])
    return root


def small_plan(
    folder: Path, settings: dict[str, Any] | None = None, grid: dict[str, Any] | None = None
) -> Plan:
    """Return the plan of sst2 and mr with two seeds on the tiny BERT, everything kept in `folder`."""
    data = folder / "k-shot"
    if not data.exists():
        write_kshot(data)
    yaml = folder / "small.yaml"
    yaml.write_text("title: Small\nabout: Two tasks, tiny.\nmembers: [sst2, mr]\n")
    given: dict[str, Any] = {
        "model": str(checkpoint(folder, "bert")),
        "data": str(data),
        "readout": "prototypes",
        "tangent_dir": folder / "tangents",
        "max_length": 64,
        "shots": 4,
        "epochs": 40,
        "learning_rate": "auto",
        "momentum": 0.9,
    }
    chosen: dict[str, Any] = {
        "seeds": (13, 21),
        "ranks": (1, 2),
        "side_ranks": (2,),
        "lams": (0.05,),
        "dev_lams": (0.2,),
        "variants": ("certified", "lora", "full", "published", "zero-shot"),
    }
    chosen |= grid or {}
    if not {"published", "frozen-a", "perturbed"} & set(chosen["variants"]):
        chosen.pop("side_ranks")  # which are those of these variants
    if "certified" not in chosen["variants"]:
        chosen.pop("dev_lams")
    return plan(load_study(str(yaml)), "full", given | (settings or {}), chosen)
