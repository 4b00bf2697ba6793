"""Figures of the answers: their singular values by layer, and objective and accuracy by LoRA rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangentlora.report.canvas import COLOURS, INK, MUTED, Picture, blank, finish, log_ticks, styles
from tangentlora.report.record import Answer, Run
from tangentlora.report.wording import listing, number, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 6
"""Layers that are drawn; the others are counted in the caption."""


def singular_value_figure(run: Run) -> Picture | None:
    """Draw the singular values of the answers of free rank, or of the only answer, one panel per layer."""
    answers = [a for a in run.answers if a.rank is None or len(run.answers) == 1]
    answers = [a for a in answers if a.objective is not None and a.singular_values]
    values = [s for a in answers for layer in a.ranks for s in a.spectrum(layer) if s > 0]
    if not values:
        return None
    layers = list(answers[0].ranks)
    size = {layer: max((s for a in answers for s in a.spectrum(layer)), default=0.0) for layer in layers}
    shown = sorted(sorted(layers, key=lambda layer: -size[layer])[:PANELS], key=layers.index)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = blank(0.7 + 2.5 * rows, columns, rows, sharey=True)
    names = short_names(layers)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax, layer in zip(axes, shown, strict=False):
        _stems(ax, answers, layer, min(values) / 2)
        log_ticks(ax, min(values) / 2, 2 * max(values))
        ax.set_title(names[layer] if len(layers) > 1 else layer)
    handles = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        figure.legend(
            handles=list(handles.values()), loc="outside upper left", ncols=len(handles), handlelength=1
        )
    figure.supxlabel("singular value, largest first", fontsize=9, color=INK)
    hidden = [layer for layer in layers if layer not in shown]
    caption = "Singular values of the update in each layer; a layer of rank 0 stays as it was."
    if hidden:
        caption += f" The {len(shown)} layers with the largest are shown, {len(hidden)} are not."
    ranks = [f"{a.name}: {listing([f'{names[t]} {a.ranks.get(t, 0)}' for t in shown])}" for a in answers]
    alt = f"Dot charts of singular values on a logarithmic axis. Ranks: {'; '.join(ranks)}."
    return finish(figure, "singular-values", "Singular values", caption, alt)


def rank_figure(run: Run) -> Picture | None:
    """Draw the final objective and held-out accuracy against the LoRA rank, for two ranks or more."""
    lora, objectives = _finished(run)
    if len(lora) < 2:
        return None
    figure, axes = blank(3.6, 2 if run.has_test_set else 1)
    places = range(len(lora))
    ax = axes[0]
    ax.plot(places, objectives, color=COLOURS[0], marker="o", label="LoRA")
    signs = styles(run)
    for a in run.answers:
        if a.rank is None and a.objective is not None:
            ax.axhline(a.objective, color=INK, linestyle=signs[a.name].dashes, linewidth=1.2, label=a.name)
    ax.set_title("objective (loss + λ · penalty)")
    if run.has_test_set:
        _accuracies(axes[1], run, lora)
    for ax in axes:
        ax.set_xticks(list(places), [str(a.rank) for a in lora])
        ax.set_xlabel("LoRA rank r")
        ax.margins(x=0.08, y=0.12)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8.5)
    told = [f"rank {a.rank}: {number(a.objective)}" for a in lora]
    return finish(
        figure,
        "ranks",
        "By rank",
        "Where each rank ended. Ranks that end at the same objective found equally good answers.",
        f"Line charts against LoRA rank. Objective at {'; '.join(told)}.",
    )


def _finished(run: Run) -> tuple[list[Answer], list[float]]:
    """Return the LoRA answers that did not diverge, and their objectives."""
    pairs = [(a, a.objective) for a in run.lora if a.objective is not None]
    return [a for a, _ in pairs], [objective for _, objective in pairs]


def _stems(ax: Axes, answers: list[Answer], layer: str, floor: float) -> None:
    """Draw the singular values of one layer as dots on stems, side by side for each answer."""
    words = []
    longest = 1
    for i, answer in enumerate(answers):
        spectrum = [s for s in answer.spectrum(layer) if s > 0]
        if not spectrum:
            words.append(f"{answer.name}: rank 0")
            continue
        longest = max(longest, len(spectrum))
        places = [k + 1 + 0.24 * (i - (len(answers) - 1) / 2) for k in range(len(spectrum))]
        colour = COLOURS[(0, 3, 2)[i % 3]]
        ax.vlines(places, floor, spectrum, color=colour, linewidth=1.2)
        sign: dict[str, Any] = {
            "marker": "os^"[i % 3],
            "markersize": 6,
            "color": colour,
            "markeredgecolor": colour,
        }
        ax.plot(places, spectrum, linestyle="none", label=answer.name, **sign)
    if len(words) == len(answers):
        ax.text(0.5, 0.5, "rank 0: unchanged", transform=ax.transAxes, ha="center", va="center", color=MUTED)
        ax.grid(visible=False)
        ax.set_xticks([])
        return
    ax.set_xlim(0.4, max(longest, 3) + 0.6)
    step = max(1, -(-longest // 8))
    ax.set_xticks(range(1, max(longest, 3) + 1, step))
    ax.grid(visible=False, axis="x")
    if words:
        ax.text(
            0.96,
            0.95,
            "\n".join(words),
            transform=ax.transAxes,
            ha="right",
            va="top",
            color=MUTED,
            fontsize=8.5,
        )


def _accuracies(ax: Axes, run: Run, lora: list[Answer]) -> None:
    places = range(len(lora))
    linearised = [
        float("nan") if a.linearised.test_accuracy is None else a.linearised.test_accuracy for a in lora
    ]
    real = [float("nan") if a.real.test_accuracy is None else a.real.test_accuracy for a in lora]
    ax.plot(places, linearised, color=COLOURS[0], marker="o", label="linearised network")
    ax.plot(places, real, color=COLOURS[3], marker="s", linestyle=(0, (4, 2)), label="real network")
    if run.before.test_accuracy is not None:
        ax.axhline(
            run.before.test_accuracy, color=MUTED, linestyle=":", linewidth=1.1, label="before training"
        )
    ax.set_title("held-out accuracy")
