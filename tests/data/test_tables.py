"""Single files of every kind, read as a user would give them, and each way in which they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangentlora.data import Examples, load_splits
from tangentlora.errors import InputError

ROWS = [
    ("a fine film", "good"),
    ('she said "no', "bad"),
    ("one, two", "good"),
    (" so-so ", "bad"),
    ("été", "good"),
]
Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of that name and return its path."""

    def write_file(name: str, content: str | bytes) -> str:
        raw = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(raw)
        return str(tmp_path / name)

    return write_file


def whole(source: str, task: str | None = None, **options: Any) -> Examples:
    """All rows of a file in their order: nothing is held out."""
    splits = load_splits(source, task, test_fraction=0.0, **options)
    assert splits.test is None
    return splits.train


def pairs(examples: Examples) -> list[tuple[Any, str]]:
    return [
        (text, examples.label_names[label])
        for text, label in zip(examples.inputs, examples.labels, strict=True)
    ]


def as_json(label: str = "label", text: str = "text") -> list[dict[str, Any]]:
    return [{text: words, label: value} for words, value in ROWS]


def test_a_csv_file_groups_fields_by_quotes(write: Write) -> None:
    content = 'text,label\na fine film,good\n"she said ""no",bad\n"one, two",good\n" so-so ",bad\nété,good\n'
    assert pairs(whole(write("data.csv", content))) == ROWS


def test_a_tsv_file_takes_quotes_as_they_are(write: Write) -> None:
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
    assert pairs(whole(write("data.tsv", content))) == ROWS


def test_windows_lines_a_byte_order_mark_and_blank_lines_do_no_harm(write: Write) -> None:
    content = b'\xef\xbb\xbflabel,text\r\n0,first\r\n\r\n1,"second\r\nline"\r\n\r\n'
    assert pairs(whole(write("data.csv", content))) == [("first", "0"), ("second\r\nline", "1")]


def test_a_json_list_and_json_lines_read_alike(write: Write) -> None:
    lines = "\n".join(json.dumps(row) for row in as_json()) + "\n\n"
    assert pairs(whole(write("data.jsonl", lines))) == ROWS
    assert pairs(whole(write("data.json", json.dumps(as_json(), indent=1)))) == ROWS


def test_a_parquet_file_reads_like_the_others(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(as_json()), path)
    assert pairs(whole(str(path))) == ROWS


def test_labels_that_are_numbers_or_truths_become_strings(write: Write) -> None:
    values = [2, 1.0, "10 ", 2.0]
    rows = [{"text": f"t{i}", "label": value} for i, value in enumerate(values)]
    examples = whole(write("data.json", json.dumps(rows)))
    assert examples.label_names == ("1", "2", "10")
    assert examples.labels == (1, 0, 2, 1)
    rows = [{"text": "t", "label": value} for value in (True, False)]
    assert whole(write("truth.json", json.dumps(rows))).label_names == ("False", "True")


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (("content", "category"), {}),
        (("message", "labels"), {}),
        (("memo", "verdict"), {"text_column": "memo", "label_column": "verdict"}),
        (("memo", "label"), {"text_column": ["memo"]}),
    ],
)
def test_columns_go_by_usual_names_or_by_those_given(
    header: tuple[str, str], columns: dict[str, Any], write: Write
) -> None:
    text, label = header
    source = write("data.json", json.dumps(as_json(label, text)))
    examples = whole(source, **columns)
    assert pairs(examples) == ROWS
    made = load_splits(source, **columns).task
    assert (made.text_columns, made.label_column) == ((text,), label)


def test_a_column_given_wins_over_a_usual_one(write: Write) -> None:
    source = write("data.csv", "text,title,label\nlong one,short one,x\nlong two,short two,y\n")
    assert whole(source, text_column="title").inputs == ("short one", "short two")


def test_two_texts_make_a_pair_by_name_or_when_given(write: Write) -> None:
    source = write("data.csv", "premise,hypothesis,label\np1,h1,x\np2,h2,y\n")
    assert whole(source).inputs == (("p1", "h1"), ("p2", "h2"))
    source = write("other.csv", "left,right,label\np1,h1,x\np2,h2,y\n")
    assert whole(source, text_column=("left", "right")).inputs == (("p1", "h1"), ("p2", "h2"))


def test_a_question_with_a_sentence_is_a_pair_and_not_a_sentence(write: Write) -> None:
    content = "question\tsentence\tlabel\nq1\ts1\tentailment\nq2\ts2\tnot_entailment\n"
    source = write("data.tsv", content)
    assert whole(source).inputs == (("q1", "s1"), ("q2", "s2"))
    assert whole(source, "qnli").label_names == ("not_entailment", "entailment")
    assert whole(source, "qnli").labels == (1, 0)


def test_a_known_task_gives_the_order_of_labels_and_falls_back_on_usual_columns(write: Write) -> None:
    source = write("data.csv", "text,label\nplenty,1\npoor,0\n")
    assert whole(source, "sst2").labels == (1, 0)  # the task's own text column is `sentence`
    source = write("bare.csv", '1,plenty\n0,"poor, very poor"\n')
    assert whole(source, "mr").inputs == ("plenty", "poor, very poor")  # and its files have no header


def test_all_rows_are_used_once_between_train_and_test(write: Write) -> None:
    content = "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40))
    source = write("data.csv", content)
    splits = load_splits(source, test_fraction=0.25)
    assert splits.test is not None
    assert splits.train.counts() == {"0": 15, "1": 15}
    assert splits.test.counts() == {"0": 5, "1": 5}
    assert sorted(splits.train.inputs + splits.test.inputs) == sorted(f"t{i}" for i in range(40))
    shots = load_splits(source, shots=3, seed=21, test_limit=20)
    assert shots.test is not None
    assert (len(shots.train), len(shots.test)) == (6, 20)
    assert not set(shots.train.inputs) & set(shots.test.inputs)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.csv",
            "text,label\na,x\nb\n",
            "row 3 of .*d.csv has 1 fields where the first row has 2; .*quote the",
        ),
        ("d.tsv", "text\tlabel\na\tx\nb\ty\tz\n", "row 3 of .*d.tsv has 3 fields"),
        ("d.csv", 'text,label\na,x\n\n"b,y\n', "d.csv is not well-formed csv at line 4"),
        (
            "d.csv",
            "words,mark\na,x\n",
            "has the columns 'words', 'mark'; expected the text in 'text' or 'sentence'",
        ),
        ("d.csv", "text,mark\na,x\n", "and the label in 'label': name the text and label columns"),
        ("d.csv", "", "d.csv is empty; expected rows with a text and a label"),
        ("d.csv", "text,label\n", "the train set of .*d.csv is empty"),
        ("d.jsonl", "", "d.jsonl is empty"),
        ("d.json", "[]", "d.json is empty"),
        ("d.csv", "text,label\na,x\nb,x\n", "every training example of .*d.csv has the label 'x'"),
        ("d.csv", "text,label\na,x\nb, \n", "row 3 of .*d.csv has no label in 'label'"),
        ("d.csv", b"text,label\ncaf\xe9,x\n", r"d.csv is not UTF-8 text \(byte 14: .*save it as UTF-8"),
        ("d.jsonl", b'{"text": "caf\xe9"}', "d.jsonl is not UTF-8 text"),
        ("d.jsonl", '{"text": "a", "label": 0}\n\n{"text": "a"', "line 3 of .*d.jsonl is not valid JSON"),
        ("d.json", '{"text": "a"}', "d.json holds a JSON dict; expected a list of objects"),
        ("d.json", "[1]", "row 1 of .*d.json is a int; expected an object"),
        ("d.json", '[{"text":"a","label":"x"},{"text":"b"}]', "row 2 of .*d.json has no label"),
        ("d.json", '[{"text":"a","label":NaN}]', "row 1 of .*d.json has no label"),
        (
            "d.json",
            '[{"text":"a","label":1},{"text":null,"label":0}]',
            "row 2 of .* has None in 'text'; expected text",
        ),
        ("d.json", '[{"text":7,"label":1}]', "row 1 of .*d.json has 7 in 'text'; expected text"),
        ("d.parquet", "PAR?", "d.parquet is not a parquet file"),
        (
            "d.docx",
            "text",
            r"cannot read .*d.docx as a table: expected a file that ends in one of \.csv, \.tsv",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_place_and_a_remedy(
    name: str, content: str | bytes, message: str, write: Write
) -> None:
    with pytest.raises(InputError, match=message):
        load_splits(write(name, content))


def test_a_label_that_the_task_does_not_have_is_named_with_its_row(write: Write) -> None:
    source = write("data.csv", "text,label\na,0\nb,2\n")
    with pytest.raises(
        InputError, match=r"row 3 of .*data.csv has the label '2'; expected one of 0, 1, the labels of"
    ):
        load_splits(source, "mr")
    source = write("bare.csv", "0,a\nGood,b\n")
    with pytest.raises(InputError, match=r"row 2 of .*bare.csv has the label 'Good'"):
        load_splits(source, "mr")


def test_labels_match_with_their_case(write: Write) -> None:
    source = write("data.csv", "question,sentence,label\nq,s,Entailment\n")
    with pytest.raises(
        InputError, match=r"row 2 .* has the label 'Entailment'; expected one of not_entailment, ent"
    ):
        load_splits(source, "qnli")


def test_a_column_given_that_is_not_there_is_named(write: Write) -> None:
    source = write("data.csv", "text,label\na,0\nb,1\n")
    with pytest.raises(InputError, match="expected the text in 'words' and the label in 'label'"):
        load_splits(source, text_column="words")
    with pytest.raises(InputError, match=r"has the columns 'text', 'label'; .*the label in 'mark'"):
        load_splits(source, label_column="mark")
    with pytest.raises(
        InputError, match=r"got 1 text column.* for task qnli; expected 2, such as question and sent"
    ):
        load_splits(source, "qnli", text_column="text")


def test_without_a_header_or_a_task_the_first_row_is_shown_in_short(write: Write) -> None:
    source = write("bare.csv", f"0,{'long ' * 30}\n1,b\n")
    with pytest.raises(InputError, match=r"has the columns '0', '(long ){7}long…'; .* in the first row"):
        load_splits(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("digits.json", '[{"text": "a", "label": ' + "9" * 5000 + "}]", "is not valid JSON .*4300 digits"),
        ("digits.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}", "line 1 of .* is not valid JSON"),
        ("deep.json", "[" * 100_000, "is not valid JSON .*expected objects with a text and a label"),
        ("lines.json", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', "name the file .jsonl"),
    ],
)
def test_json_beyond_bounds_is_refused(write: Write, name: str, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_splits(write(name, content))


def test_parquet_files_with_one_name_twice_or_dates_out_of_range_are_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts, labels = pyarrow.array(["a b", "c d", "e f", "g h"]), pyarrow.array([0, 1, 0, 1])
    late = pyarrow.array([2**62] * 4, pyarrow.timestamp("us"))
    for names, columns, message in (
        (["text", "text", "label"], [texts, texts, labels], "2 columns called 'text'"),
        (["text", "label", "when"], [texts, labels, late], "values that cannot be read .* leave that column"),
    ):
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), tmp_path / "data.parquet")
        with pytest.raises(InputError, match=message):
            load_splits(str(tmp_path / "data.parquet"))


@pytest.mark.parametrize(
    ("text", "label"), [("Text", "Label"), ("SENTENCE", "Category"), (" text", " label ")]
)
def test_customary_names_are_told_whatever_their_case_and_blanks(write: Write, text: str, label: str) -> None:
    splits = load_splits(write("data.csv", f"{text},{label}\none a,x\ntwo b,y\nthree c,x\nfour d,y\n"))
    assert splits.train.counts() == {"x": 2, "y": 2}
    assert (splits.reading.text, splits.reading.label) == ((text,), label)


def test_an_exact_name_wins_over_one_of_another_case(write: Write) -> None:
    splits = load_splits(write("data.csv", "Label,text,label\n1,one a,x\n2,two b,y\n3,three c,x\n4,d,y\n"))
    assert splits.train.label_names == ("x", "y")
    with pytest.raises(InputError, match="expected the text in 'Text'"):
        load_splits(write("data.csv", "text,label\none a,x\ntwo b,y\n"), text_column="Text")


def test_prompts_and_completions_are_told_whatever_their_case(write: Write) -> None:
    splits = load_splits(write("data.csv", "Prompt,Completion\none a, b\ntwo b, c\n"))
    assert splits.task.name == "completion"
    assert splits.train.inputs == (("one a", " b"), ("two b", " c"))
