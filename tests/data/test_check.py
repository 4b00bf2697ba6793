"""The data check: counts against data made to have them, the sentences, JSON, and speed on many rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tangentlora.data import DataCheck, Examples, Splits, check_data, load_splits
from tangentlora.data.tasks import TASKS
from tangentlora.errors import InputError

ROWS = [
    ("the first text", "travel"),
    ("the  first text ", "travel"),  # the same but for blanks
    ("a second text", "TRAVEL"),
    ("a second text", "food"),
    ("a third text", "food"),
    ("", "food"),
    (" \u200b", "travel"),
    ("a fourth", "art"),
]


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return str(path)


@pytest.fixture
def checked(tmp_path: Path) -> DataCheck:
    train = write(tmp_path / "train.csv", ROWS)
    test = write(tmp_path / "other.csv", [("a third text", "food"), ("a second text", "art"), ("new", "art")])
    return check_data(load_splits(train, test_data=test))


def test_every_count_is_that_of_the_data(checked: DataCheck) -> None:
    train, test = checked.parts["train"], checked.parts["test"]
    assert (train.rows, train.labels) == (6, {"TRAVEL": 1, "art": 1, "food": 2, "travel": 2})
    assert (train.duplicates, train.contradictions, train.contradicting) == (1, 1, 2)
    assert train.left_out == (7, 8)  # as a user counts, the header first
    assert (test.rows, test.leaked, test.relabelled, test.left_out) == (3, 2, 1, ())
    assert checked.twins == (("TRAVEL", "travel"),)
    assert checked.single == ("TRAVEL", "art")
    assert checked.held_out == 3


def test_each_count_has_a_sentence(checked: DataCheck) -> None:
    assert checked.warnings() == [
        "The labels 'TRAVEL' and 'travel' differ in case, spaces, points or Unicode form only and count as 2 "
        "classes.",
        "2 labels have one training row only: TRAVEL, art.",
        "2 rows have no text and are left out of the train set: row 7, 8.",
        "1 of 6 train rows repeats an earlier one, label included.",
        "2 of 6 train rows contradict each other: 1 input has different labels, such as 'a second text'.",
        "2 of 3 test rows are in the training set too, 1 of them with another label.",
    ]
    text = checked.told()
    assert max(map(len, text.splitlines())) <= 100
    joined = " ".join(text.split())
    for sentence in checked.warnings():
        assert f"! {sentence}" in joined


def test_json_has_everything(checked: DataCheck, tmp_path: Path) -> None:
    found = json.loads(json.dumps(checked.describe()))
    assert (found["text_columns"], found["label_column"], found["held_out_rows"]) == (["text"], "label", 3)
    assert found["parts"]["train"]["from"] == f"all of {tmp_path / 'train.csv'}"
    assert found["parts"]["test"]["also_in_train_with_another_label"] == 1
    assert found["case_twins"] == [["TRAVEL", "travel"]]
    assert found["warnings"] == checked.warnings()


def test_clean_data_have_no_warnings_and_say_that_nothing_is_held_out(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", [(f"text {i}", "ab"[i % 2]) for i in range(8)])
    check = check_data(load_splits(source))
    assert check.warnings() == []
    assert check.lines()[-1] == "  test  none: no held-out rows, so accuracies are on the training rows"
    said = " ".join(check.told().split())
    assert "train 8 rows (all of" in said
    assert "): a 4, b 4 dev none test none" in said


def test_a_pair_with_one_blank_text_stays_and_is_told(tmp_path: Path) -> None:
    rows = [{"question": f"q {i}", "context": "" if i == 2 else f"c {i}", "label": i % 2} for i in range(6)]
    rows.append({"question": " ", "context": "", "label": 1})
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_splits(str(tmp_path / "d.jsonl"))
    assert splits.train.inputs[2] == ("q 2", "")
    assert check_data(splits).warnings() == [
        "1 row has no text and is left out of the train set: row 7.",
        "1 of 6 train rows has a blank text and stays in.",
    ]


def test_a_class_whose_rows_all_lack_a_text_is_refused(tmp_path: Path) -> None:
    rows = [("good film", "a"), ("bad film", "b"), ("", "c"), ("another", "a"), ("one more", "b")]
    with pytest.raises(InputError, match="has no text in any row with the label 'c'"):
        load_splits(write(tmp_path / "d.csv", rows))


def test_images_and_recordings_are_the_same_where_their_content_is() -> None:
    waves: tuple[Any, ...] = tuple(np.array(wave, dtype=np.float32) for wave in ([0, 1], [1, 0], [0, 1]))
    sounds = Examples(waves, (0, 1, 1), ("a", "b"), "audio", 8000)
    train = check_data(Splits(sounds, None, None, TASKS["mr"], "made")).parts["train"]
    assert (train.duplicates, train.contradictions, train.contradicting) == (0, 1, 2)


def test_control_characters_of_labels_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": f"t {i}", "label": ("a\x1b[2Jb", "c")[i % 2]}) + "\n" for i in range(4))
    )
    told = check_data(load_splits(str(tmp_path / "d.jsonl"))).told()
    assert "\x1b" not in told
    assert r"a\x1b[2Jb 2" in " ".join(told.split())


def test_many_labels_are_summed_up() -> None:
    names = tuple(f"l{i}" for i in range(40))
    many = Examples(tuple(f"t{i}" for i in range(100)), tuple(i % 40 for i in range(100)), names)
    task = replace(TASKS["mr"], labels=names, label_words=names, prototypes=names, synonyms=())
    check = check_data(Splits(many, None, None, task, "made"))
    assert "40 labels, from 2 to 3 rows each" in " ".join(check.told().split())


def test_the_bundled_messages_are_clean() -> None:
    check = check_data(load_splits("support"))
    assert check.warnings() == []
    assert check.parts["train"].origin == "16 of each label of support, drawn by seed 13"
    assert check.parts["test"].origin == "the other rows of support"


def test_texts_that_are_numbers_and_labels_that_may_be_missing_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "d.csv", [(str(i), ("nan", "b")[i % 2]) for i in range(6)])
    assert check_data(load_splits(source)).warnings() == [
        "The label 'nan' counts as a class: does it stand for a missing label?",
        "6 of 6 train texts are bare numbers: is it the right column?",
    ]


def test_numbers_among_words_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "d.csv", [(f"text {i}", ("1", "b", "c")[i % 3]) for i in range(6)])
    (said,) = check_data(load_splits(source)).warnings()
    assert said == "Labels are whole numbers (1) and words (b, c): is it one column?"


def test_sets_that_a_verb_does_not_use_are_said_to_be_idle(checked: DataCheck) -> None:
    idle = checked.leaving("dev", "test")  # there is no dev set, which is said by itself
    assert idle.describe()["parts_not_used"] == ["test"]
    assert " ".join(idle.told().split()).count("not used here") == 1
    assert "not used here" not in checked.told()


def test_texts_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    rows = [("caf\u00e9 one", "a"), ("cafe\u0301 one", "b"), ("tea\u200b two", "a"), ("tea\u00a0two", "a")]
    found = check_data(load_splits(write(tmp_path / "data.csv", rows))).parts["train"]
    assert (found.contradictions, found.contradicting, found.duplicates) == (1, 2, 1)


def test_further_columns_of_labels_are_told(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(
        "text,label,Topic\n" + "".join(f"text {i},{'ab'[i % 2]},{'cd'[i // 2]}\n" for i in range(4))
    )
    assert check_data(load_splits(str(path))).warnings() == [
        "The labels are those in 'label'; Topic, which by name holds labels too, is not read."
    ]
