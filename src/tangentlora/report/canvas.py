"""The looks that all figures share, and their way to SVG and PNG: the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangentlora.report.record import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, SHADE = "#1f2328", "#5b6470", "#dde1e6", "#ffffff", "#eef0f3"
"""Text and lines, lesser text, grid, ground, shaded region; the page makes them follow the reader's theme."""

# Okabe and Ito's palette without its yellow, which is too faint for a line, and its black, which is INK.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
MARKERS = ("o", "s", "^", "v", "P", "X")
_SIZES = {"^": 6.5, "v": 6.5, "P": 6.5, "X": 6.5}  # these look smaller than circles and squares of equal size
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 1.6)),
    (0, (1.4, 1.4)),
    (0, (6, 1.6, 1.4, 1.6)),
    (0, (3, 1.4)),
    (0, (9, 1.4, 1.4, 1.4, 1.4, 1.4)),
)

WIDTH = 7.6
"""Inches; the page shows an inch as about 120 pixels."""


@dataclass(frozen=True)
class Style:
    """How one run is drawn everywhere: three signs, each of which tells it apart alone."""

    colour: str
    marker: str
    dashes: Any

    def line(self, markevery: Any = None, **more: Any) -> dict[str, Any]:
        """Return keyword arguments for `Axes.plot`."""
        size = _SIZES.get(self.marker, 5.0)
        signs = {"color": self.colour, "marker": self.marker, "linestyle": self.dashes, "markersize": size}
        return signs | {"markevery": markevery} | more


@dataclass(frozen=True)
class Picture:
    """A drawn figure; `name` is its file name without suffix, `alt` tells it to who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


def styles(run: Run) -> dict[str, Style]:
    """Return each run's style by its name: colours for LoRA ranks, ink for answers of free rank."""
    lora = {
        answer.name: Style(COLOURS[i % 6], MARKERS[i % 6], DASHES[(i + i // 6) % 6])
        for i, answer in enumerate(run.lora)
    }
    free = [answer for answer in run.answers if answer.rank is None]
    if not lora and len(free) == 1:
        return {free[0].name: Style(COLOURS[0], "o", "-")}
    signs = {a.name: Style(INK, "D", (0, (4, 1.5, 1, 1.5))) for a in free}
    return lora | signs | {a.name: Style(INK, "*", "-") for a in free if a.solver == "certified"}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with this project's settings inside the block, whatever the user's own are."""
    import matplotlib

    settings = {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
        "font.size": 9.0,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.titlecolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "lines.linewidth": 1.7,
        "lines.markersize": 5.0,
        "lines.markeredgewidth": 0.6,
        "lines.markeredgecolor": PAPER,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "legend.labelspacing": 0.75,
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "tangentlora",
        "path.simplify": True,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def blank(height: float, columns: int = 1, rows: int = 1, **more: Any) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of the house's width and its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    return figure, [ax for row in axes for ax in row]


def finish(figure: Figure, name: str, title: str, caption: str, alt: str) -> Picture:
    """Return the figure as a picture, without a date or the name of the software in its files."""
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=180, metadata={"Software": None})
    return Picture(name, title, caption, alt, svg.getvalue(), png.getvalue())


def log_ticks(ax: Axes, low: float, high: float) -> None:
    """Give the y axis a logarithmic scale with labelled powers of ten, or numbers where it spans few."""
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from tangentlora.report.wording import power

    ax.set_yscale("log")
    ax.set_ylim(low, high)
    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    step = max(1, -(-(last - first + 1) // 7))
    ticks = [10.0**k for k in range(last, first - 1, -step)]
    wide = len(ticks) > 2
    if not wide:
        ticks = [f * 10.0**k for k in range(first - 1, last + 1) for f in (1, 2, 5)]
    ax.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: power(round(np.log10(y))) if wide else f"{y:g}"))


def epoch_ticks(ax: Axes, epochs: Sequence[int], *, narrow: bool = False) -> None:
    """Give the x axis its scale: logarithmic after the first logged epoch where the epochs span decades.

    A narrow panel has room for fewer labels.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

    positive = [epoch for epoch in epochs if epoch > 0]
    last = max(positive, default=1)
    if last < 50 * min(positive, default=1):
        bins = MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]) if narrow else MaxNLocator(7, integer=True)
        ax.xaxis.set_major_locator(bins)
        ax.set_xlim(-0.015 * last, 1.015 * last)
        return
    first = min(positive)
    ax.set_xscale("symlog", linthresh=first, linscale=0.4)
    factors = (1, 2, 5) if last < 500 * first and not narrow else (1,)
    ticks = [f * 10**k for k in range(9) for f in factors if first <= f * 10**k <= last]
    ax.xaxis.set_major_locator(FixedLocator([0, *ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlim(-0.08 * first, 1.06 * last)
