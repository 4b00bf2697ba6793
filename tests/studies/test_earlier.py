"""Runs of earlier versions, which do not say what they held out, are read as they were made."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_runs import write_images, write_sentences
from tangentlora.studies.earlier import completed


def held_out(data: Path | str, **more: object) -> object:
    return completed({"data": str(data)} | more)["test_fraction"]


def test_a_table_had_a_quarter_held_out_unless_shots_were_drawn(tmp_path: Path) -> None:
    table = write_sentences(tmp_path / "data.csv")
    assert held_out(table) == 0.25
    assert held_out(table, shots=None) == 0.25
    assert held_out(table, shots=4) == 0.0


def test_a_folder_had_unless_it_has_sets_of_its_own(tmp_path: Path) -> None:
    assert held_out(write_images(tmp_path / "images")) == 0.25
    (tmp_path / "tables").mkdir()
    write_sentences(tmp_path / "tables/train.csv")
    assert held_out(tmp_path / "tables") == 0.25
    write_sentences(tmp_path / "tables/validation.csv")
    assert held_out(tmp_path / "tables") == 0.0


@pytest.mark.parametrize("place", ["SST-2/16-13", "SST-2", "."])
def test_shots_on_disk_and_hub_sets_had_their_own(tmp_path: Path, place: str) -> None:
    (tmp_path / "SST-2/16-13").mkdir(parents=True)
    write_sentences(tmp_path / "SST-2/16-13/train.csv")
    write_sentences(tmp_path / "SST-2/16-13/test.csv")
    assert held_out(tmp_path / place) == 0.0
    assert held_out("owner/name") == held_out("support") == 0.0


def test_what_is_recorded_stays() -> None:
    assert completed({"data": "a.csv", "test_fraction": 0.1}) == {"data": "a.csv", "test_fraction": 0.1}
    assert completed({"data": "a.csv", "test_data": "b.csv"}) == {"data": "a.csv", "test_data": "b.csv"}
