"""Labels that are no classes are refused by name; what is read is read as what it is."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tangentlora.data import load_splits
from tangentlora.data.label_kinds import twins
from tangentlora.errors import InputError


def table(folder: Path, labels: list[Any], name: str = "data.json") -> str:
    """Write one row for each label, with a text of its own, and return the path."""
    path = folder / name
    rows = [{"text": f"text number {i}", "label": label} for i, label in enumerate(labels)]
    if name.endswith(".csv"):
        lines = [f'"{row["text"]}","{row["label"]}"' for row in rows]
        path.write_text("\n".join(["text,label", *lines]) + "\n")
    elif name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([[1, 0, 1], [0, 1, 0]], "a multi-hot list"),
        ([[0, 1], [1, 0, 0]], "a multi-hot list, or one-hot beside others"),
        ([["joy"], ["fear", "joy"]], "a list of labels"),
        ([[0.5, 0.5], [0.1, 0.9]], "a list of real numbers"),
        ([{"id": 1}, {"id": 2}], "an object with fields"),
        ([0.5, 1.5], "a real number"),
        ([1, 2.25], "a real number"),
        ([1e-3, 2e-3], "a real number"),
        ([float("inf"), 1.0], "a number that is not finite"),
        (["[1, 0]", "[0, 1]"], "a list written as text"),
        (["1 0 1", "0 1 1"], "a list written as text"),
        (["0.5", "1.5"], "a real number"),
        (["1e-3", "2"], "a real number"),
        (["0,5", "1,5", "2,25"], "a real number"),
        (["2024-01-31", "2024-02-29"], "a date"),
        (["2024-01-31 12:30:00", "2024-01-31T12:30:00Z"], "a date"),
        (["31.01.2024", "29.02.2024"], "a date"),
        (["joy", "fear", "joy|fear"], "several labels in one"),
        (["joy, fear", "joy, rage", "fear, rage"], "several labels in one"),
    ],
)
def test_what_is_no_class_is_refused_by_name(labels: list[Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as refused:
        load_splits(table(tmp_path, labels * 4))
    assert "in the label column 'label'" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("labels", [["0.5", "1.5"], ["[1, 0]", "[0, 1]"], ["2024-01-31", "2023-01-31"]])
def test_text_files_are_refused_alike(labels: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in the label column 'label'"):
        load_splits(table(tmp_path, labels * 4, "data.csv"))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([date(2024, 1, 31), date(2024, 2, 29)], "a date"),
        ([datetime(2024, 1, 31, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC)], "a datetime"),
        ([b"one", b"two"], "bytes"),
        ([Decimal("0.50"), Decimal("1.50")], "a real number"),
        ([[1, 1, 0], [0, 1, 1]], "a multi-hot list"),
    ],
)
def test_parquet_columns_of_other_types_are_refused(labels: list[Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what):
        load_splits(table(tmp_path, labels * 4, "data.parquet"))


@pytest.mark.parametrize("name", ["data.json", "data.csv"])
def test_whole_numbers_are_classes_however_they_are_written(name: str, tmp_path: Path) -> None:
    splits = load_splits(table(tmp_path, [2.0, 10.0, "1.0", "2"], name))
    assert splits.train.label_names == ("1", "2", "10")
    assert splits.train.labels == (1, 2, 0, 1)


def test_a_task_may_declare_labels_that_look_otherwise(tmp_path: Path) -> None:
    assert load_splits(table(tmp_path, ["0.0", "1.0"], "data.csv"), "mr").train.labels == (0, 1)


def test_one_hot_lists_of_one_length_are_the_place_of_their_one(tmp_path: Path) -> None:
    lists = [[0, 0, 1], [1.0, 0.0, 0.0], [False, True, False], [0, 0, 1]]
    train = load_splits(table(tmp_path, lists)).train
    assert (train.label_names, train.labels) == (("0", "1", "2"), (2, 0, 1, 2))


def test_truth_values_are_two_classes(tmp_path: Path) -> None:
    train = load_splits(table(tmp_path, [True, False, True])).train
    assert (train.label_names, train.labels) == (("False", "True"), (1, 0, 1))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([1, "good", 1, "good"], r"numbers \(row 1\) and words \(row 2\)"),
        ([True, 0, 1, False], r"truth values \(row 1\) and numbers \(row 2\)"),
    ],
)
def test_mixed_types_are_refused(labels: list[Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has {found} in the label column 'label'; expected one type"):
        load_splits(table(tmp_path, labels))


@pytest.mark.parametrize(
    "labels", [list(range(60)), [f"{i}.0" for i in range(60)], [f"p{i}" for i in range(3)]]
)
def test_one_row_for_each_label_is_nothing_to_learn(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"has {len(labels)} different labels in 'label' in {len(labels)} training rows"
    ):
        load_splits(table(tmp_path, labels))


def test_hardly_more_rows_than_labels_are_nothing_to_learn_either(tmp_path: Path) -> None:
    labels = [*range(40), *range(20)]
    with pytest.raises(InputError, match="has 40 different labels in 'label' in 60 training rows"):
        load_splits(table(tmp_path, labels))
    assert len(load_splits(table(tmp_path, labels * 2)).train.label_names) == 40


def test_a_label_of_the_task_without_a_training_row_is_refused(tmp_path: Path) -> None:
    source = table(tmp_path, [0, 1, 3, 4] * 3)
    with pytest.raises(InputError, match="has no training row with the label '2' of task sst5"):
        load_splits(source, "sst5")
    assert load_splits(source).train.label_names == ("0", "1", "3", "4")


def test_twins_differ_in_case_spaces_points_or_unicode_form_only() -> None:
    labels = (
        "travel",
        "TRAVEL",
        "café",
        "cafe\u0301",
        "not_entailment",
        "not entailment",
        "A",
        "A-",
        "1",
        "01",
        "food",
        "food.",
        '"food"',
    )
    assert twins(labels) == (
        ("travel", "TRAVEL"),
        ("café", "cafe\u0301"),
        ("not_entailment", "not entailment"),
        ("1", "01"),
        ("food", "food.", '"food"'),
    )
    assert twins(("a", "b", "-1", "1", "c++", "c", "!", "?", ":)")) == ()


@pytest.fixture
def typed(tmp_path: Path) -> str:
    """A parquet file of `datasets`, whose schema names the classes."""
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"text {i}" for i in range(6)], "label": [0, 1, 1, 0, 1, 0]}
    data = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["pos", "neg"]))
    datasets.disable_progress_bars()
    data.to_parquet(tmp_path / "typed.parquet")
    datasets.enable_progress_bars()
    return str(tmp_path / "typed.parquet")


def test_numbers_that_a_parquet_file_names_are_those_labels(typed: str) -> None:
    train = load_splits(typed).train
    assert (train.label_names, train.labels) == (("neg", "pos"), (1, 0, 0, 1, 0, 1))
    # the file counts pos as 0, the task as 1
    assert load_splits(typed, "mr").train.labels == (1, 0, 0, 1, 0, 1)


def test_a_test_file_without_the_names_is_not_read_as_if_it_had_them(typed: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\nx,0\ny,1\n")
    with pytest.raises(InputError, match="has the label '0'; expected one of neg, pos"):
        load_splits(typed, test_data=str(tmp_path / "test.csv"))


@pytest.mark.parametrize("hidden", ["\u200b", "\ufeff ", "\u00a0"])
def test_a_label_that_shows_nothing_is_missing(hidden: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 2 of .* has no label in 'label'"):
        load_splits(table(tmp_path, ["a", hidden, "b"]))


def test_half_of_a_surrogate_pair_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 3 of .* half of a surrogate pair in 'label'.*as UTF-8"):
        load_splits(table(tmp_path, ["a", "b", "a\ud800", "b"]))
    rows = [{"text": f"text {i} \udc00" if i == 1 else f"text {i}", "label": "ab"[i % 2]} for i in range(4)]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"row 2 of .* half of a surrogate pair in 'text'"):
        load_splits(str(tmp_path / "texts.json"))
