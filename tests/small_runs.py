"""Small data sets on disk and settings that fit a tiny network to them within a second or two."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from tangentlora.studies.settings import Settings
from tiny_networks import tiny_checkpoint

_ADJECTIVES = {"bad": ("terrible", "dull", "slow"), "good": ("great", "funny", "bright")}
LABELS = tuple(_ADJECTIVES)


def write_sentences(path: Path, n: int = 24, seed: int = 0) -> Path:
    """Write a csv file with the columns text and label: sentences of two kinds, in turn."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(n):
            label = LABELS[i % 2]
            noun, one, other = draw.choice(("movie", "story", "plot")), *draw.choices(_ADJECTIVES[label], k=2)
            writer.writerow([f"the {noun} is {one} and {other}", label])
    return path


def write_images(folder: Path, labels: Sequence[str] = LABELS, each: int = 6) -> Path:
    """Write one folder of 16×16 images per label, each label of a colour of its own with noise."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            pixels = draw.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., k % 3] += 100
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def write_sounds(folder: Path, labels: Sequence[str] = LABELS, each: int = 6) -> Path:
    """Write one folder of 50 ms recordings at 16 kHz per label, each label of its own pitch with noise."""
    draw = np.random.default_rng(0)
    time = np.arange(800) / 16_000
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            wave = 0.3 * np.sin(2 * np.pi * 300 * (2 * k + 1) * time) + 0.05 * draw.standard_normal(800)
            wavfile.write(folder / label / f"{i}.wav", 16_000, wave.astype(np.float32))
    return folder


def small_settings(folder: Path, kind: str = "bert", **changes: Any) -> Settings:
    """Return settings for the tiny network `kind` on sentences, a quarter held out; all is in `folder`."""
    data = folder / "data.csv"
    given: dict[str, Any] = {
        "model": str(checkpoint(folder, kind)),
        "data": str(data if data.exists() else write_sentences(data)),
        "tangent_dir": folder / "tangents",
        "test_fraction": 0.0 if "shots" in changes else 0.25,
    }
    return Settings(**(given | changes))


def checkpoint(folder: Path, kind: str = "bert") -> Path:
    """Return a folder below `folder` that holds the tiny network `kind`; made on the first call."""
    path = folder / kind
    return path if path.exists() else tiny_checkpoint(path, kind)
