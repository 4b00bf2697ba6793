"""The door itself: the bundled set, folders of tables, what is no source, and a light import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tangentlora.data import TASKS, load_splits
from tangentlora.errors import InputError

ROOT = Path(__file__).parents[2]


def test_the_bundled_set_has_16_of_each_label_to_train_on_and_the_rest_to_test() -> None:
    splits = load_splits("support")
    assert splits.test is not None
    assert splits.dev is None
    assert splits.task is TASKS["support"]
    assert splits.train.counts() == dict.fromkeys(("billing", "delivery", "technical", "account"), 16)
    assert min(splits.test.counts().values()) >= 110 - 16
    assert not set(splits.train.inputs) & set(splits.test.inputs)


def test_the_bundled_set_is_drawn_by_the_seed() -> None:
    prints = {seed: load_splits("support", seed=seed).train.fingerprint() for seed in (13, 21)}
    assert prints[13] != prints[21]
    assert load_splits("support").train.fingerprint() == prints[13]
    fewer = load_splits("support", shots=4, test_limit=50)
    assert fewer.test is not None
    assert fewer.dev is not None
    assert (len(fewer.train), len(fewer.dev), len(fewer.test)) == (16, 16, 50)
    asked = load_splits("support", shots=16)
    assert asked.dev is not None
    assert asked.train.fingerprint() == prints[13]
    assert not set(asked.train.inputs) & set(asked.dev.inputs)
    with pytest.raises(InputError, match="fewer than the 1000 shots asked for"):
        load_splits("support", shots=1000)


def test_a_folder_of_tables_keeps_its_parts_and_mixes_kinds(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    (tmp_path / "validation.tsv").write_text('sentence\tcategory\nthe "e\tx\n')
    (tmp_path / "test.jsonl").write_text('{"text": "f", "label": "y"}\n')
    splits = load_splits(str(tmp_path))
    assert splits.dev is not None
    assert splits.test is not None
    assert (splits.train.labels, splits.dev.inputs, splits.test.labels) == ((0, 1, 0, 1), ('the "e',), (1,))
    (tmp_path / "test.jsonl").write_text('{"text": "f", "label": "z"}\n')
    with pytest.raises(InputError, match=r"row 1 of .*test.jsonl has the label 'z'; expected one of x, y"):
        load_splits(str(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"text": "f"}\n')
    with pytest.raises(
        InputError, match=r"test.jsonl has the columns 'text'; expected .* the label in 'label'"
    ):
        load_splits(str(tmp_path))
    (tmp_path / "test.jsonl").unlink()
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"the test set of .* is empty; give it examples or omit it"):
        load_splits(str(tmp_path))


def write_numbered(path: Path, n: int) -> None:
    """Write n texts of label `a` and n of label `b` that tell the file they are in."""
    rows = "".join(f"{path.stem} {i},{'ab'[i % 2]}\n" for i in range(2 * n))
    path.write_text("text,label\n" + rows)


@pytest.mark.parametrize(
    ("parts", "sizes", "origins"),
    [
        ({"train": 10}, (4, 4, 12), ("train", "train", "train")),
        ({"train": 10, "test": 7}, (4, 4, 14), ("train", "train", "test")),
        ({"train": 10, "dev": 7}, (4, 4, 14), ("train", "train", "dev")),
        ({"train": 10, "dev": 7, "test": 6}, (4, 4, 12), ("train", "dev", "test")),
        ({"train": 10, "dev": 1, "test": 6}, (4, 2, 12), ("train", "dev", "test")),
        ({"train": 4}, (4, None, 4), ("train", None, "train")),
        ({"train": 4, "test": 3}, (4, 4, 6), ("train", "train", "test")),
        ({"train": 3, "test": 3}, (4, None, 6), ("train", None, "test")),
        ({"train": 2}, (4, None, None), ("train", None, None)),
    ],
)
def test_shots_give_every_source_a_dev_set_where_the_examples_suffice(
    parts: dict[str, int],
    sizes: tuple[int | None, ...],
    origins: tuple[str | None, ...],
    tmp_path: Path,
) -> None:
    for part, n in parts.items():
        write_numbered(tmp_path / f"{part}.csv", n)
    splits = load_splits(str(tmp_path), shots=2, seed=21)
    sets = (splits.train, splits.dev, splits.test)
    assert tuple(None if part is None else len(part) for part in sets) == sizes
    assert tuple(None if part is None else str(part.inputs[0]).split()[0] for part in sets) == origins
    texts = [text for part in sets if part is not None for text in part.inputs]
    assert len(set(texts)) == len(texts)
    alone = load_splits(str(tmp_path / "train.csv"), shots=2, seed=21)
    assert alone.train.fingerprint() == splits.train.fingerprint()  # whatever else is drawn


def test_without_shots_no_dev_set_is_drawn_and_none_is_cut(tmp_path: Path) -> None:
    for part, n in {"train": 10, "dev": 7, "test": 6}.items():
        write_numbered(tmp_path / f"{part}.csv", n)
    whole = load_splits(str(tmp_path))
    assert whole.dev is not None
    assert (len(whole.train), len(whole.dev)) == (20, 14)
    assert load_splits(str(tmp_path / "train.csv")).dev is None


def test_a_task_object_serves_as_well_as_a_name(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("0,good\n1,bad\n")
    source = str(tmp_path / "data.csv")
    by_name, by_task = (load_splits(source, task, test_fraction=0.0) for task in ("mr", TASKS["mr"]))
    assert by_name.train.fingerprint() == by_task.train.fingerprint()


@pytest.mark.parametrize(
    "source", ["nowhere", "./no/where", "data/missing.csv", "~/no such folder", "~nobody", "C:\\no", ""]
)
def test_what_is_nowhere_is_told_without_asking_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"there is no file or folder .*; expected one, `support`, or a hub id"
    ):
        load_splits(source)


def test_importing_the_door_is_light() -> None:
    heavy = ("datasets", "pandas", "pyarrow", "PIL", "soundfile", "scipy", "transformers")
    code = f"import sys, tangentlora.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src"
    )
    assert done.stdout.strip() == "[]"
