"""A head is refused where its own names of the outputs are the task's labels in another order."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from small_runs import small_settings
from tangentlora.data.classification import infer_task
from tangentlora.data.tasks import TASKS
from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationHead
from tangentlora.models.load import network_from_module
from tangentlora.models.network import Network
from tangentlora.studies.label_order import require_same_order
from tangentlora.studies.prepare import load_task, load_with_head
from tiny_networks import tiny_module, tiny_processor

CLASSES = infer_task(["world", "sports", "sci_fi"])  # sorted: sci_fi, sports, world


def named(*names: str) -> Network:
    tokenizer = tiny_processor("bert")
    module: Any = tiny_module("bert", len(tokenizer))
    module.config.id2label = dict(enumerate(names))
    return network_from_module(module, tokenizer, ClassificationHead(len(names)), name="net")


def test_another_order_is_refused() -> None:
    said = (
        r"got net, whose outputs are World, Sports, sci-fi in this order, and data whose labels are sci_fi, "
        r"sports, world, expected the same order: number the labels in the data from 0"
    )
    with pytest.raises(InputError, match=said):
        require_same_order(named("World", "Sports", "sci-fi"), CLASSES)


def test_synonyms_count() -> None:
    module: Any = tiny_module("bert")
    module.config.num_labels = 2
    module.config.id2label = {0: "POSITIVE", 1: "NEGATIVE"}
    network = network_from_module(module, tiny_processor("bert"), ClassificationHead(2), name="net")
    with pytest.raises(InputError, match="outputs are POSITIVE, NEGATIVE in this order"):
        require_same_order(network, TASKS["sst2"])
    module.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    require_same_order(network, TASKS["sst2"])


@pytest.mark.parametrize(
    "names",
    [("SCI FI", "Sports", "World"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("world", "sports", "science")],
)
def test_the_same_order_and_names_that_tell_nothing_pass(names: tuple[str, ...]) -> None:
    require_same_order(named(*names), CLASSES)


@pytest.mark.parametrize("turned", [False, True])
def test_a_checkpoint_is_asked_when_it_is_loaded(tmp_path: Path, turned: bool) -> None:
    rows = [f"a text of kind {k},{'abc'[k]}" for k in (0, 1, 2) * 4]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    settings = small_settings(tmp_path, readout="head", head_init="checkpoint")
    splits = load_task(settings)
    labels = splits.task.labels[::-1] if turned else splits.task.labels
    module: Any = tiny_module("bert", len(tiny_processor("bert")))
    module.config.id2label, module.config.label2id = dict(enumerate(labels)), {}
    module.save_pretrained(settings.model)
    with pytest.raises(InputError, match="expected the same order") if turned else nullcontext():
        load_with_head(settings, splits)
