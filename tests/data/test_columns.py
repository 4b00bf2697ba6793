"""Pairs of text columns are read as pairs, and no column of texts is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tangentlora.data import check_data, load_splits
from tangentlora.errors import InputError

FIRST = (
    "the first of them goes here",
    "another one of the first",
    "a third that is first",
    "and a fourth one",
)
SECOND = (
    "what is said of it second",
    "this follows from the first",
    "nothing of the kind",
    "as one may expect",
)


def rows(**columns: tuple[object, ...]) -> list[dict[str, object]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write(folder: Path, found: list[dict[str, object]], name: str = "data.jsonl") -> str:
    path = folder / name
    if name.endswith((".csv", ".tsv")):
        sign = "," if name.endswith(".csv") else "\t"
        lines = [sign.join(found[0]), *(sign.join(map(str, row.values())) for row in found)]
        path.write_text("\n".join(lines) + "\n")
    elif name.endswith(".parquet"):
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(found), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.parquet"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("question", "context"),
        ("query", "document"),
        ("premise", "hypothesis"),
        ("text_a", "text_b"),
        ("sentenceA", "sentenceB"),
        ("text", "text_pair"),
        ("prompt", "response"),
        ("query_1", "query_2"),
    ],
)
def test_usual_pairs_are_read_as_pairs(first: str, second: str, name: str, tmp_path: Path) -> None:
    found = rows(**{"idx": (7, 8, 9, 10), second: SECOND, first: FIRST, "label": (0, 1, 0, 1)})
    splits = load_splits(write(tmp_path, found, name))
    assert splits.train.inputs == tuple(zip(FIRST, SECOND, strict=True))
    assert splits.task.text_columns == splits.reading.text == (first, second)
    assert splits.reading.unused == ("idx",)
    assert "  columns not used: idx" in check_data(splits).lines()


@pytest.mark.parametrize("other", ["notes", "answer", "summary", "text_fr"])
def test_a_further_column_of_texts_is_refused_by_name(other: str, tmp_path: Path) -> None:
    source = write(tmp_path, rows(text=FIRST, label=(0, 1, 0, 1), **{other: SECOND}))
    with pytest.raises(
        InputError,
        match=rf"has texts in '{other}' beside 'text', .*: name the text columns that are to be read",
    ):
        load_splits(source)
    assert load_splits(source, text_column=("text", other)).train.inputs == tuple(
        zip(FIRST, SECOND, strict=True)
    )
    alone = load_splits(source, text_column="text")
    assert alone.train.inputs == FIRST
    assert alone.reading.unused == (other,)


def test_a_third_text_beside_a_pair_is_refused_too(tmp_path: Path) -> None:
    found = rows(premise=FIRST, hypothesis=SECOND, explanation_1=SECOND[::-1], label=(0, 1, 0, 1))
    with pytest.raises(InputError, match="has texts in 'explanation_1' beside 'premise' and 'hypothesis'"):
        load_splits(write(tmp_path, found))


def test_a_text_that_only_later_rows_have_is_seen(tmp_path: Path) -> None:
    found = [{"text": text, "label": i % 2} for i, text in enumerate(FIRST)]
    for row, text in zip(found[1:], SECOND, strict=False):
        row["remark"] = text
    with pytest.raises(InputError, match="has texts in 'remark' beside 'text'"):
        load_splits(write(tmp_path, found))


def test_harmless_columns_are_listed_and_no_more(tmp_path: Path) -> None:
    found = rows(
        id=("a1", "a2", "a3", "a4"),
        text=FIRST,
        source=("home and garden",) * 4,
        date=("2024-01-31 12:00",) * 4,
        score=(0.5, 0.25, 1.0, 2.0),
        tags=(["a"], ["b"], [], ["c"]),
        label=(0, 1, 0, 1),
        label_text=("it was not good", "it was very good", "it was not good", "it was very good"),
    )
    splits = load_splits(write(tmp_path, found))
    assert splits.train.inputs == FIRST
    assert splits.reading.unused == ("id", "source", "date", "score", "tags", "label_text")
    assert check_data(splits).describe()["columns_not_used"] == list(splits.reading.unused)


def test_a_script_without_spaces_counts_as_text(tmp_path: Path) -> None:
    found = rows(
        text=FIRST,
        zh=("这是第一个句子", "这是第二个句子", "第三个句子在这里", "最后一个句子"),
        label=(0, 1, 0, 1),
    )
    with pytest.raises(InputError, match="has texts in 'zh' beside 'text'"):
        load_splits(write(tmp_path, found))


def test_two_columns_of_one_name_are_refused_where_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label,label\na b,0,1\nc d,1,0\n")
    with pytest.raises(InputError, match="has 2 columns called 'label'; expected one"):
        load_splits(str(tmp_path / "data.csv"))
    (tmp_path / "data.jsonl").write_text(
        '{"text": "a b", "label": 0, "label": 1}\n{"text": "c", "label": 1}\n'
    )
    with pytest.raises(InputError, match=r"line 1 of .* has an object with 'label' twice"):
        load_splits(str(tmp_path / "data.jsonl"))


def test_columns_that_are_named_must_differ_and_be_one_or_two(tmp_path: Path) -> None:
    source = write(tmp_path, rows(text=FIRST, label=(0, 1, 0, 1)))
    for given in (("text", "text"), ("a", "b", "c"), ("text", "label")):
        with pytest.raises(InputError, match="expected one text column, or two for a pair, all different"):
            load_splits(source, text_column=given, label_column="label")


def test_train_and_test_files_must_have_as_many_texts(tmp_path: Path) -> None:
    train = write(tmp_path, rows(premise=FIRST, hypothesis=SECOND, label=(0, 1, 0, 1)), "train.csv")
    test = write(tmp_path, rows(text=FIRST, label=(0, 1, 0, 1)), "test.csv")
    with pytest.raises(
        InputError, match=r"test.csv has the columns 'text', 'label'; expected the text in 'prem"
    ):
        load_splits(train, test_data=test)
    renamed = write(tmp_path, rows(sentence=SECOND, category=(1, 0, 1, 0)), "other.csv")
    splits = load_splits(test, test_data=renamed)
    assert splits.test is not None
    assert (splits.test.inputs, splits.test.labels) == (SECOND, (1, 0, 1, 0))


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("d.csv", "text;label\ngood;1\nbad;0\n", "parted by ';', save it with commas"),
        ("d.csv", "text\tlabel\ngood\t1\nbad\t0\n", "parted by tabs, save it with commas"),
        ("d.tsv", "text,label\ngood,1\nbad,0\n", "parted by ',', save it with tabs"),
        ("d.csv", "text;label\ngood, fun;1\nbad;0\n", "save the file with commas between the columns"),
    ],
)
def test_another_delimiter_is_guessed_in_the_remedy(
    name: str, content: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=remedy):
        load_splits(str(tmp_path / name))
