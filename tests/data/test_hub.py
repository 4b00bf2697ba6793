"""Hub data sets, with the download replaced by data made here: parts, label names, media and failures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from scipy.io import wavfile

from tangentlora.data import TASKS, load_splits
from tangentlora.errors import InputError

Offer = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Make the hub give these parts, or raise; the list that is returned records what it was asked."""

    def set_offer(answer: DatasetDict | Exception) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []

        def load_dataset(*args: Any, **options: Any) -> DatasetDict:
            asked.append((*args, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return set_offer


def sentences(labels: list[int], names: list[str] | None = None, text: str = "text") -> Dataset:
    data = Dataset.from_dict({text: [f"t{i}" for i in range(len(labels))], "label": labels})
    return data if names is None else data.cast_column("label", ClassLabel(names=names))


def test_the_parts_subset_and_revision_are_taken_as_named(offer: Offer) -> None:
    parts = DatasetDict(
        unsupervised=sentences([0]), test=sentences([1]), train=sentences([0, 1]), validation=sentences([0])
    )
    asked = offer(parts)
    splits = load_splits("owner/name:subset", revision="abc")
    assert asked == [("owner/name", "subset", {"revision": "abc"})]
    assert splits.dev is not None
    assert splits.test is not None
    assert (splits.train.labels, splits.dev.labels, splits.test.labels) == ((0, 1), (0,), (1,))
    assert splits.source == "owner/name:subset"


def test_labels_go_by_name_and_a_part_of_unknown_labels_is_left_out(offer: Offer) -> None:
    names = ["up", "down"]
    offer(
        DatasetDict(
            train=sentences([0, 1], names), validation=sentences([1], names), test=sentences([-1], names)
        )
    )
    splits = load_splits("owner/name")
    assert splits.task.labels == ("down", "up")
    assert splits.train.labels == (1, 0)
    assert splits.dev is None
    assert splits.test is not None
    assert splits.test.labels == (0,)


def test_a_task_takes_names_or_numbers_as_its_labels_are(offer: Offer) -> None:
    offer(DatasetDict(train=sentences([0, 1], ["negative", "positive"])))
    assert load_splits("owner/sst2", "sst2", test_fraction=0.0).train.label_names == ("0", "1")
    pairs = sentences([0, 1], ["entailment", "not_entailment"], "question").add_column("sentence", ["a", "b"])
    offer(DatasetDict(train=pairs))
    train = load_splits("owner/qnli", "qnli", test_fraction=0.0).train
    assert train.inputs == (("t0", "a"), ("t1", "b"))
    assert train.labels == (1, 0)  # the set counts entailment as 0, the task not_entailment


HUB = {
    "nyu-mll/glue:sst2": ("sst2", ("sentence",), "label", ("negative", "positive"), (0, 1)),
    "nyu-mll/glue:qnli": (
        "qnli",
        ("question", "sentence"),
        "label",
        ("entailment", "not_entailment"),
        (1, 0),
    ),
    "nyu-mll/glue:rte": (
        "rte",
        ("sentence1", "sentence2"),
        "label",
        ("entailment", "not_entailment"),
        (1, 0),
    ),
    "nyu-mll/glue:qqp": ("qqp", ("question1", "question2"), "label", ("not_duplicate", "duplicate"), (0, 1)),
    "nyu-mll/glue:mrpc": (
        "mrpc",
        ("sentence1", "sentence2"),
        "label",
        ("not_equivalent", "equivalent"),
        (0, 1),
    ),
    "nyu-mll/glue:cola": ("cola", ("sentence",), "label", ("unacceptable", "acceptable"), (0, 1)),
    "nyu-mll/glue:mnli": (
        "mnli",
        ("premise", "hypothesis"),
        "label",
        ("entailment", "neutral", "contradiction"),
        (2, 1, 0),
    ),
    "stanfordnlp/snli": (
        "snli",
        ("premise", "hypothesis"),
        "label",
        ("entailment", "neutral", "contradiction"),
        (2, 1, 0),
    ),
    "cornell-movie-review-data/rotten_tomatoes": ("mr", ("text",), "label", ("neg", "pos"), (0, 1)),
    "fancyzhx/ag_news": (
        "ag_news",
        ("text",),
        "label",
        ("World", "Sports", "Business", "Sci/Tech"),
        (0, 1, 2, 3),
    ),
    "CogComp/trec": (
        "trec",
        ("text",),
        "coarse_label",
        ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"),
        (2, 1, 0, 3, 4, 5),
    ),
}
"""Task, columns and label names of sets on the hub, and the output that each number stands for."""


@pytest.mark.parametrize("source", HUB)
def test_the_sets_of_the_hub_are_labelled_as_the_tasks_are(source: str, offer: Offer) -> None:
    name, texts, column, names, outputs = HUB[source]
    rows = {text: [f"{text} {k}" for k in range(len(names))] for text in texts}
    data = Dataset.from_dict({**rows, column: list(range(len(names)))})
    offer(DatasetDict(train=data.cast_column(column, ClassLabel(names=list(names)))))
    train = load_splits(source, name, test_fraction=0.0).train
    assert train.labels == outputs
    expected = zip(*rows.values(), strict=True)
    assert train.inputs == tuple(row if len(texts) == 2 else row[0] for row in expected)


@pytest.mark.parametrize(
    ("name", "column", "names", "outputs"),
    [
        ("subj", "label", ("objective", "subjective"), (1, 0)),
        ("cr", "label", ("Positive", "Negative"), (1, 0)),
        (
            "sst5",
            "label",
            ("very negative", "negative", "neutral", "positive", "very positive"),
            (0, 1, 2, 3, 4),
        ),
        (
            "trec",
            "label_coarse",
            (
                "description and abstract concepts",
                "entities",
                "abbreviation",
                "human beings",
                "numeric values",
                "locations",
            ),
            (0, 1, 2, 3, 5, 4),
        ),
    ],
)
def test_names_in_a_column_of_their_own_decide_what_the_numbers_mean(
    name: str, column: str, names: tuple[str, ...], outputs: tuple[int, ...], offer: Offer
) -> None:
    numbers = list(range(len(names)))
    rows = {"text": [f"t{k}" for k in numbers], column: numbers, f"{column}_text": list(names)}
    if column != "label":
        rows["label"] = [40 + k for k in numbers]  # the fine labels
    offer(DatasetDict(train=Dataset.from_dict(rows)))
    assert load_splits("SetFit/set", name, test_fraction=0.0).train.labels == outputs


def test_names_beside_the_numbers_serve_without_a_task_and_only_if_each_number_has_one(offer: Offer) -> None:
    rows = {"text": ["t", "u", "v"], "label": [0, 1, 1]}
    offer(DatasetDict(train=Dataset.from_dict({**rows, "label_text": ["up", "down", "down"]})))
    assert load_splits("owner/name", test_fraction=0.0).train.label_names == ("down", "up")
    for names in (["up", "down", "under"], ["up", "", ""], ["up", None, None]):
        offer(DatasetDict(train=Dataset.from_dict({**rows, "label_text": names})))
        assert load_splits("owner/name", test_fraction=0.0).train.label_names == ("0", "1")


def test_names_that_the_task_does_not_know_are_refused_and_not_guessed(offer: Offer) -> None:
    offer(DatasetDict(train=sentences([0, 1], ["OBJ", "SUBJ"])))
    with pytest.raises(
        InputError,
        match="owner/name calls the labels in 'label' OBJ, SUBJ, and task subj knows them as 0, subjective, "
        "1, objective; choose another label column",
    ):
        load_splits("owner/name", "subj")
    nameless = replace(TASKS["subj"], synonyms=())
    assert load_splits("owner/name", nameless, test_fraction=0.0).train.labels == (0, 1)


def test_rows_without_a_label_are_left_out_where_labels_have_names(offer: Offer) -> None:
    names = ["up", "down", "aside"]
    offer(DatasetDict(train=sentences([0, -1, 1, 2, 0], names), test=sentences([-1])))
    splits = load_splits("owner/name")
    assert (splits.train.inputs, splits.train.labels) == (("t0", "t2", "t3", "t4"), (2, 1, 0, 2))
    assert splits.reading.notes == (
        "owner/name (test) has no labels and is left out.",
        "owner/name (train) has rows without a label, which are left out: 1.",
    )
    with pytest.raises(InputError, match=r"row 4 of owner/name \(train\) has the label 'aside'"):
        load_splits("owner/name", replace(TASKS["mr"], synonyms=(("up",), ("down",))))


def test_minus_one_is_a_label_among_numbers_without_names(offer: Offer) -> None:
    offer(DatasetDict(train=sentences([1, -1]), validation=sentences([-1, 1]), test=sentences([-1, -1])))
    splits = load_splits("owner/name")
    assert splits.train.label_names == ("-1", "1")
    assert splits.test is not None
    assert splits.test.labels == (0, 1)


def test_shots_from_a_set_with_hidden_test_labels(offer: Offer) -> None:
    """The validation part is the test set, as in the published sets, and the dev set comes from training."""
    pairs = {
        part: Dataset.from_dict(
            {
                "premise": [f"{part} {i}" for i in range(len(labels))],
                "hypothesis": ["h"] * len(labels),
                "label": labels,
            }
        ).cast_column("label", ClassLabel(names=["entailment", "neutral", "contradiction"]))
        for part, labels in {
            "train": [0, 1, 2] * 40,
            "validation_matched": [0, 1, 2] * 5,
            "validation_mismatched": [0, 1, 2],
            "test_matched": [-1] * 6,
            "test_mismatched": [-1] * 6,
        }.items()
    }
    offer(DatasetDict(pairs))
    splits = load_splits("nyu-mll/glue:mnli", "mnli", shots=16, seed=21)
    assert splits.dev is not None
    assert splits.test is not None
    assert list(splits.train.counts().values()) == list(splits.dev.counts().values()) == [16] * 3
    assert {text.split()[0] for text, _ in splits.train.inputs + splits.dev.inputs} == {"train"}
    assert not set(splits.train.inputs) & set(splits.dev.inputs)
    assert splits.test.inputs == tuple((f"validation_matched {i}", "h") for i in range(15))


def test_a_sole_part_is_divided_whatever_its_name(offer: Offer) -> None:
    offer(DatasetDict(everything=sentences([0, 1] * 8)))
    splits = load_splits("owner/name", shots=2)
    assert splits.dev is not None
    assert splits.test is not None
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [4, 4, 8]


def test_images_are_found_and_decoded(offer: Offer) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [image.new("L", (3, 2), shade) for shade in (0, 255)]
    data = Dataset.from_dict({"image": pictures, "labels": [1, 0]}).cast_column("image", datasets.Image())
    offer(DatasetDict(train=data.cast_column("labels", ClassLabel(names=["b", "a"]))))
    train = load_splits("owner/pictures", test_fraction=0.0).train
    assert (train.modality, train.label_names, train.labels) == ("image", ("a", "b"), (0, 1))
    assert [picture.getpixel((0, 0)) for picture in train.inputs] == [(0, 0, 0), (255, 255, 255)]


def recordings(*raw: bytes | None) -> DatasetDict:
    cells = [None if one is None else {"bytes": one, "path": "x.wav"} for one in raw]
    data = Dataset.from_dict({"audio": cells, "text": ["said"] * len(raw), "label": list(range(len(raw)))})
    return DatasetDict(train=data.cast_column("audio", datasets.Audio()))


def wave() -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 8000, np.array([0, 16384, -16384], dtype=np.int16))
    return file.getvalue()


def test_recordings_win_over_their_transcripts_and_are_resampled(offer: Offer) -> None:
    offer(recordings(wave(), wave()))
    train = load_splits("owner/speech", test_fraction=0.0).train
    assert (train.modality, train.sampling_rate) == ("audio", 8000)
    assert np.array_equal(train.inputs[0], np.array([0, 0.5, -0.5], dtype=np.float32))
    assert len(load_splits("owner/speech", test_fraction=0.0, sampling_rate=16000).train.inputs[0]) == 6
    assert load_splits("owner/speech", text_column="text", test_fraction=0.0).train.inputs == ("said", "said")


@pytest.mark.parametrize(("raw", "reason"), [(b"RIFF", ""), (None, "the cell is empty")])
def test_a_recording_that_cannot_be_decoded_is_named_by_its_row(
    raw: bytes | None, reason: str, offer: Offer
) -> None:
    offer(recordings(wave(), raw))
    with pytest.raises(InputError, match=rf"recording in row 2 of owner/speech \(train\) \(.*{reason}"):
        load_splits("owner/speech", test_fraction=0.0)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)\nmore."),
        ValueError("Couldn't reach 'owner/name': config name is missing."),
        RuntimeError("Couldn't reach 'owner/name': dataset scripts are no longer supported"),
        datasets.exceptions.DatasetNotFoundError("Couldn't reach 'owner/name'"),
        datasets.exceptions.DatasetGenerationError("Couldn't reach 'owner/name'"),
    ],
)
def test_a_set_that_the_hub_does_not_give_is_told_in_one_sentence(error: Exception, offer: Offer) -> None:
    offer(error)
    with pytest.raises(
        InputError, match=r"neither a file or folder here nor .* \(Couldn't reach .*download"
    ) as raised:
        load_splits("owner/name")
    assert "\n" not in str(raised.value)


def test_parts_labels_and_columns_that_do_not_serve_are_named(offer: Offer) -> None:
    offer(DatasetDict(one=sentences([0]), two=sentences([1])))
    with pytest.raises(InputError, match="owner/name has the parts one, two and none called train"):
        load_splits("owner/name")
    offer(DatasetDict(train=sentences([0, 2])))
    with pytest.raises(
        InputError, match=r"row 2 of owner/name \(train\) has the label '2'; expected one of 0, 1"
    ):
        load_splits("owner/name", "mr")
    offer(DatasetDict(train=Dataset.from_dict({"text": ["t", "u"], "label": ["a", None]})))
    with pytest.raises(InputError, match=r"row 2 of owner/name \(train\) has no label"):
        load_splits("owner/name")
    offer(DatasetDict(train=sentences([0, 1], text="memo")))
    with pytest.raises(InputError, match="owner/name has the columns 'memo', 'label'; expected the text in"):
        load_splits("owner/name")
