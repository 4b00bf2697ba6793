"""Figures of training: objective, distance to the optimum and held-out accuracy against epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import (
    INK,
    MUTED,
    SHADE,
    Picture,
    Style,
    blank,
    epoch_ticks,
    finish,
    log_ticks,
    styles,
)
from tangentlora.report.parsing import Number
from tangentlora.report.record import Metric, Run
from tangentlora.report.verdict import ROUNDING, TOLERANCES
from tangentlora.report.wording import accuracy, at_most, number, number_below, tolerance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, list[Metric]]
"""The logged epochs of each run that is drawn as a curve, by its name."""

HEIGHT = 3.9
FEWEST = 3
"""Points below which a line would tell more than is known."""


def curves_of(run: Run, metrics: list[Metric]) -> dict[str, list[Metric]]:
    """Return the epochs to draw, without the certified answer beside others: its steps are not epochs."""
    names = [a.name for a in run.answers if a.solver != "certified" or len(run.answers) == 1]
    rows = {name: [row for row in metrics if row.run == name] for name in names}
    return {name: row for name, row in rows.items() if len(row) >= FEWEST}


def objective_figure(run: Run, curves: Curves) -> Picture | None:
    """Draw the objective of every run above the region that the best lower bound proves empty."""
    drawn = _points(curves, lambda row: row.objective)
    best = run.best
    if not drawn or best is None or best.objective is None:
        return None
    figure, (ax,) = blank(HEIGHT)
    bound = run.lower_bound
    top = max(points[0][1] for points in drawn.values())
    height = max(top - best.objective, 1e-12)
    shown = bound is not None and bound > best.objective - height
    bottom = (bound if bound is not None and shown else best.objective) - 0.13 * height
    _draw(ax, run, drawn)
    if best.name not in drawn:
        ax.axhline(best.objective, color=INK, linewidth=1.2, label=best.name)
    if shown and bound is not None:
        ax.axhspan(bottom - height, bound, color=SHADE, linewidth=0, zorder=0)
        where: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "bottom"}
        words = f"no answer of any rank is below {number_below(bound)}"
        ax.text(0.985, 0.02, words, fontsize=8, color=MUTED, **where)
    ax.set_ylim(bottom, top + 0.06 * height)
    _label(ax, run, curves, "objective (loss + λ · penalty)")
    ends = [f"{name} at {number(points[-1][1])}" for name, points in drawn.items()]
    rest = [] if bound is None else [f"the proved lower bound is {number_below(bound)}"]
    return finish(
        figure,
        "objective",
        "Objective",
        "The objective of each run as it trains. The shaded region is proved to hold no answer of any rank."
        if shown
        else "The objective of each run as it trains.",
        f"Line chart of the objective against epochs. It ends for {'; '.join([*ends, *rest])}.",
    )


def distance_figure(run: Run, curves: Curves) -> Picture | None:
    """Draw how far each run is proved to be from the optimum, on a logarithmic axis."""
    drawn = _points(curves, lambda row: _floored(run.distance(row.objective)))
    if not drawn:
        return None
    figure, (ax,) = blank(HEIGHT)
    own = _points(curves, lambda row: _floored(_own_gap(row))) if len(run.answers) == 1 else {}
    for points in own.values():
        ax.plot(
            *zip(*points, strict=True),
            color=MUTED,
            linewidth=1.2,
            linestyle=":",
            label="gap proved at that epoch",
        )
    _draw(ax, run, drawn)
    values = [y for points in [*drawn.values(), *own.values()] for _, y in points]
    top = 3 * max(points[0][1] for points in [*drawn.values(), *own.values()])
    low = min(min(values) / 3, TOLERANCES[-1] / 2)
    log_ticks(ax, low, max(top, 10 * low))
    for limit in TOLERANCES:
        ax.axhline(limit, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        where: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "left", "va": "bottom"}
        ax.text(0.012, limit, f"within {tolerance(limit)}", fontsize=8, color=MUTED, **where)
    _label(ax, run, curves, "distance to the optimum, at most")
    ends = [f"{name} at {at_most(points[-1][1])}" for name, points in drawn.items()]
    floor = f" Distances below {tolerance(ROUNDING)} are drawn there." if min(values) == ROUNDING else ""
    return finish(
        figure,
        "distance",
        "Distance to the optimum",
        "(Objective − best proved lower bound) / max(1, objective): no run is further from the optimum."
        + floor,
        f"Line chart of the proved distance to the optimum against epochs, on logarithmic axes. It "
        f"ends for {'; '.join(ends)}.",
    )


def accuracy_figure(run: Run, curves: Curves) -> Picture | None:
    """Draw the held-out accuracy of the linearised network."""
    drawn = _points(curves, lambda row: row.measures.get("test_accuracy"))
    if not drawn or not run.has_test_set:
        return None
    figure, (ax,) = blank(HEIGHT)
    _draw(ax, run, drawn)
    best, before = run.best, run.before.test_accuracy
    if best is not None and best.name not in drawn and best.linearised.test_accuracy is not None:
        ax.axhline(best.linearised.test_accuracy, color=INK, linewidth=1.2, label=best.name)
    if before is not None:
        ax.axhline(before, color=MUTED, linewidth=1.1, linestyle=":", label="before training")
    _label(ax, run, curves, "held-out accuracy, linearised")
    ends = [f"{name} at {accuracy(points[-1][1])}" for name, points in drawn.items()]
    return finish(
        figure,
        "accuracy",
        "Held-out accuracy",
        f"Accuracy of the linearised network on {run.data['n_test']} held-out examples as each run trains.",
        f"Line chart of held-out accuracy against epochs. It ends for {'; '.join(ends)}; before training it "
        f"is {accuracy(before)}.",
    )


def epochs_within(run: Run, metrics: list[Metric], name: str, limit: float) -> int | None:
    """Return the first logged epoch at which a run is proved to be within a distance of the optimum."""
    distances = [(row.epoch, run.distance(row.objective)) for row in metrics if row.run == name]
    return next((epoch for epoch, distance in distances if distance is not None and distance <= limit), None)


def _points(curves: Curves, value: Callable[[Metric], Number]) -> dict[str, list[tuple[int, float]]]:
    """Return the points (epoch, value) of each run that has enough of them."""
    drawn = {
        name: [(row.epoch, y) for row in rows if (y := value(row)) is not None]
        for name, rows in curves.items()
    }
    return {name: points for name, points in drawn.items() if len(points) >= FEWEST}


def _draw(ax: Axes, run: Run, drawn: Mapping[str, list[tuple[int, float]]]) -> None:
    signs: dict[str, Style] = styles(run)
    for i, (name, points) in enumerate(drawn.items()):
        # Shifted markers keep runs that lie on each other apart to the eye.
        markevery: Any = (0.02 * i, 0.13) if len(points) > 12 else None
        # Where lines coincide the wider one below still shows.
        width = 1.4 + 0.15 * (len(drawn) - i)
        ax.plot(*zip(*points, strict=True), label=name, linewidth=width, **signs[name].line(markevery))


def _label(ax: Axes, run: Run, curves: Curves, y: str) -> None:
    epoch_ticks(ax, [row.epoch for rows in curves.values() for row in rows])
    only = run.answers[0] if len(run.answers) == 1 else None
    ax.set_xlabel("products with the Jacobian" if only and only.solver == "certified" else "epochs")
    ax.set_title(y)
    handles, _ = ax.get_legend_handles_labels()
    if len(handles) > 1 and ax.figure is not None:
        ax.figure.legend(handles=handles, loc="outside right upper")


def _own_gap(row: Metric) -> Number:
    return None if row.gap is None or row.objective is None else row.gap / max(1.0, abs(row.objective))


def _floored(distance: Number) -> Number:
    return None if distance is None else max(distance, ROUNDING)
