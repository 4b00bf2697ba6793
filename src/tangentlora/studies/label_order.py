"""Whether the outputs of a classification head stand for the labels of the data, where names can tell."""

from __future__ import annotations

from typing import Any

from tangentlora.data import Task
from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationReader
from tangentlora.models.network import Network


def require_same_order(network: Network, task: Task) -> None:
    """Refuse a head whose configuration names the task's labels in another order (`id2label`).

    Case, `_` and `-` do not matter, and synonyms of a label count. Names of which one is not the task's, such
    as LABEL_0, tell nothing and pass. Labels of an unknown task are sorted, so that a head of the order
    (world, sports) would be read as (sports, world). Raises InputError.
    """
    if not isinstance(network.reader, ClassificationReader):
        return
    config: Any = network.reader.module.config
    named = {int(k): str(name) for k, name in config.id2label.items()}
    outputs = {_plain(label): k for label, k in task.outputs.items()}
    order = [outputs.get(_plain(named[k])) for k in sorted(named)]
    if None in order or order == sorted(named):
        return
    raise InputError(
        f"got {network.name}, whose outputs are {', '.join(named[k] for k in sorted(named))} in this order, "
        f"and data whose labels are {', '.join(task.labels)}, expected the same order: number the labels in "
        "the data from 0 as the network does"
    )


def _plain(label: str) -> str:
    return label.strip().lower().replace("_", " ").replace("-", " ")
