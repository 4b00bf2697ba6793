"""What the figures of a study share: one panel per task, the same signs everywhere, bands over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import COLOURS, DASHES, GRID, INK, MARKERS, Style, blank
from tangentlora.report.study.results import Group, Study
from tangentlora.report.study.series import Band
from tangentlora.report.wording import listing, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CERTIFIED = "certified optimum"
FULL: dict[str, tuple[str, str, Style]] = {
    "full": ("full fine-tuning", "full", Style(INK, "D", (0, (4, 1.5, 1, 1.5)))),
    "full-plain": ("full fine-tuning, plain steps", "plain", Style(INK, "d", (0, (1, 1.2)))),
}
"""Full fine-tuning, accelerated and by plain steps: in words, on an axis, and its style."""

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
    return [*runs, *((FULL[variant][0], variant, None, FULL[variant][2]) for variant in full_of(study))]


def full_of(study: Study) -> list[str]:
    """Return the variants of full fine-tuning that the study has."""
    found = {cell.variant for case in study.cases for cell in case.cells}
    return [variant for variant in FULL if variant in found]


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


def rank_axis(axes: Iterable[Axes], study: Study) -> None:
    """Label the places 0, 1, … with LoRA ranks and the last with full fine-tuning, set apart."""
    ranks, full = study.ranks(), [FULL[variant][1] for variant in full_of(study)]
    places = [*map(float, range(len(ranks))), *(len(ranks) + 0.4 + i for i in range(len(full)))]
    for ax in axes:
        ax.set_xticks(places, [*map(str, ranks), *full], fontsize=8.5)
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
    """Return the sentences on λ and on what was averaged over how many seeds, for a caption."""
    n = seeds(groups)
    said = "One seed." if n == "one seed" else f"Means over {n}, {shown} of ± one standard deviation."
    lams = list(dict.fromkeys(group.lam for group in groups if group.lam is not None))
    return f"λ = {plain(lams[0])}. {said}" if len(lams) == 1 else said


def learning_rates(groups: Sequence[Group], runs: Sequence[tuple[str, int | None]]) -> str:
    """Return the sentence on the learning rates at the end of the runs, empty where none is known."""
    found: dict[str, list[float]] = {}
    for variant, rank in runs:
        name = FULL[variant][0] if variant in FULL else "LoRA"
        rates = [cell.learning_rate for group in groups for _, cell in group.cells(variant, rank)]
        found.setdefault(name, []).extend(rate for rate in rates if rate is not None)
    told = [f"{name} {_span(rates)}" for name, rates in found.items() if rates]
    return f" Learning rates at the end: {listing(told)}." if told else ""


def _span(rates: Sequence[float]) -> str:
    low, high = (plain(float(f"{rate:.3g}")) for rate in (min(rates), max(rates)))
    return low if low == high else f"{low} to {high}"
