"""Which rows train, choose and test: everything given trains unless it is said otherwise, and it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tangentlora.data import Splits, check_data, load_splits
from tangentlora.errors import InputError


def write(path: Path, n: int = 10) -> str:
    """Write n texts of label `a` and n of label `b` that tell the file they are in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{path.stem} {i},{'ab'[i % 2]}\n" for i in range(2 * n))
    path.write_text("text,label\n" + rows)
    return str(path)


def sizes(splits: Splits) -> dict[str, int]:
    return {part: len(examples) for part, examples in splits.parts.items()}


def test_all_rows_of_a_file_are_for_training(tmp_path: Path) -> None:
    splits = load_splits(write(tmp_path / "data.csv"))
    assert sizes(splits) == {"train": 20}
    assert splits.reading.origins == {"train": f"all of {tmp_path / 'data.csv'}"}


def test_a_fraction_is_held_out_when_asked_for(tmp_path: Path) -> None:
    splits = load_splits(write(tmp_path / "data.csv"), test_fraction=0.3)
    assert splits.test is not None
    assert sizes(splits) == {"train": 14, "test": 6}
    assert splits.test.counts() == {"a": 3, "b": 3}
    assert "0.3 of each label" in splits.reading.origins["test"]


def test_further_files_are_the_test_and_the_dev_set(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv")
    splits = load_splits(
        source, test_data=write(tmp_path / "held.csv", 3), dev_data=write(tmp_path / "choose.csv", 2)
    )
    assert splits.dev is not None
    assert splits.test is not None
    assert sizes(splits) == {"train": 20, "dev": 4, "test": 6}
    assert splits.test.inputs[0] == "held 0"
    assert splits.dev.inputs[0] == "choose 0"
    assert splits.reading.origins["test"] == str(tmp_path / "held.csv")
    alone = load_splits(source, dev_data=str(tmp_path / "choose.csv"))
    assert sizes(alone) == {"train": 20, "dev": 4}  # a dev set that was named as one stays one


def test_test_rows_given_replace_those_of_the_source_and_that_is_told(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / "d" / f"{part}.csv")
    splits = load_splits(str(tmp_path / "d"), test_data=write(tmp_path / "mine.csv", 1))
    assert splits.test is not None
    assert splits.test.inputs == ("mine 0", "mine 1")
    (note,) = splits.reading.notes
    assert note == f"The test rows of {tmp_path / 'd' / 'test.csv'} are not used, since others are given."


def test_a_folder_of_parts_given_for_testing_has_its_test_part_taken(tmp_path: Path) -> None:
    for part, n in (("train", 4), ("test", 2)):
        write(tmp_path / "other" / f"{part}.csv", n)
    splits = load_splits(write(tmp_path / "data.csv"), test_data=str(tmp_path / "other"))
    assert splits.test is not None
    assert splits.test.inputs[0] == "test 0"
    with pytest.raises(InputError, match=r"has the parts train, test; expected one of dev rows"):
        load_splits(str(tmp_path / "data.csv"), dev_data=str(tmp_path / "other"))


def test_labels_of_the_test_rows_are_those_of_the_training_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv")
    (tmp_path / "test.csv").write_text("text,label\nx,b\ny,a\n")
    splits = load_splits(source, test_data=str(tmp_path / "test.csv"))
    assert splits.test is not None
    assert splits.test.labels == (1, 0)  # in the order of the training labels, not of their own
    (tmp_path / "test.csv").write_text("text,label\nx,c\n")
    with pytest.raises(InputError, match=r"row 2 of .*test.csv has the label 'c'; expected one of a, b"):
        load_splits(source, test_data=str(tmp_path / "test.csv"))


def test_two_sources_of_test_rows_are_one_too_many(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / "d" / f"{part}.csv")
    with pytest.raises(InputError, match=r"got a test fraction of 0.25 for .*, which has a test set"):
        load_splits(str(tmp_path / "d"), test_fraction=0.25)
    with pytest.raises(InputError, match=r"which leaves what the shots do not take for testing"):
        load_splits(str(tmp_path / "d" / "train.csv"), test_fraction=0.25, shots=2)


@pytest.mark.parametrize("setting", ["16-13", "."])
def test_a_dev_part_that_serves_as_the_test_set_is_told(setting: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / setting
    for part in ("train", "dev"):
        write(folder / f"{part}.csv", 2)
    splits = load_splits(str(folder))
    assert sizes(splits) == {"train": 4, "test": 4}
    (warning,) = check_data(splits).warnings()
    assert warning.startswith("There is no test set: ")
    assert warning.endswith("dev.csv serves as one, so that there is no dev set.")
    fraction = load_splits(str(folder), test_fraction=0.5)
    assert sizes(fraction) == {"train": 2, "dev": 4, "test": 2}  # then the dev part stays what it is


def test_what_shots_leave_over_is_told(tmp_path: Path) -> None:
    for part, n in (("train", 9), ("test", 3)):
        write(tmp_path / "d" / f"{part}.csv", n)
    splits = load_splits(str(tmp_path / "d"), shots=2)
    assert sizes(splits) == {"train": 4, "dev": 4, "test": 6}
    assert splits.reading.notes == (f"10 other rows of {tmp_path / 'd' / 'train.csv'} are not used.",)


def test_a_test_set_that_is_cut_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv")
    splits = load_splits(source, test_data=write(tmp_path / "held.csv", 9), test_limit=5)
    assert sizes(splits) == {"train": 20, "test": 5}
    assert splits.reading.origins["test"].startswith("5 of 18 rows, drawn by seed 42: ")


def test_further_rows_may_be_recordings_too(tmp_path: Path) -> None:
    from small_runs import write_sounds

    one, two = write_sounds(tmp_path / "one"), write_sounds(tmp_path / "two", each=2)
    splits = load_splits(str(one), test_data=str(two), sampling_rate=8000)
    assert splits.test is not None
    assert sizes(splits) == {"train": 12, "test": 4}
    assert {wave.shape for wave in splits.test.inputs} == {(400,)}


def test_an_empty_class_folder_is_told(tmp_path: Path) -> None:
    from small_runs import write_sounds

    folder = write_sounds(tmp_path / "one")
    (folder / "ugly").mkdir()
    splits = load_splits(str(folder))
    assert splits.task.labels == ("bad", "good")
    assert splits.reading.notes == (f"{folder / 'ugly'} holds no image or recording and is no class.",)
