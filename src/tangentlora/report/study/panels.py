"""What the figures of a study share: one panel per task, the same signs everywhere, bands over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import COLOURS, DASHES, GRID, INK, MARKERS, Style, blank
from tangentlora.report.study.results import Group, Study
from tangentlora.report.study.series import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CERTIFIED = "certified optimum"
FULL = "full fine-tuning"
FULL_STYLE = Style(INK, "D", (0, (4, 1.5, 1, 1.5)))

# Six signs of the canvas and two more, for ranks 1 to 128.
_COLOURS = (*COLOURS, "#6f4e9c", "#7d5a35")
_MARKERS = (*MARKERS, "p", "<")
_DASHES = (*DASHES, (0, (5, 1.4, 1.4, 1.4, 1.4, 1.4)), (0, (2.4, 2.4)))


def rank_styles(study: Study) -> dict[int, Style]:
    """Return the style of each LoRA rank, the same in every figure of the study."""
    ranks = sorted({*study.ranks("lora"), *study.ranks("published")})
    return {
        r: Style(_COLOURS[i % 8], _MARKERS[i % 8], _DASHES[(i + i // 8) % 8]) for i, r in enumerate(ranks)
    }


def runs_of(study: Study) -> list[tuple[str, str, int | None, Style]]:
    """Return label, variant, rank and style of each LoRA rank and of full fine-tuning."""
    signs = rank_styles(study)
    runs: list[tuple[str, str, int | None, Style]] = [
        (f"LoRA r={rank}", "lora", rank, signs[rank]) for rank in study.ranks()
    ]
    if any(cell.variant == "full" for case in study.cases for cell in case.cells):
        runs.append((FULL, "full", None, FULL_STYLE))
    return runs


def multiples(groups: Sequence[Group], **more: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with a titled panel for each group, and those panels."""
    columns = {1: 1, 2: 2, 4: 2}.get(len(groups), 3)
    rows = -(-len(groups) // columns)
    figure, axes = blank(
        3.9 if len(groups) == 1 else 0.9 + 2.3 * rows + 0.5 * (rows == 1), columns, rows, **more
    )
    for ax in axes[len(groups) :]:
        ax.set_visible(False)
    for ax, group in zip(axes, groups, strict=False):
        ax.set_title(group.label)
    return figure, axes[: len(groups)]


def multiples_and_one(groups: Sequence[Group]) -> tuple[Figure, list[Axes], Axes]:
    """Return a figure with a titled panel for each group, those panels, and one in the last row's rest."""
    n = len(groups) + 1
    columns = {2: 2, 4: 2}.get(n, 3)
    rows = -(-n // columns)
    figure, axes = blank(0.6 + 2.3 * rows + 0.6 * (rows == 1), columns, rows)
    for ax in axes[len(groups) :]:
        ax.remove()
    grid = axes[0].get_gridspec()
    assert grid is not None  # made by subplots
    place = grid[rows - 1, len(groups) % columns :]
    for i, (ax, group) in enumerate(zip(axes, groups, strict=False)):
        ax.set_title(group.label)
        ax.tick_params(labelleft=i % columns == 0)
    return figure, axes[: len(groups)], figure.add_subplot(place)


def draw_band(ax: Axes, band: Band, label: str, style: Style, i: int, count: int) -> None:
    """Draw the mean curve and, over two seeds or more, its band; the later of `count` are thinner."""
    if band.n > 1:
        faint: dict[str, Any] = {"color": style.colour, "alpha": min(0.18, 0.5 / count), "linewidth": 0}
        ax.fill_between(band.epochs, band.low, band.high, zorder=1.5, **faint)
    # Shifted markers and wider lines below keep apart what lies on each other.
    markevery: Any = ((0.06 + 0.23 * i / count) % 0.23, 0.23) if len(band.epochs) > 12 else None
    width = 1.2 + 0.12 * (count - i)
    ax.plot(band.epochs, band.mean, label=label, linewidth=width, **style.line(markevery))


def label_axes(figure: Figure, axes: Sequence[Axes], x: str, y: str) -> None:
    """Name both axes once for all panels."""
    if len(axes) == 1:
        axes[0].set_xlabel(x)
        axes[0].set_ylabel(y)
    else:
        figure.supxlabel(x, fontsize=9, color=INK)
        figure.supylabel(y, fontsize=9, color=INK)


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Name the signs once: above the panels, or beside a single one where they are many."""
    handles = {text: sign for ax in axes for sign, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if not handles:
        return
    place: dict[str, Any] = {"loc": "outside right upper"}
    if len(axes) > 1 or len(handles) < 4:
        place = {
            "loc": "outside upper left",
            "ncols": min(len(handles), 5),
            "columnspacing": 1.4,
            "fontsize": 8.5,
        }
    figure.legend(list(handles.values()), list(handles), **place)


def rank_axis(axes: Iterable[Axes], ranks: Sequence[int], full: bool) -> None:
    """Label the places 0, 1, … with LoRA ranks and the last with full fine-tuning, set apart."""
    places = [*map(float, range(len(ranks))), *([len(ranks) + 0.4] if full else [])]
    for ax in axes:
        ax.set_xticks(places, [*map(str, ranks), *(["full"] if full else [])], fontsize=8.5)
        ax.set_xlim(-0.6, max(places) + 0.7)
        ax.grid(visible=False, axis="x")
        if full and ranks:
            ax.axvline(len(ranks) - 0.3, color=GRID, linewidth=1.4, zorder=0)


def seeds(groups: Sequence[Group]) -> str:
    """Return `n = 3 seeds`, or the range where the tasks have different numbers."""
    counts = sorted({len(group.cases) for group in groups})
    if counts == [1]:
        return "one seed"
    return f"n = {counts[0]} seeds" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} seeds by task"


def over_seeds(groups: Sequence[Group], shown: str = "bands") -> str:
    """Return the sentence on what was averaged over how many seeds, for a caption."""
    n = seeds(groups)
    return "One seed." if n == "one seed" else f"Means over {n}, {shown} of ± one standard deviation."
