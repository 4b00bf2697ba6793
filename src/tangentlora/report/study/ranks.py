"""Figures by rank: epochs and memory that it costs to reach the optimum, and how close each rank ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import COLOURS, INK, MUTED, SHADE, Picture, finish, log_ticks
from tangentlora.report.parsing import Number
from tangentlora.report.study.panels import (
    FULL,
    full_of,
    label_axes,
    legend,
    multiples,
    multiples_and_one,
    over_seeds,
    rank_axis,
)
from tangentlora.report.study.results import Cell, Group, Study
from tangentlora.report.study.series import log_mean_of, mean_of
from tangentlora.report.study.training import FLOOR
from tangentlora.report.wording import data_size, listing, relative, tolerance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Place = tuple[float, str, str, int | None]
"""Where a run stands on the axis of ranks, its words, variant and rank."""

MEGABYTE = 1e6


def trade_off_figure(study: Study) -> Picture | None:
    """Draw the epochs to the optimum against rank, one panel per task, and the memory of training."""
    places = _places(study)
    groups = [group for group in study.groups if any(case.optimum is not None for case in group.cases)]
    if len(places) < 2 or not groups:
        return None
    figure, axes, memory = multiples_and_one(groups)
    reached = [epochs for group in groups for place in places for epochs in group.epochs(*place[2:])]
    known = [max(1, epochs) for epochs in reached if epochs is not None]
    spent = [epoch for case in study.cases for cell in case.cells for epoch, _ in cell.points[-1:]]
    low, most = min(known, default=1) / 2, max(known or spent or [1])
    missed = None in reached
    for ax, group in zip(axes, groups, strict=True):
        log_ticks(ax, low, most * (6 if missed else 2))
        _epochs(ax, group, places, 3.4 * most)
        ticks = [y for y in ax.get_yticks() if y < 1.7 * most]
        labels = [f"{y:,g}" for y in ticks]
        if missed:
            ax.axhspan(1.9 * most, 6 * most, color=SHADE, linewidth=0, zorder=1)
            ticks, labels = [*ticks, 3.4 * most], [*labels, "never"]
        ax.set_yticks(ticks, labels)
    _memory(memory, groups, places)
    rank_axis([*axes, memory], study)
    label_axes(
        figure,
        [*axes, memory],
        "LoRA rank r, and full fine-tuning",
        f"epochs to within {tolerance(study.within)} of the optimum",
    )
    sizes = _sizes(groups, places)
    told = [f"{g.label}: {'; '.join(_epoch_words(g, p) for p in places)}." for g in groups]
    weights = "; ".join(f"{p[1]} {data_size(sizes[p[0]])}" for p in places if p[0] in sizes)
    never = " The shaded strip counts the runs that never came so near." if missed else ""
    return finish(
        figure,
        "trade-off",
        "Rank against epochs and memory",
        f"First epoch at which F(u, v) − P* ≤ {tolerance(study.within)} · max(1, |P*|), for the runs that "
        f"came so near. {over_seeds(groups, 'bars')}{never} Memory: trained weights, their gradient and "
        "buffers of the method.",
        "Charts against LoRA rank, one panel per task and one of memory. Epochs for "
        f"{' '.join(told)} Memory: {weights}.",
    )


def optimality_figure(study: Study) -> Picture | None:
    """Draw how far each rank ended above the optimum, beside the gap that its own certificate proves."""
    places = _places(study)
    groups = [g for g in study.groups if any(_values(g, p, _excess) for p in places)]
    if not places or not groups:
        return None
    figure, axes = multiples(groups, sharey=True)
    drawn: list[float] = []
    for ax, group in zip(axes, groups, strict=True):
        drawn += _dots(ax, group, places, _excess, "excess over the optimum", COLOURS[0], "o", -0.12)
        drawn += _dots(ax, group, places, _gap, "gap that its own certificate proves", COLOURS[3], "s", 0.12)
    for ax in axes:
        log_ticks(ax, min(*drawn, study.within) / 3, 3 * max(*drawn, study.within))
        ax.axhline(study.within, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        ax.text(
            0.985, 1.1 * study.within, f"within {tolerance(study.within)}", fontsize=8, color=MUTED, **where
        )
    rank_axis(axes, study)
    label_axes(figure, axes, "LoRA rank r, and full fine-tuning", "relative distance at the end")
    legend(figure, axes)
    told = []
    for group in groups:
        ends = {p[1]: log_mean_of(_values(group, p, _excess), FLOOR) for p in places}
        told.append(
            f"{group.label}: {listing([f'{name} {relative(e[0])}' for name, e in ends.items() if e])}."
        )
    floor = f" What is below {tolerance(FLOOR)} is drawn there." if min(drawn) <= FLOOR * 1.0001 else ""
    return finish(
        figure,
        "optimality",
        "How close each rank ended",
        "Excess (P − P*) / max(1, |P*|) over the certified optimum P*, and the relative gap, which bounds it "
        f"without knowing P*. {over_seeds(groups, 'bars')} Both are taken of the logarithm.{floor}",
        f"Dot charts on a logarithmic axis against LoRA rank, one panel per task. Excess of {' '.join(told)}",
    )


def _places(study: Study) -> list[Place]:
    ranks = study.ranks()
    places: list[Place] = [(float(i), f"LoRA r={rank}", "lora", rank) for i, rank in enumerate(ranks)]
    first = len(ranks) + 0.4 if ranks else 0.0
    return places + [(first + i, FULL[variant][0], variant, None) for i, variant in enumerate(full_of(study))]


def _epochs(ax: Axes, group: Group, places: list[Place], strip: float) -> None:
    """Draw mean ± std over the runs that reached the optimum, and count the others in the strip above."""
    line = []
    for x, _, variant, rank in places:
        counts = group.epochs(variant, rank)
        epochs = mean_of(counts)
        sign: dict[str, Any] = {"color": COLOURS[0], "marker": "o"}
        if variant in FULL:
            sign = {"color": INK, "marker": FULL[variant][2].marker}
        missed = counts.count(None)
        if epochs is not None:
            # A logarithmic axis has no room below zero.
            down = min(epochs.std, 0.9 * epochs.mean)
            ax.errorbar(x, max(1, epochs.mean), [[down], [epochs.std]], elinewidth=1.3, **sign)
            if variant == "lora":
                line.append((x, max(1, epochs.mean)))
        if missed:
            words: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": INK}
            ax.text(x, strip, f"{missed}/{len(counts)}", **words)
    if len(line) > 1:
        ax.plot(*zip(*line, strict=True), color=COLOURS[0], linewidth=1.4, zorder=1.9)


def _memory(ax: Axes, groups: list[Group], places: list[Place]) -> None:
    sizes = {x: size / MEGABYTE for x, size in _sizes(groups, places).items()}
    lora = [(x, sizes[x]) for x, _, variant, _ in places if variant == "lora" and x in sizes]
    if lora:
        ax.plot(*zip(*lora, strict=True), color=COLOURS[2], marker="^", markersize=6.5, linewidth=1.4)
    full = [(x, sizes[x]) for x, _, variant, _ in places if variant in FULL and x in sizes]
    ax.plot(*(zip(*full, strict=True) if full else ((), ())), color=INK, marker="D", linestyle="none")
    ax.set_title("memory of training, MB")
    if sizes:
        log_ticks(ax, min(sizes.values()) / 2, 2 * max(sizes.values()))
        ticks = [*ax.get_yticks()]
        ax.set_yticks(ticks, [f"{y:,g}" for y in ticks])


def _sizes(groups: list[Group], places: list[Place]) -> dict[float, float]:
    """Return the bytes that training holds at each place, the mean over the tasks."""
    means = {
        x: mean_of(cell.state_bytes for group in groups for _, cell in group.cells(variant, rank))
        for x, _, variant, rank in places
    }
    return {x: size.mean for x, size in means.items() if size is not None and size.mean > 0}


def _epoch_words(group: Group, place: Place) -> str:
    counts = group.epochs(*place[2:])
    epochs = mean_of(counts)
    if epochs is None:
        return f"{place[1]} never"
    missed = counts.count(None)
    return f"{place[1]} {epochs.mean:.0f}" + (f" ({missed} of {len(counts)} never)" if missed else "")


def _excess(cell: Cell) -> Number:
    return cell.relative_excess


def _gap(cell: Cell) -> Number:
    return cell.relative_gap


def _values(group: Group, place: Place, value: Callable[[Cell], Number]) -> list[float]:
    found = [value(cell) for _, cell in group.cells(*place[2:])]
    return [y for y in found if y is not None]


def _dots(
    ax: Axes,
    group: Group,
    places: list[Place],
    value: Callable[[Cell], Number],
    label: str,
    colour: str,
    marker: str,
    shift: float,
) -> list[float]:
    """Draw mean ± std of the logarithm at each place, and return the numbers that the axis has to hold."""
    held: list[float] = []
    for place in places:
        found = log_mean_of(_values(group, place, value), FLOOR)
        if found is not None:
            middle, low, high = found
            bars = [[middle - low], [high - middle]]
            sign: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none", "label": label}
            ax.errorbar(place[0] + shift, middle, bars, elinewidth=1.3, **sign)
            held += found
    return held
