"""The labels of the data, numbered as a classification head numbers its outputs (`id2label`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tangentlora.data import Examples, Splits, Task
from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationReader
from tangentlora.models.network import Network

_LAST = re.compile(r"(^|\.)(classifier|score|classification_head|head)(\.out_proj)?\.weight")


def holds_head(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Say whether the last layer of a classification head is among weights that an adapter saved."""
    return any(len(shape) == 2 and _LAST.search(name) for name, shape in shapes.items())


def count_outputs(task: Task, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many outputs a head has: by the weights that an adapter saved, else by the configuration.

    A configuration that is not a classifier's says nothing; the labels of the data are then all there are.
    """
    saved = [shape[0] for name, shape in shapes.items() if len(shape) == 2 and _LAST.search(name)]
    if saved:
        return saved[-1]
    built = str((getattr(config, "architectures", None) or [""])[0])
    return int(config.num_labels) if built.endswith("Classification") else len(task.labels)


def in_head_order(network: Network, splits: Splits) -> Splits:
    """Return the examples with their labels numbered as the outputs of a classification head are.

    Its configuration names the outputs (`id2label`): the label world is output 0 of a head of the order
    (world, sports), however the data sort them, and a class of which the data have no example is one of the
    outputs all the same. Case, `_` and `-` do not matter, and synonyms of a label count. Where the outputs
    are called LABEL_0, LABEL_1, … labels that are whole numbers name them; otherwise such names tell
    nothing, and as many labels as outputs keep the order of the data. The data of other readouts stay as they
    are.

    Raises InputError where the names of some outputs are labels of the data and others are not, in another
    order, where labels and outputs differ in number and names do not tell which is which, and where the
    configuration contradicts itself.
    """
    if not isinstance(network.reader, ClassificationReader):
        return splits
    names, task = _output_names(network.reader.module.config, network.name), splits.task
    outputs = {_plain(label): j for label, j in task.outputs.items()}
    place = {outputs[_plain(name)]: k for k, name in enumerate(names) if _plain(name) in outputs}
    if not place and all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        numbers = {j: int(label) for j, label in enumerate(task.labels) if re.fullmatch(r"\d+", label)}
        if len(numbers) == len(task.labels) and max(numbers.values()) < len(names):
            place = numbers
    if len(place) == len(task.labels):
        return splits if place == {k: k for k in range(len(names))} else _renumbered(splits, names, place)
    if len(names) == len(task.labels) and all(j == k for j, k in place.items()):
        return splits
    raise InputError(
        f"got {network.name}, whose outputs are {', '.join(names)} in this order, and data whose labels are "
        f"{', '.join(task.labels)}, expected labels that its id2label names, in any order; call the labels "
        "in the data as the network does, or number them from 0 as it does and leave LABEL_0, LABEL_1, … in "
        "its id2label."
    )


def _output_names(config: Any, network: str) -> tuple[str, ...]:
    """Return the name of each output; refuse gaps, a name that stands twice, and another `label2id`."""
    named = {int(k): str(name) for k, name in config.id2label.items()}
    names = tuple(named[k] for k in sorted(named))
    back = {str(name): int(k) for name, k in (config.label2id or {}).items()}
    wrong = [name for k, name in named.items() if back.get(name, k) != k]
    if sorted(named) != list(range(len(named))):
        what = f"names the outputs {', '.join(map(str, sorted(named)))}"
    elif len({_plain(name) for name in names}) < len(names):
        what = f"gives one name to two of the outputs {', '.join(names)}"
    elif wrong:
        what = f"says otherwise than label2id which output is {wrong[0]}"
    else:
        return names
    raise InputError(
        f"got {network}, whose id2label {what}, expected a name of its own for each output from 0 on; "
        "correct id2label and label2id in its config.json."
    )


def _renumbered(splits: Splits, names: tuple[str, ...], place: Mapping[int, int]) -> Splits:
    """Return the splits with label j as output `place[j]`; outputs without examples keep the head's names."""
    task = splits.task
    source = {k: j for j, k in place.items()}

    def spread(own: tuple[Any, ...], absent: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(own[source[k]] if k in source else absent[k] for k in range(len(names)))

    def renumbered(examples: Examples) -> Examples:
        labels = tuple(place[label] for label in examples.labels)
        return replace(examples, labels=labels, label_names=spread(examples.label_names, names))

    whole = replace(
        task,
        labels=spread(task.labels, names),
        label_words=spread(task.label_words, names),
        prototypes=spread(task.prototypes, names),
        synonyms=spread(task.synonyms, ((),) * len(names)) if task.synonyms else (),
    )
    train, dev, test = (
        None if part is None else renumbered(part) for part in (splits.train, splits.dev, splits.test)
    )
    assert train is not None
    return replace(splits, train=train, dev=dev, test=test, task=whole)


def _plain(label: str) -> str:
    return label.strip().lower().replace("_", " ").replace("-", " ")
