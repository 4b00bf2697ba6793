"""Figures of training: objective, distance to the certified optimum and test accuracy against epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import INK, MUTED, Picture, Style, epoch_ticks, finish, log_ticks
from tangentlora.report.study.panels import (
    CERTIFIED,
    draw_band,
    label_axes,
    learning_rates,
    legend,
    multiples,
    over_seeds,
    runs_of,
)
from tangentlora.report.study.results import Case, Cell, Group, Study
from tangentlora.report.study.series import Band, Points, band_of, mean_of
from tangentlora.report.wording import accuracy, listing, number, relative, tolerance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR = 1e-8
"""Relative distances to the optimum below this are drawn there: it is known no better."""


@dataclass(frozen=True)
class Line:
    """One run of a panel: its mean curve over the seeds and how it is drawn."""

    label: str
    style: Style
    band: Band


def loss_figure(study: Study) -> Picture | None:
    """Draw F(u,v) against epochs with the certified optimum as a line, one panel per task."""
    drawn = _lines(study, lambda case, cell: cell.points)
    if not drawn:
        return None
    groups = [group for group, _ in drawn]
    figure, axes = multiples(groups)
    for ax, (group, lines) in zip(axes, drawn, strict=True):
        _draw(ax, lines)
        optimum = mean_of(case.optimum for case in group.cases)
        start = max(line.band.high[0] for line in lines)
        least = min(line.band.low[-1] for line in lines)
        if optimum is not None:
            ax.axhline(optimum.mean, color=INK, linewidth=1.1, label=CERTIFIED, zorder=1.8)
            least = min(least, optimum.mean)
        height = max(start - least, 1e-12)
        # A run that rises far above its start, on the way to diverging, leaves the panel.
        peak = max(y for line in lines for y in line.band.mean)
        ax.set_ylim(least - 0.08 * height, max(start, min(peak, start + 0.5 * height)) + 0.05 * height)
    _finish_panels(figure, axes, drawn, "objective: loss + λ · penalty")
    told = [_ends(group, lines, number) + _optimum(group) for group, lines in drawn]
    return finish(
        figure,
        "loss",
        "Objective as training goes on",
        "F(u, v) = loss + λ · penalty of each LoRA rank and of full fine-tuning. "
        f"{over_seeds(groups)}{_rates(study, groups)}",
        f"Line charts of the objective against epochs, one panel per task. {' '.join(told)}",
    )


def distance_figure(study: Study) -> Picture | None:
    """Draw (F(u,v) − P*)/max(1, |P*|) against epochs on a logarithmic axis, one panel per task."""
    drawn = _lines(study, _distances, FLOOR)
    if not drawn:
        return None
    groups = [group for group, _ in drawn]
    figure, axes = multiples(groups, sharey=True)
    means = [y for _, lines in drawn for line in lines for y in line.band.mean]
    start = max(line.band.mean[0] for _, lines in drawn for line in lines)
    low, high = min(*means, study.within) / 2, 2 * min(max(means), 100 * start)
    for ax, (_, lines) in zip(axes, drawn, strict=True):
        _draw(ax, lines)
        log_ticks(ax, low, max(high, 10 * low))
        ax.axhline(study.within, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "top"}
        ax.text(
            0.02, 0.9 * study.within, f"within {tolerance(study.within)}", fontsize=8, color=MUTED, **where
        )
    _finish_panels(figure, axes, drawn, "distance to the optimum, relative")
    floor = f" Distances below {tolerance(FLOOR)} are drawn there." if min(means) <= FLOOR * 1.0001 else ""
    told = [_ends(group, lines, relative) for group, lines in drawn]
    return finish(
        figure,
        "distance",
        "Distance to the certified optimum",
        "(F(u, v) − P*) / max(1, |P*|), where P* is the certified optimum of the same seed. "
        f"{over_seeds(groups)} Both are taken of the logarithm.{floor}{_rates(study, groups)}",
        "Line charts of the relative distance to the optimum against epochs, on logarithmic axes, one panel "
        f"per task. {' '.join(told)}",
    )


def accuracy_figure(study: Study) -> Picture | None:
    """Draw the test accuracy of the linearised network against epochs, one panel per task."""
    drawn = _lines(study, lambda case, cell: [p for p in cell.accuracies if p[1] is not None])
    if not drawn:
        return None
    groups = [group for group, _ in drawn]
    figure, axes = multiples(groups)
    for ax, (group, lines) in zip(axes, drawn, strict=True):
        _draw(ax, lines)
        for value, label, colour, dashes in (
            (_certified_accuracy(group), CERTIFIED, INK, "-"),
            (_before(group), "before training", MUTED, ":"),
        ):
            if value is not None:
                ax.axhline(value, color=colour, linestyle=dashes, linewidth=1.1, label=label, zorder=1.8)
    _finish_panels(figure, axes, drawn, "test accuracy, linearised network")
    told = [_ends(group, lines, accuracy) for group, lines in drawn]
    sizes = sorted({case.n_test for group in groups for case in group.cases})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return finish(
        figure,
        "accuracy",
        "Test accuracy as training goes on",
        f"Accuracy of the linearised network on {size} test examples. {over_seeds(groups)}",
        f"Line charts of test accuracy against epochs, one panel per task. {' '.join(told)}",
    )


def _rates(study: Study, groups: list[Group]) -> str:
    return learning_rates(groups, [(variant, rank) for _, variant, rank, _ in runs_of(study)])


def _lines(
    study: Study, points: Callable[[Case, Cell], Points], floor: float | None = None
) -> list[tuple[Group, list[Line]]]:
    """Return the groups that have curves of these points, each with its lines."""
    drawn = []
    for group in study.groups:
        lines = []
        for label, variant, rank, style in runs_of(study):
            band = band_of([points(*found) for found in group.cells(variant, rank)], floor)
            if band is not None and len(band.epochs) > 1:
                lines.append(Line(label, style, band))
        if lines:
            drawn.append((group, lines))
    return drawn


def _distances(case: Case, cell: Cell) -> Points:
    optimum = case.optimum
    if optimum is None:
        return ()
    scale = max(1.0, abs(optimum))
    return [(epoch, None if f is None else (f - optimum) / scale) for epoch, f in cell.points]


def _draw(ax: Axes, lines: list[Line]) -> None:
    for i, line in enumerate(lines):
        draw_band(ax, line.band, line.label, line.style, i, len(lines))


def _finish_panels(figure: Any, axes: list[Axes], drawn: list[tuple[Group, list[Line]]], y: str) -> None:
    for ax, (_, lines) in zip(axes, drawn, strict=True):
        epoch_ticks(ax, [epoch for line in lines for epoch in line.band.epochs], narrow=len(axes) > 1)
    label_axes(figure, axes, "epochs", y)
    legend(figure, axes)


def _certified_accuracy(group: Group) -> float | None:
    found = mean_of(cell.linearised.test_accuracy for _, cell in group.cells("certified"))
    return None if found is None else found.mean


def _before(group: Group) -> float | None:
    found = mean_of(case.before.test_accuracy for case in group.cases)
    return None if found is None else found.mean


def _ends(group: Group, lines: list[Line], words: Callable[[float], str]) -> str:
    """Return where the first and the last two lines end: all of them would be too much to listen to."""
    told = lines if len(lines) < 4 else [lines[0], *lines[-2:]]
    return f"{group.label} ends for {listing([f'{e.label} at {words(e.band.mean[-1])}' for e in told])}."


def _optimum(group: Group) -> str:
    optimum = mean_of(case.optimum for case in group.cases)
    return "" if optimum is None else f" Its certified optimum is {number(optimum.mean)}."
