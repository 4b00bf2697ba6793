"""Figures of the published code's loop against one in which λ has its effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from tangentlora.report.canvas import COLOURS, INK, Picture, Style, blank, epoch_ticks, finish
from tangentlora.report.parsing import Number
from tangentlora.report.study.panels import CERTIFIED, draw_band, label_axes, legend, multiples, over_seeds
from tangentlora.report.study.results import Cell, Group, Study
from tangentlora.report.study.series import Band, Mean, band_of, mean_of
from tangentlora.report.wording import accuracy, listing, number, plain, relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pair: TypeAlias = tuple[Group, int]
"""A task and a rank at which the published loop was run."""
Series: TypeAlias = tuple[tuple[str, Style], str]
"""Label and style, and the variant whose cells are drawn."""
Value: TypeAlias = Callable[[Cell], Number]

STATED = ("loop with λ", Style(COLOURS[0], "o", "-"))
PUBLISHED = ("published loop", Style(COLOURS[3], "s", (0, (6, 1.6))))
WITHOUT_F0 = ("published loop, without the pretrained logits", Style(COLOURS[1], "v", "none"))


def published_figure(study: Study) -> Picture | None:
    """Draw the objective with λ against epochs for both loops, one panel per task and rank."""
    pairs = pairs_of(study)
    if not pairs:
        return None
    groups = [group for group, _ in pairs]
    figure, axes = multiples(groups)
    told = []
    for ax, (group, rank) in zip(axes, pairs, strict=True):
        bands: list[Band] = []
        ends = []
        for i, ((label, style), variant) in enumerate(((STATED, "lora"), (PUBLISHED, "published"))):
            band = band_of([cell.points for _, cell in group.cells(variant, rank)])
            if band is not None:
                draw_band(ax, band, label, style, i, 2)
                bands.append(band)
                ends.append(f"{label} at {number(band.mean[-1])}")
        optimum = mean_of(case.optimum for case in group.cases)
        if optimum is not None:
            ax.axhline(optimum.mean, color=INK, linewidth=1.1, label=CERTIFIED, zorder=1.8)
        ax.set_title(f"{group.label}, r={rank}")
        epoch_ticks(ax, [epoch for band in bands for epoch in band.epochs], narrow=len(axes) > 1)
        told.append(f"{group.label} at rank {rank} ends for {listing(ends)}.")
    label_axes(figure, axes, "epochs", "objective: loss + λ · penalty")
    legend(figure, axes)
    return finish(
        figure,
        "published",
        "The published loop beside one that trains with λ",
        "Both lines show the objective with λ. The published loop discards its weight decay, so it trains "
        f"the loss alone. {over_seeds(groups)}",
        f"Line charts of the objective against epochs, one panel per task. {' '.join(told)}",
    )


def published_answers_figure(study: Study) -> Picture | None:
    """Draw where both loops end, task by task: objective over the optimum, penalty and test accuracy."""
    pairs = pairs_of(study)
    if not pairs:
        return None
    stated: list[Series] = [(STATED, "lora"), (PUBLISHED, "published")]
    panels: list[tuple[str, list[tuple[Series, Value]], Callable[[float], str]]] = [
        ("relative excess", [(series, _excess) for series in stated], relative),
        ("nuclear norm of the answer", [(series, _penalty) for series in stated], plain),
        (
            "test accuracy, linearised",
            [*((series, _accuracy) for series in stated), ((WITHOUT_F0, "published"), _without_f0)],
            accuracy,
        ),
    ]
    held = [panel for panel in panels if any(_mean(pair, *drawn) for pair in pairs for drawn in panel[1])]
    if not held:
        return None
    figure, axes = blank(1.1 + 0.4 * max(2, len(pairs)), len(held), sharey=True)
    told = []
    for ax, (title, series, words) in zip(axes, held, strict=True):
        ends = _dots(ax, pairs, series, words)
        ax.set_title(title)
        ax.set_yticks(range(len(pairs)), [f"{group.label}, r={rank}" for group, rank in pairs])
        ax.set_ylim(len(pairs) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        told.append(f"{title[0].upper()}{title[1:]}: {listing(ends)}.")
    legend(figure, axes)
    return finish(
        figure,
        "published-answers",
        "Where the published loop ends",
        "The published code scores its answer without the pretrained logits; the other two scores have them. "
        + over_seeds([group for group, _ in pairs], "bars"),
        f"Dot charts by task. {' '.join(told)}",
    )


def pairs_of(study: Study) -> list[Pair]:
    """Return the groups and ranks at which the published loop was run."""
    ranks = study.ranks("published")
    return [(group, rank) for group in study.groups for rank in ranks if group.cells("published", rank)]


def _dots(
    ax: Axes, pairs: list[Pair], series: list[tuple[Series, Value]], words: Callable[[float], str]
) -> list[str]:
    """Draw mean ± std over the seeds, one height for each pair, and return the means in words."""
    told = []
    for i, (((label, style), variant), value) in enumerate(series):
        for y, pair in enumerate(pairs):
            found = _mean(pair, ((label, style), variant), value)
            if found is not None:
                sign: dict[str, Any] = style.line(label=label) | {"linestyle": "none"}
                ax.errorbar(
                    found.mean, y + 0.2 * (i - (len(series) - 1) / 2), xerr=found.std, elinewidth=1.3, **sign
                )
                told.append(f"{pair[0].label} {label} {words(found.mean)}")
    return told


def _mean(pair: Pair, series: Series, value: Value) -> Mean | None:
    group, rank = pair
    return mean_of(value(cell) for _, cell in group.cells(series[1], rank))


def _excess(cell: Cell) -> Number:
    return cell.relative_excess


def _penalty(cell: Cell) -> Number:
    return cell.nuclear_norm


def _accuracy(cell: Cell) -> Number:
    return cell.linearised.test_accuracy


def _without_f0(cell: Cell) -> Number:
    return cell.without_f0.test_accuracy
