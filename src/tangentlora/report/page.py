"""A run folder as one HTML page that needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentlora.report import canvas
from tangentlora.report.curves import epochs_within
from tangentlora.report.figures import draw_folder, write_pictures
from tangentlora.report.folder import RunFolder
from tangentlora.report.loading import base_model, loading_code
from tangentlora.report.record import Run
from tangentlora.report.standing import reach_words
from tangentlora.report.templates import render
from tangentlora.report.verdict import TOLERANCES, verdict
from tangentlora.report.wording import short_names

if TYPE_CHECKING:
    from markupsafe import Markup

_THEME = {
    canvas.INK: "var(--ink)",
    canvas.MUTED: "var(--muted)",
    canvas.GRID: "var(--line)",
    canvas.PAPER: "var(--paper)",
    canvas.SHADE: "var(--shade)",
}
"""The figures' neutral colours follow the page's theme, light or dark."""


def write_report(folder: RunFolder) -> Path:
    """Write `figures/` and `report.html` into the folder and return the page's path.

    Raises `InputError` where the folder's files are missing or damaged.
    """
    run, metrics, certificate = folder.read_run(), folder.read_metrics(), folder.read_certificate()
    pictures = draw_folder(folder)
    write_pictures(folder, pictures)
    page = render(
        "page.html.j2",
        run=run,
        main=run.main,
        certificate=certificate,
        layers=short_names(list(run.main.ranks)),
        verdict=verdict(run),
        reach=_reach(run),
        within={a.name: [epochs_within(run, metrics, a.name, t) for t in TOLERANCES] for a in run.answers},
        tolerances=TOLERANCES,
        figures=[(picture, inline(picture)) for picture in pictures],
        folder=shlex.quote(folder.path.resolve().name),
        code=loading_code(folder, run.main, base_model(run)),
        configuration=list(flatten(run.configuration)),
    )
    return folder.write_text("report.html", page)


def _reach(run: Run) -> str | None:
    """Return how far along the main answer's update the real training loss falls, where that is known."""
    found = run.main.standing
    return None if found is None else reach_words(found.reach, found.train.before_loss)


def inline(picture: canvas.Picture) -> Markup:
    """Return the svg element with ids of its own, colours that follow the theme, and its alternative text."""
    from markupsafe import Markup, escape

    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{picture.name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{picture.name}-", svg)
    for colour, name in _THEME.items():
        svg = svg.replace(colour, name)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box and box[0]} role="img" aria-label="{escape(picture.alt)}">'
    return Markup(head + re.sub(r"\s*\n\s*", "\n", svg[svg.index(">") + 1 :]).strip())


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value as words) for nested settings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
