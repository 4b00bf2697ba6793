"""The one door to examples: a name, a file, a folder or a hub id becomes train, dev and test sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tangentlora.data import folders, hub, kshot
from tangentlora.data.classification import Task
from tangentlora.data.collection import Collection, collect_tables
from tangentlora.data.examples import Splits
from tangentlora.data.labelling import Wanted
from tangentlora.data.sampling import cap, draw_dev, hold_out, sample_shots
from tangentlora.data.tables import TABLE_SUFFIXES, read_table
from tangentlora.data.tasks import TASKS, task as known_task
from tangentlora.errors import InputError

SUPPORT_SHOTS = 16


def load_splits(
    source: str,
    task: str | Task | None = None,
    *,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    label_pattern: str | None = None,
    seed: int = 13,
    shots: int | None = None,
    test_limit: int | None = 1000,
    test_fraction: float = 0.25,
    sampling_rate: int | None = None,
    revision: str | None = None,
) -> Splits:
    """Return the training, dev and test examples of a source, the same for the same arguments.

    `source` is tried in this order:

    - `support`: the bundled messages to a help desk, 16 per label to train on and no dev set unless `shots`
      is given (`./support` names a folder);
    - a file that ends in csv, tsv, json, jsonl or parquet;
    - a folder of the published k-shot layout: `TASK/16-13` itself, `TASK`, or what holds the tasks, where
      `task`, `shots` and `seed` choose; the folder's name tells the task;
    - a folder with a train file and perhaps dev (or validation) and test files;
    - a folder of class folders with images or recordings, or of train, validation and test folders of these;
    - a hub id `owner/name` or `owner/name:subset`, at `revision`.

    Without `task`, one is made from the labels found (:func:`tangentlora.data.infer_task`); columns called
    `prompt` and `completion`, or others with the task `completion`, give pairs without classes. Columns are
    those named here (two text columns for a pair), else the task's, else ones of usual names. For images and
    recordings in a folder, `label_pattern` reads the label from the file's name instead of its class folder.

    A dev set without a test set becomes the test set. With `shots`, that many training examples per label
    are drawn by `seed`, and as many for the dev set: from the one that is there, at most, else from the
    remaining training examples. Where there is no test set, all that then remains is it. A label with too
    few examples for a dev set, and one for testing where that is drawn too, means that there is no dev set.
    Without `shots`, parts are taken whole, and a source of one part gives `test_fraction` of every label to
    the test set. The test set is cut to `test_limit` (None: never) by a seed of its own, 42. Recordings are
    resampled to `sampling_rate` hertz.

    Raises InputError, in one sentence with the remedy, for all that cannot be used: what is missing, empty or
    undecodable, ragged rows, labels that are not the task's, fewer examples than shots, one class only.
    """
    chosen = known_task(task) if isinstance(task, str) else task
    texts = (text_column,) if isinstance(text_column, str) else tuple(text_column or ())
    if chosen is not None and texts and len(texts) != len(chosen.text_columns):
        raise InputError(
            f"got {len(texts)} text column(s) for task {chosen.name}; expected {len(chosen.text_columns)}, "
            f"such as {' and '.join(chosen.text_columns)}"
        )
    wanted = Wanted(chosen, texts or None, label_column)
    train_shots = shots
    path = Path(os.path.expanduser(source))
    name = source
    if source == "support":
        wanted = replace(wanted, task=chosen or TASKS["support"])
        collection = collect_tables({"train": read_table(Path(__file__).with_name("support.csv"))}, wanted)
        train_shots = SUPPORT_SHOTS if shots is None else shots
    elif path.is_file():
        headerless = () if chosen is None else chosen.columns
        collection = collect_tables({"train": read_table(path)}, wanted, headerless)
    elif source and path.is_dir():
        name, collection = _open_folder(path, wanted, shots, seed, sampling_rate, label_pattern)
    elif hub.is_hub_id(source) and path.suffix.lower() not in TABLE_SUFFIXES:
        collection = hub.open_hub(source, wanted, revision, sampling_rate)
    else:
        raise InputError(
            f"there is no file or folder {source!r}; expected one, `support`, or a hub id owner/name: "
            f"correct the path"
        )
    return _draw(name, collection, seed, train_shots, shots, test_limit, test_fraction)


def _open_folder(
    path: Path,
    wanted: Wanted,
    shots: int | None,
    seed: int,
    sampling_rate: int | None,
    label_pattern: str | None,
) -> tuple[str, Collection]:
    setting = kshot.find_setting(path, wanted.task, shots, seed)
    if setting is not None:
        return str(setting), kshot.open_setting(setting, wanted)
    if folders.part_files(path):
        return str(path), folders.open_tables(path, wanted)
    return str(path), folders.open_media(path, wanted.task, sampling_rate, label_pattern)


def _draw(
    source: str,
    collection: Collection,
    seed: int,
    train_shots: int | None,
    dev_shots: int | None,
    test_limit: int | None,
    test_fraction: float,
) -> Splits:
    train, dev, test = collection.parts["train"], collection.parts.get("dev"), collection.parts.get("test")
    if test is None:
        dev, test = None, dev
    if train_shots is not None:
        train, rest = sample_shots(train, train_shots, seed)
        if dev_shots is not None:
            dev, rest = draw_dev(dev, rest, dev_shots, seed, spare=1 if test is None else 0)
    elif test is None:
        train, rest = hold_out(train, test_fraction, seed)
    if test is None and len(rest):
        test = rest
    test = None if test is None else cap(test, test_limit)
    return Splits(
        train=collection.decode(train),
        dev=None if dev is None else collection.decode(dev),
        test=None if test is None else collection.decode(test),
        task=collection.task,
        source=source,
    )
