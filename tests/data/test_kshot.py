"""The published k-shot layout: found from each of its levels, with headers and without, for every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangentlora.data import TASKS, Splits, load_splits
from tangentlora.errors import InputError

PUBLISHED = Path(__file__).parents[2] / "../shared/data/k-shot"
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published k-shot sets are not here")

TEST_COUNTS = {
    "sst2": (428, 444),
    "qnli": (493, 507),
    "mr": (523, 477),
    "cr": (523, 477),
    "qqp": (64, 64),
    "subj": (523, 477),
}


def write_table(path: Path, *rows: tuple[str, ...]) -> None:
    """Write rows separated by tabs or commas as the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = "\t" if path.suffix == ".tsv" else ","
    path.write_text("".join(mark.join(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sets of 2, 16 and 20 shots of MR, where every text tells its set, and one of 16 shots of QNLI."""
    for setting in ("2-13", "16-13", "16-21", "20-13"):
        shots = int(setting.split("-")[0])
        for part in ("train", "dev", "test"):
            rows = [(str(i % 2), f"{part} {setting} {i}") for i in range(2 * shots)]
            write_table(tmp_path / "mr" / setting / f"{part}.csv", *rows)
    for part in ("train", "dev"):
        rows = [(str(i), "q", f"s{i}", ("entailment", "not_entailment")[i % 2]) for i in range(32)]
        header = ("index", "question", "sentence", "label")
        write_table(tmp_path / "QNLI" / "16-13" / f"{part}.tsv", header, *rows)
    return tmp_path


@published
@pytest.mark.parametrize("seed", [13, 21, 42])
@pytest.mark.parametrize("name", TEST_COUNTS)
def test_the_papers_tasks_have_16_examples_per_label_and_disjoint_sets(name: str, seed: int) -> None:
    splits = load_splits(str(PUBLISHED), name, seed=seed)
    assert splits.dev is not None
    assert splits.test is not None
    assert list(splits.train.counts().values()) == list(splits.dev.counts().values()) == [16, 16]
    assert tuple(splits.test.counts().values()) == TEST_COUNTS[name]
    assert splits.train.label_names == splits.task.labels
    assert splits.task is TASKS[name]
    sets = [
        {text for text in part.inputs if str(text).strip()}
        for part in (splits.train, splits.dev, splits.test)
    ]
    assert len(set().union(*sets)) == sum(map(len, sets))


@published
def test_a_blank_sentence_of_the_published_sets_is_kept() -> None:
    train = load_splits(str(PUBLISHED / "cr" / "16-13")).train
    assert (train.inputs[2], train.labels[2]) == (" ", 1)


@published
def test_lone_quotes_and_pairs_are_read_as_they_stand() -> None:
    qnli = load_splits(str(PUBLISHED / "QNLI" / "16-13"))
    assert qnli.train.inputs[0][0] == "Sanskrit is the primary sacred language of which religion?"
    assert '"refined speech"' in str(qnli.train.inputs[0][1])
    assert qnli.train.label_names[qnli.train.labels[0]] == "entailment"
    qqp = load_splits(str(PUBLISHED / "QQP" / "16-13"))
    assert qqp.train.inputs[0] == (
        "Can I develope mobile apps with c++?",
        "How can I develop mobile apps with C++?",
    )


def shown(splits: Splits) -> tuple[str, int]:
    """The set from which the first training text came, and the number of training examples."""
    return str(splits.train.inputs[0]).split()[1], len(splits.train)


def test_every_level_of_the_layout_leads_to_the_same_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [(str(root), "mr"), (str(root / "mr"), None), (str(root / "mr" / "16-13"), None)]
    found = [load_splits(source, name) for source, name in sources]
    monkeypatch.chdir(root / "mr" / "16-13")
    found.append(load_splits("."))
    assert len({splits.train.fingerprint() for splits in found}) == 1
    assert {splits.task.name for splits in found} == {"mr"}
    assert [splits.source for splits in found[:3]] == [str(root / "mr" / "16-13")] * 3
    assert found[0].dev is not None
    assert found[0].dev.inputs[1] == "dev 16-13 1"


def test_the_seed_chooses_the_set_and_a_set_named_outright_wins(root: Path) -> None:
    assert shown(load_splits(str(root / "mr"), seed=21)) == ("16-21", 32)
    assert shown(load_splits(str(root / "mr" / "16-21"), seed=13)) == ("16-21", 32)


@pytest.mark.parametrize(
    ("shots", "expected"), [(None, ("16-13", 32)), (2, ("2-13", 4)), (4, ("16-13", 8)), (20, ("20-13", 40))]
)
def test_the_smallest_set_with_enough_shots_is_taken_and_cut(
    shots: int | None, expected: tuple[str, int], root: Path
) -> None:
    splits = load_splits(str(root), "mr", shots=shots)
    assert shown(splits) == expected
    assert set(splits.train.counts().values()) == {expected[1] // 2}


def test_a_dev_set_without_a_test_set_is_the_test_set(root: Path) -> None:
    splits = load_splits(str(root), "qnli")
    assert splits.dev is None
    assert splits.test is not None
    assert len(splits.test) == 32
    assert splits.train.labels[:2] == (1, 0)


def test_shots_do_not_touch_a_test_set_that_is_there(root: Path) -> None:
    splits = load_splits(str(root / "mr"), shots=4)
    assert splits.dev is not None
    assert splits.dev.counts() == {"0": 4, "1": 4}
    assert all(str(text).startswith("dev") for text in splits.dev.inputs)
    assert splits.test is not None
    assert all(str(text).startswith("test") for text in splits.test.inputs)


def test_a_layout_that_lacks_what_is_asked_for_says_what_it_has(root: Path) -> None:
    with pytest.raises(InputError, match="holds the k-shot tasks QNLI, mr and no task was named; name one"):
        load_splits(str(root))
    with pytest.raises(InputError, match="holds the k-shot tasks QNLI, mr and none for task trec"):
        load_splits(str(root), "trec")
    with pytest.raises(
        InputError, match="has no set of 16 shots for seed 87; found 16-13, 16-21, 2-13, 20-13"
    ):
        load_splits(str(root / "mr"), seed=87)
    with pytest.raises(InputError, match="has no set of 64 shots for seed 13"):
        load_splits(str(root / "mr"), shots=64)
    with pytest.raises(InputError, match=r"the label '0' has 16 example.*fewer than the 17 shots"):
        load_splits(str(root / "mr" / "16-13"), shots=17)
    (root / "mr" / "16-13" / "train.csv").unlink()
    with pytest.raises(InputError, match=r"16-13 has no train file; add train.csv"):
        load_splits(str(root / "mr" / "16-13"))
    write_table(root / "mr" / "16-21" / "train.tsv", ("label", "text"))
    with pytest.raises(
        InputError, match=r"holds train.csv and train.tsv; expected one file for the train part"
    ):
        load_splits(str(root / "mr"), seed=21)


def test_a_task_that_does_not_fit_the_folder_is_refused(root: Path) -> None:
    with pytest.raises(
        InputError, match="has the columns '0', 'train 16-13 0'; expected the text in 'sentence'"
    ):
        load_splits(str(root / "mr" / "16-13"), "sst2")


def test_the_layout_serves_tasks_of_ones_own(tmp_path: Path) -> None:
    write_table(tmp_path / "mine" / "1-13" / "train.csv", ("up", "higher"), ("down", "lower"))
    write_table(tmp_path / "mine" / "1-13" / "test.csv", ("down", "under"))
    splits = load_splits(str(tmp_path / "mine"), shots=1)
    assert splits.task.labels == ("down", "up")
    assert splits.train.inputs == ("higher", "lower")


@pytest.mark.parametrize(
    ("name", "suffix", "header", "row", "inputs"),
    [
        (
            "mnli",
            ".tsv",
            ("index", "sentence1", "sentence2", "gold_label"),
            ("7", "a", "b", "neutral"),
            ("a", "b"),
        ),
        (
            "snli",
            ".tsv",
            ("index", "sentence1", "sentence2", "gold_label"),
            ("7", "a", "b", "neutral"),
            ("a", "b"),
        ),
        (
            "rte",
            ".tsv",
            ("index", "sentence1", "sentence2", "label"),
            ("7", "a", "b", "entailment"),
            ("a", "b"),
        ),
        (
            "mrpc",
            ".tsv",
            ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
            ("1", "5", "6", "a", "b"),
            ("a", "b"),
        ),
        ("cola", ".tsv", None, ("gj04", "1", "", "a"), "a"),
        ("sst5", ".csv", None, ("1", "a"), "a"),
        ("trec", ".csv", None, ("1", "a"), "a"),
        ("mpqa", ".csv", None, ("1", "a"), "a"),
        ("ag_news", ".csv", None, ("2", "title", "a"), "a"),
    ],
)
def test_the_columns_of_the_other_published_tasks_are_known(
    name: str,
    suffix: str,
    header: tuple[str, ...] | None,
    row: tuple[str, ...],
    inputs: str | tuple[str, str],
    tmp_path: Path,
) -> None:
    known = TASKS[name]
    setting = tmp_path / known.folder / "16-13"
    columns = header or known.columns
    place = columns.index(known.label_column)
    rows = [(*row[:place], label, *row[place + 1 :]) for label in known.labels]
    write_table(setting / f"train{suffix}", *([header] if header else []), *rows)
    matched = "dev_matched" if name == "mnli" else "dev"
    write_table(setting / f"{matched}{suffix}", *([header] if header else []), row)
    splits = load_splits(str(tmp_path), name)
    assert splits.train.inputs == (inputs,) * len(known.labels)
    assert splits.train.labels == tuple(range(len(known.labels)))
    assert splits.test is not None
    assert splits.test.inputs == (inputs,)
