"""The table for a terminal."""

from __future__ import annotations

from dataclasses import replace

from report import run_folders as made
from tangentlora.report.record import Run
from tangentlora.report.standing import describe_standing
from tangentlora.report.table import comparison_table


def lines(values: dict) -> list[str]:
    return comparison_table(Run.parse(values)).splitlines()


def below(rows: list[str]) -> list[str]:
    """Return the table's own lines, without the headline above it."""
    return rows[rows.index("") + 1 :]


def test_each_run_has_a_line_with_its_numbers() -> None:
    rows = lines(made.demo())
    assert rows[0].startswith("The certified solver found the best answer")
    table = below(rows)
    assert table[3].split() == ["before", "training", "1.180000", "0.560", "0.560"]
    assert table[4].split() == [
        "LoRA",
        "r=1",
        "0.940000",
        "2.5e-1",
        "no",
        "1",
        "500",
        "0.631",
        "0.622",
        "yes",
    ]
    assert table[10].split() == [
        "certified",
        "0.731247",
        "3.1e-10",
        "yes",
        "3",
        "214",
        "0.711",
        "0.699",
        "yes",
    ]
    assert table[0].endswith("held-out accuracy")
    assert table[11] == ""
    assert table[12].startswith("It holds on the real network")


def test_an_answer_that_fits_too_closely_is_the_best_and_no_better() -> None:
    values = made.demo()
    values["runs"] = values["runs"][-1:]
    found = Run.parse(values).answers[0].standing
    assert found is not None
    one = replace(
        found.train, before_accuracy=0.7, linear_accuracy=0.6, real_accuracy=0.59, lost=60, gained=20
    )
    for missed, first in (
        (4, "The certified solver found the best answer: "),
        (40, "The answer does not hold "),
    ):
        sets = {"train": found.train, "test": replace(one, missed=missed, met=3)}
        values["runs"][0]["real_network"] = describe_standing(replace(found, sets=sets))
        rows = lines(values)
        said = " ".join(rows[: rows.index("")])
        assert said.startswith(first)
        assert "its held-out accuracy falls from 0.700 to 0.590 (by chance: p = 8.6e-6)" in said
        assert f"Use a larger λ than {values['configuration']['lam']:g}" in said
        assert ("in the linearised network too (0.600): the fit is too close" in said) is (missed == 4)
        assert ("fit --outer 4" in said) is (missed == 40)
        assert below(rows)[4].split()[-1] == "no"


def test_a_row_that_does_not_hold_says_no_and_the_headline_only_where_it_is_the_answer() -> None:
    values = made.demo()
    values["runs"][0]["real"] |= {"train_loss": 1.3}
    rows = lines(values)
    assert below(rows)[4].split()[-1] == "no"
    assert rows[0].startswith("The certified solver found the best answer")
    assert "The answer of LoRA r=1 does not hold on the real network." in rows
    values["runs"][-1]["real"] |= {"train_loss": 1.3}
    rows = lines(values)
    assert rows[0].startswith("The answer of the certified solver does not hold on the real network: its")
    assert "found the best answer" not in " ".join(rows)
    assert below(rows)[10].split()[-1] == "no"


def test_columns_are_aligned_and_fit_a_hundred_characters() -> None:
    values = made.demo()
    values["runs"][0]["name"] = "a name that is far too long for any table " * 3
    values["runs"][1] |= {"objective": 1.5e12, "relative_gap": -2.3e-12, "epochs": 1_000_000}
    rows = lines(values)
    assert max(map(len, rows)) <= 100
    table = below(rows)
    ends = [len(row[: row.rindex(" ")].rstrip()) for row in table[4:11]]  # of the last column of numbers
    assert len(set(ends)) == 1
    assert len({len(row) for row in table[4:11]}) == 1


def test_without_a_test_set_the_accuracies_are_of_the_training_set() -> None:
    rows = lines(made.run([made.certified()], test_set=False))
    table = below(rows)
    assert table[0].endswith("training accuracy")
    assert table[4].split()[-3:] == ["0.900", "0.900", "yes"]
    assert table[3].split()[-2:] == ["0.580", "0.580"]


def test_a_diverged_run_has_no_numbers_to_show() -> None:
    rows = lines(made.run([made.answer("LoRA r=8", None, rank=8, ranks={})]))
    assert below(rows)[4].split()[:7] == ["LoRA", "r=8", "not", "finite", "–", "no", "–"]
