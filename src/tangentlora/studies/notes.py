"""What is to be said beside the numbers: of the order of labels, and of what did not fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tangentlora.data import Task
from tangentlora.models.classification import ClassificationReader
from tangentlora.models.lengths import Cut
from tangentlora.models.network import Network


def order_note(network: Network, task: Task) -> str | None:
    """Return a sentence where a head's names of its outputs (`id2label`) are not those of the labels.

    None where they are, where labels are numbers that count the outputs from 0, for a head that was fitted
    to these labels, and for other readouts.
    """
    if not isinstance(network.reader, ClassificationReader) or network.reader.readout.init == "probe":
        return None
    config: Any = network.reader.module.config
    names = {int(k): _plain(str(name)) for k, name in config.id2label.items()}
    outputs = {_plain(label): k for label, k in task.outputs.items()}
    if all(label == str(k) or outputs.get(names.get(k, "")) == k for k, label in enumerate(task.labels)):
        return None
    listed = ", ".join(f"{k} {label}" for k, label in enumerate(task.labels))
    return f"The network does not name its outputs as the data do (id2label); they are taken to be {listed}"


def sentences(network: Network, task: Task, cut: Mapping[str, Cut]) -> list[str]:
    """Return what is to be said before the work, of what was cut and of the order of labels."""
    note = order_note(network, task)
    return [found.sentence(part) for part, found in cut.items() if found.cut] + ([note] if note else [])


def tell_cut(cut: Mapping[str, Cut]) -> None:
    """Say on stderr of each set what did not fit into the network, where anything did not."""
    for part, found in cut.items():
        if found.cut:
            print(found.sentence(part), file=sys.stderr)


def _plain(label: str) -> str:
    return label.strip().lower().replace("_", " ").replace("-", " ")
