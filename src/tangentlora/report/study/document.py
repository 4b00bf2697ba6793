"""The blocks that a study fills in a document: its tables and the references to its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tangentlora.errors import InputError
from tangentlora.report.canvas import Picture
from tangentlora.report.study.figures import draw_study
from tangentlora.report.study.reading import read_study, read_timings
from tangentlora.report.study.results import Study
from tangentlora.report.study.summary import tables_of
from tangentlora.report.wording import plain

_MARKER = re.compile(r"^<!-- (begin|end) (\S+) -->$", re.MULTILINE)


def results_blocks(
    folder: Path, figures: str | None = None, pictures: Sequence[Picture] | None = None
) -> dict[str, str]:
    """Return block name → Markdown of every table and figure reference that the study has numbers for.

    Names begin with the study's: `minilm-claims`, `minilm-figure-loss`. `figures` is where the document finds
    the SVG files, `figures/` and the study's name unless it is given; `pictures` are those to refer to, all
    of the study unless given. Raises `InputError` where the folder cannot be read.
    """
    study = read_study(folder)
    place = f"figures/{study.name}" if figures is None else figures
    tables = {f"{study.name}-{name}": text for name, text in tables_of(study, read_timings(folder)).items()}
    drawn = draw_study(study) if pictures is None else pictures
    references = {f"{study.name}-figure-{p.name}": _reference(p, place) for p in drawn}
    return {f"{study.name}-cases": _cases(study)} | tables | references


def fill(document: str, blocks: Mapping[str, str]) -> str:
    """Return the document with each block in place of what stands between its two markers.

    A block NAME stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`, which stay. Raises
    `InputError` where the markers are not pairs, name a block that is not given, or lack one that is.
    """
    parts, names, at = [], [], 0
    markers = list(_MARKER.finditer(document))
    if len(markers) % 2:
        raise _unpaired(markers[-1])
    for begin, end in zip(markers[::2], markers[1::2], strict=True):
        name = begin[2]
        if begin[1] != "begin" or end[1] != "end":
            raise _unpaired(end if begin[1] == "begin" else begin)
        if end[2] != name or name in names:
            raise _unpaired(end)
        if name not in blocks:
            raise InputError(
                f"got a marker of block {name!r}, expected one of {', '.join(sorted(blocks))}; remove the "
                "marker or add the results that it shows."
            )
        names.append(name)
        parts += [document[at : begin.end()], f"\n\n{blocks[name].strip()}\n\n"]
        at = end.start()
    missing = sorted(set(blocks) - set(names))
    if missing:
        raise InputError(
            f"got a document without markers for {', '.join(missing)}, expected a place for each block; add "
            f"the lines <!-- begin {missing[0]} --> and <!-- end {missing[0]} -->."
        )
    return "".join([*parts, document[at:]])


def marked(document: str) -> frozenset[str]:
    """Return the names of the blocks that a document has markers for."""
    return frozenset(marker[2] for marker in _MARKER.finditer(document))


def _unpaired(marker: re.Match[str]) -> InputError:
    return InputError(
        f"got the marker {marker[0]} out of place, expected each begin to be followed by the end of the same "
        "name, once for each name; mend the markers."
    )


def _reference(picture: Picture, place: str) -> str:
    alt = picture.alt.replace("[", "(").replace("]", ")")
    caption = picture.caption.replace("*", r"\*")  # P* is no emphasis
    return f"![{alt}]({place}/{picture.name}.svg)\n\n*{picture.title}.* {caption}\n"


def _cases(study: Study) -> str:
    """Return what was run, in a sentence or two."""
    tasks = ", ".join(group.label for group in study.tasks)
    lams = f" λ: {', '.join(map(plain, study.lams))}." if study.lams else ""
    seeds = ", ".join(map(str, sorted({case.seed for case in study.cases})))
    examples = sorted({case.n_train for case in study.cases})
    sizes = f"{examples[0]}" if len(examples) == 1 else f"{examples[0]} to {examples[-1]}"
    return f"{study.about}\n\nTasks: {tasks}. Seeds: {seeds}.{lams} Training examples: {sizes} per case.\n"
