"""The blocks of a document, where they go, and the tables for a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.study import made_studies as made
from tangentlora.errors import InputError
from tangentlora.report.study import fill, results_blocks, study_summary

PAGE = (
    "# Results\n\n<!-- begin a -->\nold\n<!-- end a -->\n\nbetween\n\n<!-- begin b -->\n<!-- end b -->\nend\n"
)


def test_blocks_replace_what_stands_between_their_markers() -> None:
    filled = fill(PAGE, {"a": "new \\1\n", "b": "| x |"})
    assert filled == (
        "# Results\n\n<!-- begin a -->\n\nnew \\1\n\n<!-- end a -->\n\nbetween\n\n"
        "<!-- begin b -->\n\n| x |\n\n<!-- end b -->\nend\n"
    )
    assert fill(filled, {"a": "new \\1\n", "b": "| x |"}) == filled
    assert fill("nothing", {}) == "nothing"


@pytest.mark.parametrize(
    ("document", "blocks", "message"),
    [
        (PAGE, {"a": ""}, "got a marker of block 'b', expected one of a; remove the marker"),
        (PAGE, {"a": "", "b": "", "c": ""}, "got a document without markers for c, expected a place"),
        ("<!-- begin a -->", {"a": ""}, "got the marker <!-- begin a --> out of place"),
        ("<!-- end a -->\n<!-- begin a -->", {"a": ""}, "got the marker <!-- end a --> out of place"),
        ("<!-- begin a -->\n<!-- begin b -->", {"a": ""}, "got the marker <!-- begin b --> out of place"),
        ("<!-- begin a -->\n<!-- end b -->", {"a": ""}, "got the marker <!-- end b --> out of place"),
        (PAGE.replace(" b ", " a "), {"a": ""}, "got the marker <!-- end a --> out of place"),
    ],
)
def test_markers_that_do_not_fit_are_refused(document: str, blocks: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        fill(document, blocks)
    assert str(error.value).startswith(message)


def test_a_study_fills_a_document(tmp_path: Path) -> None:
    made.write(tmp_path, made.study(("mr",), (13,), ranks=(1, 8)))
    blocks = results_blocks(tmp_path)
    tables = ["cases", "claims", "epochs", "certificates", "worth", "wins", "published"]
    figures = ["loss", "distance", "accuracy", "trade-off", "optimality", "singular-values", "published"]
    names = [*tables, *(f"figure-{name}" for name in [*figures, "published-answers"])]
    assert list(blocks) == [f"made-{name}" for name in names]
    assert blocks["made-figure-loss"].startswith("![Line charts of the objective")
    assert "](figures/made/loss.svg)" in blocks["made-figure-loss"]
    assert r"where P\* is the certified optimum" in blocks["made-figure-distance"]
    assert "Tasks: mr. Seeds: 13. λ: 0.01. Training examples: 32 per case." in blocks["made-cases"]
    page = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in blocks)
    assert blocks["made-worth"].strip() in fill(page, blocks)


def test_a_study_without_a_variant_has_no_block_of_it(tmp_path: Path) -> None:
    made.write(tmp_path, made.without(made.study(("mr",), (13,), ranks=(8,)), "published", "lora"))
    blocks = results_blocks(tmp_path, "../made")
    assert not [name for name in blocks if "published" in name]
    assert "](../made/loss.svg)" in blocks["made-figure-loss"]


def test_the_summary_is_the_title_and_the_tables(tmp_path: Path) -> None:
    made.write(tmp_path, made.study(("mr",), ranks=(8,)))
    lines = study_summary(tmp_path).splitlines()
    assert lines[0] == "Six tasks, made up: 1 task, 3 seeds, 27 cells. λ = 0.01."
    assert lines[2].startswith("| relative excess, mean (largest)")
    assert max(map(len, lines)) < 150
    with pytest.raises(InputError, match="expected the folder of a study"):
        study_summary(tmp_path / "nowhere")
