"""Prompts and completions from files: pairs of texts as they stand, without classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tangentlora.data import COMPLETION, Examples, Splits, load_splits
from tangentlora.errors import InputError

ROWS = [("2 + 2 =", " 4"), ("a, b", ", c\n"), ("", 'so it "began"'), ("été ", "été")]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def records(prompt: str = "prompt", completion: str = "completion") -> list[dict[str, Any]]:
    return [{prompt: before, completion: after, "id": i} for i, (before, after) in enumerate(ROWS)]


def assert_rows(splits: Splits) -> None:
    assert splits.task == COMPLETION
    assert splits.train.inputs == tuple(ROWS)
    assert splits.train.labels == (0,) * len(ROWS)
    assert splits.train.modality == "text"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_columns_called_prompt_and_completion_are_taken_as_they_stand(tmp_path: Path, suffix: str) -> None:
    import csv

    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"data{suffix}"
    if suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("prompt", "completion"), *ROWS])
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records()), path)
    elif suffix == ".json":
        path.write_text(json.dumps(records()))
    else:
        jsonl(path, records())
    assert_rows(load_splits(str(path), test_fraction=0.0))


def test_other_columns_are_named_with_the_task(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data.jsonl", records("question", "answer"))
    found = load_splits(
        source, "completion", text_column="question", label_column="answer", test_fraction=0.0
    )
    assert_rows(found)
    with pytest.raises(InputError, match="has 3 different labels in 'answer' in 3 training rows"):
        load_splits(source, text_column="question", label_column="answer")  # without it these are classes


def test_a_column_of_labels_is_preferred_where_there_is_one(tmp_path: Path) -> None:
    rows = [row | {"label": "even" if row["id"] % 2 else "odd"} for row in records()]
    source = jsonl(tmp_path / "data.jsonl", rows)
    splits = load_splits(source, text_column="prompt")
    assert splits.task.labels == ("even", "odd")
    assert splits.train.inputs == tuple(prompt for prompt, _ in ROWS if prompt)
    with pytest.raises(InputError, match="has texts in 'completion' beside 'prompt', which would not be"):
        load_splits(source)


def test_shots_held_out_rows_and_parts(tmp_path: Path) -> None:
    many = [{"prompt": f"{i} +", "completion": f" {i}"} for i in range(12)]
    source = jsonl(tmp_path / "train.jsonl", many)
    splits = load_splits(source, shots=4)
    assert splits.dev is not None
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [4, 4, 4]
    jsonl(tmp_path / "test.jsonl", records())
    splits = load_splits(str(tmp_path))
    assert splits.test is not None
    assert (len(splits.train), splits.test.inputs) == (12, tuple(ROWS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": " "}, r"row 2 of .* has a blank completion in 'completion'; add it or remove"),
        ({"completion": None}, "row 2 of .* has None in 'completion'; expected text"),
        (
            {"prompt": [{"role": "user"}]},
            r"row 2 of .* has a list of messages in 'prompt'; expected text: of a conversation write",
        ),
    ],
)
def test_rows_that_cannot_be_completed(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = records()
    rows[1] |= change
    with pytest.raises(InputError, match=message):
        load_splits(jsonl(tmp_path / "data.jsonl", rows))


def test_a_prompt_is_one_column(tmp_path: Path) -> None:
    rows = [row | {"sentence1": "a", "sentence2": "b"} for row in records()]
    source = jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(InputError, match=r"got 2 text column\(s\) for task completion; expected 1"):
        load_splits(source, "completion", text_column=("sentence1", "sentence2"))
    with pytest.raises(InputError, match="has texts in 'prompt' beside 'sentence1' and 'sentence2'"):
        load_splits(source)  # a pair of sentences is no prompt


def test_only_completions_may_have_one_label() -> None:
    one = Examples((("a", "b"),), (0,), COMPLETION.labels)
    assert Splits(one, None, None, COMPLETION, "here").train is one
    other = load_splits("support").task
    with pytest.raises(InputError, match="every training example of here has the label 'completion'"):
        Splits(one, None, None, other, "here")


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [turn("user", "2 + 2"), turn("assistant", "4")]},
    "conversations": {"conversations": [{"from": "human", "value": "2 + 2"}], "id": 3},
    "prompt and completion": {"prompt": [turn("user", "2 + 2")], "completion": [turn("assistant", "4")]},
    "preferences": {"prompt": [turn("user", "2 + 2")], "chosen": [turn("assistant", "4")]},
}


@pytest.mark.parametrize("kind", CHATS)
def test_conversations_are_refused_with_the_columns_that_would_do(tmp_path: Path, kind: str) -> None:
    source = jsonl(tmp_path / "data.jsonl", [CHATS[kind]] * 4)
    with pytest.raises(InputError, match="in its chat template, as 'prompt' and the answer as 'completion'"):
        load_splits(source)


@pytest.mark.parametrize(
    ("prompt", "answer"), [("instruction", "output"), ("prompt", "response"), ("Input", "Target")]
)
def test_other_names_of_prompt_and_answer_are_refused_with_a_remedy_that_works(
    tmp_path: Path, prompt: str, answer: str
) -> None:
    source = jsonl(tmp_path / "data.jsonl", records(prompt, answer))
    remedy = f"take the task 'completion' with '{prompt}' as its text and '{answer}' as its label"
    with pytest.raises(InputError, match=remedy):
        load_splits(source)
    assert_rows(load_splits(source, "completion", text_column=prompt, label_column=answer))
