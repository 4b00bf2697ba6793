"""The one door to examples: a name, a file, a folder or a hub id becomes train, dev and test sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tangentlora.belongs import refuse_unused
from tangentlora.data import folders, hub, kshot
from tangentlora.data.classification import Task
from tangentlora.data.collection import Collection, collect_tables
from tangentlora.data.columns import Wanted
from tangentlora.data.drawing import Draw, draw_splits
from tangentlora.data.examples import Examples, Splits
from tangentlora.data.kinds import kind_of
from tangentlora.data.media import Rate
from tangentlora.data.tables import read_table
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
    test_fraction: float = 0.0,
    test_data: str | None = None,
    dev_data: str | None = None,
    sampling_rate: Rate = None,
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
    those named here (two text columns for a pair), else the task's, else ones of usual names, pairs before
    single texts. For images and recordings in a folder, `label_pattern` reads the label from the file's name
    instead of its class folder. Rows whose text is blank are left out.

    Everything given is for training, unless the source has dev and test parts, or `test_data`, `dev_data` or
    `test_fraction` say otherwise: two further sources, read as the first and used whole, and the fraction of
    every label that is held out by `seed`. A dev part without a test set becomes the test set. With `shots`,
    that many training examples per label are drawn by `seed`, and as many for the dev set: from the one that
    is there, at most, else from the remaining training examples. Where there is no test set, all that then
    remains is it. A label with too few examples for a dev set, and one for testing where that is drawn too,
    means that there is no dev set. The test set is cut to `test_limit` (None: never) by a seed of its own,
    42. Recordings are resampled to `sampling_rate` hertz, or to what it returns when it is called, as it is
    for recordings alone. :func:`tangentlora.data.check_data` tells what was done.

    Raises InputError, in one sentence with the remedy, for all that cannot be used: arguments that have no
    say with such a source, what is missing, empty or undecodable, ragged rows, labels that are not the
    task's or no classes, columns of texts that would be lost, fewer examples than shots, one class only, one
    row per class, a class without a training row.
    """
    chosen = known_task(task) if isinstance(task, str) else task
    wanted = Wanted(chosen, _named_columns(text_column, chosen, label_column), label_column)
    opened = _Opened(seed, shots, sampling_rate, label_pattern, revision)
    name, collection = opened.open(source, wanted)
    rest = replace(wanted, task=collection.task)
    for part, given in (("dev", dev_data), ("test", test_data)):
        if given is not None:
            collection = collection.with_part(part, *opened.open_part(given, part, rest))
    drawn = shots
    if source == "support" and shots is None and not test_fraction:
        drawn = SUPPORT_SHOTS
    return draw_splits(name, collection, Draw(seed, drawn, shots, test_limit, test_fraction))


def _named_columns(
    given: str | Sequence[str] | None, task: Task | None, label: str | None
) -> tuple[str, ...] | None:
    """Return the text columns that the caller names, None where that is left open."""
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    if task is not None and texts and len(texts) != len(task.text_columns):
        raise InputError(
            f"got {len(texts)} text column(s) for task {task.name}; expected {len(task.text_columns)}, "
            f"such as {' and '.join(task.text_columns)}"
        )
    if len(texts) > 2 or len({*texts, label}) < len(texts) + 1:
        raise InputError(
            f"got the text columns {', '.join(map(repr, texts))} and the label column {label!r}; expected "
            "one text column, or two for a pair, all different: correct the names"
        )
    return texts or None


@dataclass(frozen=True)
class _Opened:
    """How sources are opened, the same for the training rows and for further test and dev rows."""

    seed: int
    shots: int | None
    sampling_rate: Rate
    label_pattern: str | None
    revision: str | None

    def open(self, source: str, wanted: Wanted) -> tuple[str, Collection]:
        """Return the source's name as it was found, and what it holds."""
        path, kind = Path(os.path.expanduser(source)), kind_of(source)
        named = {
            "text_column": wanted.text,
            "label_column": wanted.label,
            "label_pattern": self.label_pattern,
        }
        refuse_unused([name for name, value in named.items() if value is not None], {"data": kind})
        if self.revision is not None and kind != "a hub data set":
            raise InputError(
                f"got the revision {self.revision!r} of {source}, which is {kind}, expected one with a hub "
                "id alone: leave it out"
            )
        if source == "support":
            wanted = replace(wanted, task=wanted.task or TASKS["support"])
            table = read_table(Path(__file__).with_name("support.csv"))
            return source, collect_tables({"train": replace(table, name=source)}, wanted)
        if path.is_file():
            headerless = () if wanted.task is None else wanted.task.columns
            return source, collect_tables({"train": read_table(path)}, wanted, headerless)
        if source and path.is_dir():
            return self._open_folder(path, wanted)
        return source, hub.open_hub(source, wanted, self.revision, self.sampling_rate)

    def open_part(self, source: str, part: str, wanted: Wanted) -> tuple[Examples, Collection]:
        """Return the rows of a further source, whole: its only part, or the one of this name."""
        _, collection = self.open(source, wanted)
        if len(collection.parts) > 1 and part not in collection.parts:
            raise InputError(
                f"{source} has the parts {', '.join(collection.parts)}; expected one of {part} rows: give "
                "the file or folder that holds them"
            )
        own = part if len(collection.parts) > 1 else "train"
        reading = collection.reading
        of_part = replace(
            reading,
            origins={part: reading.origins.get(own, source)},
            left_out={part: reading.left_out.get(own, ())},
        )
        return collection.parts[own], replace(collection, reading=of_part)

    def _open_folder(self, path: Path, wanted: Wanted) -> tuple[str, Collection]:
        setting = kshot.find_setting(path, wanted.task, self.shots, self.seed)
        if setting is not None:
            return str(setting), kshot.open_setting(setting, wanted)
        if folders.part_files(path):
            return str(path), folders.open_tables(path, wanted)
        return str(path), folders.open_media(path, wanted.task, self.sampling_rate, self.label_pattern)
