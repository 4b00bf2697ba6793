"""Hub data sets, with the download replaced by data made here: parts, label names, media and failures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from scipy.io import wavfile

from tangentlora.data import load_splits
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


def test_a_sole_part_is_divided_whatever_its_name(offer: Offer) -> None:
    offer(DatasetDict(everything=sentences([0, 1] * 8)))
    splits = load_splits("owner/name", shots=2)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (4, 12)


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
    offer(DatasetDict(train=sentences([0, -1], ["a", "b"])))
    with pytest.raises(InputError, match=r"row 2 of owner/name \(train\) has no label"):
        load_splits("owner/name")
    offer(DatasetDict(train=sentences([0, 1], text="memo")))
    with pytest.raises(InputError, match="owner/name has the columns 'memo', 'label'; expected the text in"):
        load_splits("owner/name")
