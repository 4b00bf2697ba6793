"""The results page: filled by one command from committed results, and no older than they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from report.study import made_studies as made
from tangentlora.report.study.__main__ import fill_page, main

ROOT = Path(__file__).parents[3]
PAGE = "# Results\n\n<!-- begin made-claims -->\n<!-- end made-claims -->\n"
FIGURE = "<!-- begin made-figure-loss -->\n<!-- end made-figure-loss -->\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "results" / "made").mkdir(parents=True)
    made.write(tmp_path / "results" / "made", made.study(("mr",), (13,), ranks=(1, 8)))
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "results.md"
    document.write_text(PAGE + FIGURE)
    return document


def test_tables_and_figures_that_have_a_place_are_filled_in(page: Path) -> None:
    assert main([str(page.parents[1] / "results"), str(page)]) == 0
    text = page.read_text()
    assert "| LoRA r=8" in text
    assert "](figures/made/loss.svg)" in text
    assert [path.name for path in (page.parent / "figures" / "made").iterdir()] == ["loss.svg"]
    assert fill_page(page.parents[1] / "results", page) == text


def test_a_page_that_asks_for_more_is_refused(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = PAGE + "<!-- begin other-claims -->\n<!-- end other-claims -->\n"
    page.write_text(asked)
    assert main([str(page.parents[1] / "results"), str(page)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tangentlora: got a marker of block 'other-claims'")
    assert error.count("\n") == 1
    assert page.read_text() == asked
    assert main(["one"]) == 2


def test_the_committed_page_shows_the_committed_results(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "results.md", tmp_path / "results.md")
    assert fill_page(ROOT / "results", tmp_path / "results.md") == (ROOT / "docs" / "results.md").read_text()
    for drawn in tmp_path.glob("figures/*/*.svg"):
        committed = ROOT / "docs" / drawn.relative_to(tmp_path)
        assert committed.stat().st_size > 1000, f"{committed} is missing: run make results"
