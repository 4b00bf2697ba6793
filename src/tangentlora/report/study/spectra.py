"""Figure of the singular values that full fine-tuning found, with the rank of the certified optimum."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from tangentlora.report.canvas import COLOURS, INK, Picture, finish, log_ticks
from tangentlora.report.study.panels import label_axes, multiples, over_seeds
from tangentlora.report.study.results import Cell, Group, Study
from tangentlora.report.study.series import log_mean_of
from tangentlora.report.wording import listing, relative

SHOWN = 40
"""Singular values that are drawn; smaller ones are left out."""
SMALLEST = 1e-8
"""Singular values below this part of the largest are drawn as this part."""


def singular_value_figure(study: Study) -> Picture | None:
    """Draw the singular values of all layers of the full fine-tuning answer together, one panel per task."""
    groups = [group for group in study.groups if any(_spectra(group))]
    if not groups:
        return None
    figure, axes = multiples(groups, sharey=True)
    floor = SMALLEST * max(spectrum[0] for group in groups for spectrum in _spectra(group) if spectrum)
    held: list[float] = []
    told = []
    for ax, group in zip(axes, groups, strict=True):
        columns = list(zip_longest(*_spectra(group), fillvalue=0.0))[:SHOWN]
        triples = [triple for column in columns if (triple := log_mean_of(column, floor)) is not None]
        places = range(1, len(triples) + 1)
        mean, low, high = zip(*triples, strict=True)
        held += [*low, *high]
        if len(group.cases) > 1:
            ax.fill_between(places, low, high, color=COLOURS[0], alpha=0.18, linewidth=0)
        ax.plot(places, mean, color=COLOURS[0], marker="o", markersize=4, linewidth=1.2)
        ranks = [sum(cell.ranks.values()) for _, cell in group.cells("certified")]
        told.append(f"{group.label} shows {len(mean)} from {mean[0]:.2g} to {mean[-1]:.2g}")
        if ranks:
            spread = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
            ax.axvspan(min(ranks) + 0.5, max(ranks) + 0.5, color=INK, alpha=0.12, linewidth=0)
            ax.axvline(max(ranks) + 0.5, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            where: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top"}
            ax.text(0.98, 0.96, f"the certified\noptimum has {spread}", fontsize=8, color=INK, **where)
            told[-1] += f", its certified optimum has {spread}"
        ax.set_xlim(0, max(8, len(mean)) + 1)
    for ax in axes:
        log_ticks(ax, min(held) / 3, 6 * max(held))
    label_axes(figure, axes, "place among the singular values of all layers, largest first", "singular value")
    most = max(len(spectrum) for group in groups for spectrum in _spectra(group))
    cut = f" Those below {relative(floor)} are drawn there." if min(held) <= 1.0001 * floor else ""
    cut += f" The largest {SHOWN} of up to {most} are shown." if most > SHOWN else ""
    return finish(
        figure,
        "singular-values",
        "Singular values of full fine-tuning",
        "Singular values of the answer of full fine-tuning, all layers together. The dashed line stands "
        "after as many as the certified optimum has, summed over the layers; a grey strip is the "
        f"range over seeds. {over_seeds(groups)} Both are taken of the logarithm.{cut}",
        f"Dot charts of singular values on a logarithmic axis, one panel per task: {listing(told)}.",
    )


def _spectra(group: Group) -> list[list[float]]:
    """Return the positive singular values of each seed, the largest first."""
    return [_together(cell) for _, cell in group.cells("full")]


def _together(cell: Cell) -> list[float]:
    return sorted((s for row in cell.singular_values.values() for s in row if s > 0), reverse=True)
