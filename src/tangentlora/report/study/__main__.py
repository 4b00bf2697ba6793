"""Fill a document with the tables and figures of committed results.

`python -m tangentlora.report.study RESULTS DOCUMENT` takes every folder of RESULTS that holds a results.json,
puts its blocks between the markers of DOCUMENT, and its figures as SVG beside it, in `figures/STUDY`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tangentlora.errors import InputError
from tangentlora.report.folder import RunFolder
from tangentlora.report.study.document import fill, marked, results_blocks
from tangentlora.report.study.figures import NAMES, draw_study
from tangentlora.report.study.reading import read_study


def fill_page(results: Path, document: Path) -> str:
    """Write the figures that the document shows, and return its text with every block filled.

    Raises InputError where results or markers are wrong; see `fill`.
    """
    text = document.read_text(encoding="utf-8")
    wanted = marked(text)
    beside = RunFolder(document.parent)
    blocks: dict[str, str] = {}
    for folder in sorted(path.parent for path in results.glob("*/results.json")):
        study = read_study(folder)
        shown = [name for name in NAMES if f"{study.name}-figure-{name}" in wanted]
        pictures = draw_study(study, shown)
        blocks |= results_blocks(folder, pictures=pictures)
        for picture in pictures:
            beside.write_text(f"figures/{study.name}/{picture.name}.svg", picture.svg)
    return fill(text, {name: block for name, block in blocks.items() if name in wanted})


def main(arguments: Sequence[str]) -> int:
    """Fill the document in place; return 2 with one line on stderr for what is wrong."""
    if len(arguments) != 2:
        print("usage: python -m tangentlora.report.study RESULTS DOCUMENT", file=sys.stderr)
        return 2
    results, document = map(Path, arguments)
    try:
        text = fill_page(results, document)
    except (InputError, OSError) as error:
        print("tangentlora:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    RunFolder(document.parent).write_text(document.name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
