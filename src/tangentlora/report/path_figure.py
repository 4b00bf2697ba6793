"""The figure of a λ path: objective, rank and accuracy against λ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import (
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    Picture,
    Style,
    blank,
    finish,
)
from tangentlora.report.wording import accuracy, number, plain, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tangentlora.report.path_record import LambdaPath

_SETS = {"train": "training", "dev": "dev", "cv": "cross-validation", "test": "test"}


def path_figure(path: LambdaPath) -> Picture:
    """Draw the objective, the rank per layer and the accuracies of a path over λ on a logarithmic axis.

    The dotted line is the chosen λ; hollow points are not certified. Draw it inside `house_style`.
    """
    figure, axes = blank(6.6, rows=3, sharex=True)
    lams = [point.lam for point in path.points]
    chosen = plain(float(f"{path.chosen:.3g}"))
    _objective_panel(axes[0], path, lams)
    axes[0].set_title(f"dotted: λ = {chosen}, chosen", loc="right", color=MUTED)
    _rank_panel(axes[1], path, lams)
    _accuracy_panel(axes[2], path, lams)
    for ax in axes:
        ax.axvline(path.chosen, color=INK, linewidth=1.1, linestyle=":", zorder=1)
    _lam_axis(axes[-1], lams)
    best, proved = path.best, sum(point.certified for point in path.points)
    hollow = "" if path.certified else "; the hollow ones are not"
    ends = "; ".join(f"{name} {accuracy(best.scores[key])}" for name, key in _scored(path))
    return finish(
        figure,
        "path",
        "The λ path",
        f"The optimum at {len(lams)} values of λ, {proved} of them certified{hollow}. Dotted: λ = {chosen}, "
        f"chosen by {path.rule}.",
        f"Three line charts against λ from {lams[-1]:.2g} to {lams[0]:.2g}: objective, rank and accuracy. At "
        f"the chosen λ the objective is {number(best.objective)}, the total rank {sum(best.ranks.values())}; "
        f"accuracy: {ends}.",
    )


def _lam_axis(ax: Axes, lams: list[float]) -> None:
    """Give the shared axis a logarithmic scale with labels at 1, 2 and 5 times powers of ten where few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ax.set_xscale("log")
    low, high = math.log10(lams[-1]), math.log10(lams[0])
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    ticks = [f * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for f in steps]
    ax.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if lams[-1] <= tick <= lams[0]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: plain(x)))
    ax.set_xlabel("λ")


def _objective_panel(ax: Axes, path: LambdaPath, lams: list[float]) -> None:
    ax.plot(lams, [point.objective for point in path.points], color=COLOURS[0])
    for certified in (True, False):
        points = [point for point in path.points if point.certified is certified]
        signs: dict[str, Any] = (
            {}
            if certified
            else {"markerfacecolor": PAPER, "markeredgecolor": COLOURS[0], "markeredgewidth": 1.2}
        )
        ax.plot([p.lam for p in points], [p.objective for p in points], "o", color=COLOURS[0], **signs)
    ax.set_title("objective" if path.certified else "objective (hollow: not certified)")


def _legend(ax: Axes) -> None:
    """Name the signs beside the panel, where they cover no curve."""
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK)


def _rank_panel(ax: Axes, path: LambdaPath, lams: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    names = short_names(list(path.points[0].ranks))
    total = [sum(point.ranks.values()) for point in path.points]
    if len(names) > len(COLOURS):
        ax.step(lams, total, where="mid", color=INK, label="all layers together")
        highest = max(total)
    else:
        highest = max(rank for point in path.points for rank in point.ranks.values())
        for i, (name, short) in enumerate(names.items()):
            style = Style(COLOURS[i], MARKERS[i], DASHES[i])
            ranks = [point.ranks[name] for point in path.points]
            ax.step(lams, ranks, where="mid", label=short, **style.line((0.02 * i, 0.13)))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylim(-0.12 * max(1, highest), None)
    ax.set_title("rank")
    _legend(ax)


def _accuracy_panel(ax: Axes, path: LambdaPath, lams: list[float]) -> None:
    for i, (name, key) in enumerate(_scored(path)):
        style = Style(COLOURS[i], MARKERS[i], DASHES[i])
        values = [point.scores[key] for point in path.points]
        ax.plot(lams, values, label=name, **style.line((0.02 * i, 0.13)))
    ax.set_title("accuracy of the linearised network")
    _legend(ax)


def _scored(path: LambdaPath) -> list[tuple[str, str]]:
    """Return the name and the key of each set whose accuracy is known, in the order of the data's way."""
    known = path.points[0].scores
    return [(name, f"{which}_accuracy") for which, name in _SETS.items() if f"{which}_accuracy" in known]
