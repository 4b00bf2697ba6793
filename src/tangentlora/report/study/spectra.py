"""Figure of the singular values that full fine-tuning found, with the rank of the certified optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tangentlora.report.canvas import COLOURS, INK, MARKERS, Picture, finish, log_ticks
from tangentlora.report.study.panels import label_axes, multiples, seeds
from tangentlora.report.study.results import Cell, Group, Study
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
    largest = max(spectrum[0] for group in groups for spectrum in _spectra(group) if spectrum)
    held: list[float] = []
    told = []
    for ax, group in zip(axes, groups, strict=True):
        spectra = [[max(s, SMALLEST * largest) for s in row[:SHOWN]] for row in _spectra(group) if row]
        for i, row in enumerate(spectra):
            ax.plot(range(1, len(row) + 1), row, linewidth=1.0, markersize=4, **_sign(i))
            held += row
        counts = sorted(map(len, spectra))
        ranks = [sum(cell.ranks.values()) for _, cell in group.cells("certified")]
        told.append(f"{group.label} shows {_range(counts)}")
        if ranks:
            spread = _range(ranks)
            ax.axvspan(min(ranks) + 0.5, max(ranks) + 0.5, color=INK, alpha=0.12, linewidth=0)
            ax.axvline(max(ranks) + 0.5, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            where: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top"}
            ax.text(0.98, 0.96, f"the certified\noptimum has {spread}", fontsize=8, color=INK, **where)
            told[-1] += f", its certified optimum has {spread}"
        ax.set_xlim(0, max(8, counts[-1]) + 1)
    for ax in axes:
        log_ticks(ax, min(held) / 3, 6 * max(held))
    label_axes(figure, axes, "place among the singular values of all layers, largest first", "singular value")
    most = max(len(spectrum) for group in groups for spectrum in _spectra(group))
    floor = SMALLEST * largest
    cut = f" Those below {relative(floor)} are drawn there." if min(held) <= floor else ""
    cut += f" The largest {SHOWN} of up to {most} are shown." if most > SHOWN else ""
    return finish(
        figure,
        "singular-values",
        "Singular values of full fine-tuning",
        "Singular values of the answer of full fine-tuning, all layers together, one line per seed "
        f"({seeds(groups)}). The dashed line stands after as many as the certified optimum has, summed over "
        f"the layers; a grey strip is the range over seeds.{cut}",
        f"Dot charts of singular values on a logarithmic axis, one panel per task: {listing(told)}.",
    )


def _sign(i: int) -> dict[str, Any]:
    return {"color": COLOURS[(0, 2, 3, 4, 5, 1)[i % 6]], "marker": MARKERS[i % 6]}


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _spectra(group: Group) -> list[list[float]]:
    """Return the positive singular values of each seed, the largest first."""
    return [_together(cell) for _, cell in group.cells("full")]


def _together(cell: Cell) -> list[float]:
    return sorted((s for row in cell.singular_values.values() for s in row if s > 0), reverse=True)
