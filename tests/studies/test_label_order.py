"""Labels are numbered as a head's own names number its outputs, whatever order and number the data have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification

from small_runs import small_settings
from tangentlora.data import Examples, Splits
from tangentlora.data.classification import infer_task
from tangentlora.data.tasks import TASKS
from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.load import network_from_module
from tangentlora.models.network import Network
from tangentlora.studies.label_order import count_outputs, in_head_order
from tangentlora.studies.notes import order_note
from tangentlora.studies.prepare import load_with_head
from tangentlora.studies.task_data import load_task
from tiny_networks import tiny_module, tiny_processor


def named(*names: str) -> Network:
    """A network whose head has outputs of these names."""
    tokenizer = tiny_processor("bert")
    config: Any = tiny_module("bert", len(tokenizer)).config
    config.id2label = dict(enumerate(names))
    module = BertForSequenceClassification(config)
    return network_from_module(module, tokenizer, ClassificationHead(len(names)), name="net")


def splits_of(labels: Sequence[str]) -> Splits:
    """One example of each label, with the classes sorted as the data sort them."""
    task = infer_task(labels)
    numbers = tuple(task.labels.index(label) for label in labels)
    examples = Examples(tuple(f"a text on {label}" for label in labels), numbers, task.labels)
    return Splits(examples, None, None, task, "made")


def outputs_of(splits: Splits) -> dict[Any, int]:
    return dict(zip(splits.train.inputs, splits.train.labels, strict=True))


def test_another_order_is_followed() -> None:
    found = in_head_order(named("World", "Sports", "sci-fi"), splits_of(["sports", "world", "sci_fi"]))
    assert outputs_of(found) == {"a text on world": 0, "a text on sports": 1, "a text on sci_fi": 2}
    assert found.task.labels == found.train.label_names == ("world", "sports", "sci_fi")
    assert found.task.prototypes == ("It was world.", "It was sports.", "It was sci fi.")


def test_a_class_without_examples_is_an_output_all_the_same() -> None:
    found = in_head_order(named("anger", "joy", "fear"), splits_of(["fear", "anger", "fear"]))
    assert outputs_of(found) == {"a text on fear": 2, "a text on anger": 0}
    assert found.task.labels == ("anger", "joy", "fear")
    assert found.train.counts() == {"anger": 1, "joy": 0, "fear": 2}


def test_numbers_name_outputs_that_have_no_names() -> None:
    found = in_head_order(named("LABEL_0", "LABEL_1", "LABEL_2"), splits_of(["2", "1", "2"]))
    assert outputs_of(found) == {"a text on 2": 2, "a text on 1": 1}


def test_synonyms_count() -> None:
    network = named("POSITIVE", "NEGATIVE")
    examples = Examples(("bad", "good"), (0, 1), ("0", "1"))
    splits = Splits(examples, examples, None, TASKS["sst2"], "made")
    found = in_head_order(network, splits)
    assert outputs_of(found) == {"bad": 1, "good": 0}
    assert found.dev is not None
    assert found.dev.labels == found.train.labels
    assert found.task.outputs["negative"] == 1
    assert in_head_order(named("NEGATIVE", "POSITIVE"), splits) is splits


@pytest.mark.parametrize("names", [("SCI FI", "Sports", "World"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_the_same_order_and_names_that_tell_nothing_leave_the_data(names: tuple[str, ...]) -> None:
    splits = splits_of(["world", "sports", "sci_fi"])
    assert in_head_order(named(*names), splits) is splits


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("world", "sports", "science"), ["world", "sports", "sci_fi"]),  # world is 0 here, and 2 there
        (("LABEL_0", "LABEL_1", "LABEL_2"), ["no", "yes"]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ["1", "3"]),
        (("anger", "joy", "fear"), ["anger", "grief"]),
    ],
)
def test_what_names_do_not_tell_is_refused(names: tuple[str, ...], labels: list[str]) -> None:
    with pytest.raises(InputError, match=rf"outputs are {', '.join(names)} in this order, and data whose"):
        in_head_order(named(*names), splits_of(labels))


def test_outputs_are_counted_by_what_an_adapter_saved() -> None:
    from transformers import BertConfig

    task = infer_task(["a", "b"])
    config = BertConfig(num_labels=5, architectures=["BertForSequenceClassification"])
    assert count_outputs(task, config, {}) == 5
    assert count_outputs(task, config, {"classifier.weight": (4, 32), "classifier.bias": (4,)}) == 4
    assert count_outputs(task, config, {"classifier.dense.weight": (32, 32)}) == 5
    assert count_outputs(task, BertConfig(architectures=["BertForMaskedLM"]), {}) == 2


@pytest.mark.parametrize("turned", [False, True])
def test_a_checkpoint_is_asked_when_it_is_loaded(tmp_path: Path, turned: bool) -> None:
    rows = [f"a text of kind {'abc'[k]},{'abc'[k]}" for k in (0, 1, 2) * 4]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    settings = small_settings(tmp_path, readout="head", head_init="checkpoint")
    splits = load_task(settings)
    labels = splits.task.labels[::-1] if turned else splits.task.labels
    module: Any = tiny_module("bert", len(tiny_processor("bert")))
    module.config.id2label, module.config.label2id = dict(enumerate(labels)), {}
    module.save_pretrained(settings.model)
    _, found = load_with_head(settings, splits)
    assert found.task.labels == labels
    assert all(labels[y] == str(x)[-1] for x, y in outputs_of(found).items())


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (("Sad", "very-happy"), ("sad", "very_happy"), None),
        (("LABEL_0", "LABEL_1"), ("0", "1"), None),  # numbers that count the outputs
        (("LABEL_0", "LABEL_1"), ("happy", "sad"), "they are taken to be 0 happy, 1 sad"),
        (("sad", "happy"), ("happy", "sad"), "they are taken to be 0 happy, 1 sad"),
    ],
)
def test_an_order_that_the_network_does_not_tell_is_said(
    names: tuple[str, ...], labels: tuple[str, ...], said: str | None
) -> None:
    """Of examples whose order nobody changed; a probe was fitted to it, so there is nothing to say."""
    network, splits = named(*names), splits_of(labels)
    note = order_note(network, splits.task)
    assert (note is None) if said is None else (note is not None and note.endswith(said))
    reader: Any = network.reader
    probe = replace(network, reader=replace(reader, readout=replace(reader.readout, init="probe")))
    assert order_note(probe, splits.task) is None


@pytest.mark.parametrize(
    ("names", "back", "said"),
    [
        ({0: "joy", 1: "anger", 3: "fear"}, {}, "names the outputs 0, 1, 3"),
        ({0: "joy", 1: "Joy", 2: "fear"}, {}, "gives one name to two of the outputs joy, Joy, fear"),
        ({0: "joy", 1: "anger", 2: "fear"}, {"joy": 1, "anger": 0, "fear": 2}, "which output is joy"),
    ],
)
def test_names_of_outputs_that_contradict_one_another_are_refused(
    names: dict[int, str], back: dict[str, int], said: str
) -> None:
    network = named("joy", "anger", "fear")
    config: Any = network.reader.module.config  # type: ignore[attr-defined]
    config.id2label, config.label2id = names, back
    with pytest.raises(InputError, match=said):
        in_head_order(network, splits_of(["anger", "fear", "joy"]))
