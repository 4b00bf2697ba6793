"""What an audit of an adapter found, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tangentlora.data import DataCheck
from tangentlora.models.lengths import Cut
from tangentlora.report.columns import aligned, wrapped
from tangentlora.report.standing import describe_standing, failure, reach_words
from tangentlora.report.wording import (
    ABSENT,
    accuracy,
    at_least,
    at_most,
    listing,
    number,
    plain,
    short_names,
)
from tangentlora.studies.audit_lam import ChosenLam
from tangentlora.studies.audit_local import LocalPart
from tangentlora.studies.line_search import Fall
from tangentlora.theory.first_order import ABOVE, USED, FirstOrder, LayerFirstOrder
from tangentlora.theory.regime import CLOSE, FAR
from tangentlora.theory.standing import Standing
from tangentlora.theory.training import REST, WASTE, WORTH, Judgement, TrainingVerdict

_MOST_LAYERS = 12


@dataclass(frozen=True)
class Scores:
    """The real network on the training examples: mean loss, accuracy in [0, 1] where there are classes."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Audit:
    """An adapter's verdict, the numbers that carry it, and what else one pass over the data tells.

    `before` and `after` are at W and W + δ, `objective` is F = L + Σ λ_t‖δ_t‖_* there. `remaining` and `gain`
    are the measured falls of F along −∇F at the present rank and along the escape, None where there was no
    such direction. `local` is None where the network was not linearised, for the reason `why_not_local`.
    `cut` is what of the examples did not fit into the network, None where nothing has a limit; `order` what
    is to be said of the order of the labels, if anything is.
    `reduced` says whether Theorem 1 on the local problem decided the rank needed, not the columns used.
    `data` is what was seen of the data before.
    `notes` are sentences about the adapter, its base and its tokenizer that belong beside the numbers.
    `standing` says whether the network is better with the adapter than without it, which comes first.
    """

    adapter: str
    model: str
    task: str
    n_examples: int
    judged: Judgement
    found: FirstOrder
    lam: ChosenLam
    before: Scores
    after: Scores
    objective: float
    remaining: Fall | None
    gain: Fall | None
    local: LocalPart | None
    why_not_local: str | None
    reduced: bool
    data: DataCheck
    standing: Standing
    notes: tuple[str, ...] = ()
    cut: Cut | None = None
    order: str | None = None

    @property
    def verdict(self) -> TrainingVerdict:
        return self.judged.verdict

    @property
    def satisfied(self) -> bool:
        """Whether the adapter holds, and training is done at a rank that suffices."""
        return self.standing.holds and self.verdict in (TrainingVerdict.CONVERGED, TrainingVerdict.WASTEFUL)

    @property
    def headline(self) -> str:
        """What comes first: that the adapter makes the network worse, or else the verdict of its training."""
        if self.standing.holds:
            return self.judged.sentence()
        remedy = (
            "Do not use it as it is: check that network, readout and data are those that it was trained for, "
            "and train it anew."
        )
        if self.lam.source == "recorded":
            lam = plain(next(iter(self.lam.values.values())))
            remedy = f"Use a larger λ than {lam}, or steps on the real network (fit --outer 4)."
        return failure(self.standing, "The adapter", remedy)

    def text(self) -> str:
        """Return headline, verdict, numbers, a row per layer and the local problem; 100 columns."""
        on = "" if self.adapter == self.model else f" on {self.model}"
        about = (
            f"The adapter {self.adapter}{on}: {self.task}, {self.n_examples} training examples. "
            "All is measured on the real network unless it is called local."
        )
        if self.cut is not None and self.cut.cut:
            about += f" {self.cut.sentence('Cut')}."
        if self.order is not None:
            about += f" {self.order}."
        lines = [] if self.standing.holds else [*wrapped(self.headline), ""]
        for said in (self.judged.sentence(), about, *self.notes, self.lam.sentence()):
            lines += [*wrapped(said), ""]
        lines += [*aligned(self._scores()), "", *wrapped(self._measured()), "", *self._layers(), ""]
        return "\n".join([*lines, *self._local()])

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        lam, fit = self.lam, self.lam.fit
        shared = ("adapter", "model", "task", "n_examples", "objective")
        return {key: getattr(self, key) for key in shared} | {
            "data_check": self.data.describe(),
            "headline": self.headline,
            "real_network": describe_standing(self.standing),
            "verdict": self.verdict.name,
            "sentence": self.judged.sentence(),
            "notes": list(self.notes),
            "judged": asdict(self.judged) | {"verdict": self.verdict.name, "rank_reduced": self.reduced},
            "thresholds": {"rest": REST, "worth": WORTH, "waste": WASTE, "above": ABOVE, "used": USED},
            "lam": {"source": lam.source, "sentence": lam.sentence(), "by_layer": lam.values, **asdict(fit)},
            "order": self.order,
            "cut": None if self.cut is None else self.cut.describe(),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "force": self.found.force,
            "gradient": self.found.gradient,
            "remaining": None if self.remaining is None else asdict(self.remaining),
            "gain": None if self.gain is None else asdict(self.gain),
            "layers": {name: _record(layer) for name, layer in self.found.layers.items()},
            "local": {"missing": self.why_not_local} if self.local is None else self.local.describe(),
        }

    def _scores(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [
            ("", "W", "W + δ"),
            ("loss", number(self.before.loss), number(self.after.loss)),
            ("F = loss + λ Σ‖δ‖_*", number(self.before.loss), number(self.objective)),
        ]
        if self.after.accuracy is not None:
            rows.append(("accuracy", accuracy(self.before.accuracy), accuracy(self.after.accuracy)))
        return rows

    def _measured(self) -> str:
        along = {
            "the gradient at this rank": self.remaining,
            "further directions (the rank-one escape)": self.gain,
        }
        said = [_fell(name, fall) for name, fall in along.items() if fall is not None]
        decided = (
            "Theorem 1 on the local problem, which keeps the outputs" if self.reduced else "columns used"
        )
        return " ".join([*said, f"The rank needed, {self.judged.needed}, is by {decided}."])

    def _layers(self) -> list[str]:
        """Return a row per layer, the ones that matter most where there are many."""
        names = short_names(list(self.found.layers))
        items = sorted(self.found.layers.items(), key=lambda item: _weight(item[1]), reverse=True)
        shown = {name for name, _ in items[:_MOST_LAYERS]}
        head = (
            "layer",
            "rank",
            "used",
            "effective",
            "stable",
            "top",
            "‖M‖/λ",
            "further",
            "force",
            "unbalanced",
        )
        rows = [
            (names[name][-30:], *_row(layer)) for name, layer in self.found.layers.items() if name in shown
        ]
        lines = [*aligned([head, *rows]), ""]
        hidden = len(items) - len(shown)
        if hidden:
            rest = sum(layer.directions for _, layer in items[_MOST_LAYERS:])
            lines += wrapped(
                f"Not shown: {hidden} layers with fewer further directions ({rest} in all) or a smaller "
                "‖M‖/λ; --json has every layer."
            )
        return lines + wrapped(
            f"used: columns with σ above {USED:g} of the largest of all layers. effective: exp of the "
            "entropy of the σ; stable: ‖δ‖_F²/‖δ‖₂²; top: share of ‖δ‖_F² in the first direction. M: the "
            "gradient of the loss at W + δ. further: directions beside δ along which F falls, above "
            f"{1 + ABOVE:g} λ. force: what is left of the two forces that cancel at rest. unbalanced: "
            "‖uᵀu − vᵀv‖ in [0, 1], 0 at rest under the penalty."
        )

    def _local(self) -> list[str]:
        title = "The local convex problem at W + δ"
        lines = [title, "-" * len(title)]
        if self.local is None:
            return [*lines, *wrapped(f"Not looked at: {self.why_not_local}.")]
        found, regime = self.local.certificate, self.local.regime
        moved = any(any(layer.spectrum.values) for layer in self.found.layers.values())
        left = found.gap + found.rounding
        errors = listing([f"{step.error:.1%} at τ = {step.tau:g}" for step in regime.train if step.tau])
        graded = reach_words(regime.reach, regime.train[0].real_loss)
        gap = (
            f"Linearised at W + δ, no update of any rank lowers F by more than {at_most(left)} (proved "
            f"there; {at_most(left / abs(found.objective))} of F), if the network stays as linear. "
            f"{self.local.point.kind.value} (Relative gradient {self.local.point.gradient:.1e}, smallest "
            f"curvature {self.local.point.curvature:.1e} ± {self.local.point.error:.0e}, both held against "
            f"{REST}; the curvature of the network itself is left out.)"
        )
        drift = (
            "δ = 0: from W to there is no way on which the network could bend."
            if not moved
            else (
                f"From W to W + τδ: {regime.verdict.value} {graded} (Errors of the outputs {errors}, drift "
                f"of the kernel {regime.drift:.1%}; linear up to {CLOSE:.0%}, nearly up to {FAR:.0%}.)"
            )
        )
        ranks = sorted(set(self.local.reduced.values()))
        suffice = f"ranks {listing(ranks)} suffice" if len(ranks) > 1 else f"rank {ranks[0]} suffices"
        kept = (
            f"Of the columns used, with the same local outputs on these {self.n_examples} examples, "
            f"{suffice} (Theorem 1, c = {found.constraints})."
        )
        return [*lines, *wrapped(gap), *wrapped(drift), *wrapped(kept)]


def _fell(name: str, fall: Fall) -> str:
    """Return what the steps along a direction measured."""
    steps = fall.evaluations
    if not fall.relative:
        tried = "the one step tried did not lower" if steps == 1 else f"none of the {steps} steps lowered"
        return f"Along {name} {tried} F."
    tried = "the one step tried" if steps == 1 else f"the best of {steps} steps"
    return f"Along {name} F falls by {at_least(100 * fall.relative)}% at least, {tried}."


def _weight(layer: LayerFirstOrder) -> tuple[int, float]:
    """Return what decides which layers are shown: most directions, then the largest ‖M‖/λ."""
    return layer.directions, layer.spectral_norm / layer.lam if layer.lam else layer.spectral_norm


def _row(layer: LayerFirstOrder) -> tuple[str, ...]:
    ratio, spectrum = layer.spectral_ratio, layer.spectrum
    return (
        str(layer.rank),
        str(layer.used),
        f"{spectrum.effective_rank:.2f}",
        f"{spectrum.stable_rank:.2f}",
        f"{spectrum.energy(1):.1%}" if any(spectrum.values) else ABSENT,
        ABSENT if ratio is None else f"{ratio:.3f}",
        str(layer.directions),
        f"{layer.force:.3f}",
        f"{layer.imbalance:.3f}",
    )


def _record(layer: LayerFirstOrder) -> dict[str, Any]:
    plain = {key: value for key, value in vars(layer).items() if key not in ("escape", "spectrum")}
    return plain | {
        "gradient": layer.gradient,
        "force": layer.force,
        "spectral_ratio": layer.spectral_ratio,
        "escape_rate": None if layer.escape is None else layer.escape.rate,
        "effective_rank": layer.spectrum.effective_rank,
        "stable_rank": layer.spectrum.stable_rank,
        "energy": [layer.spectrum.energy(k + 1) for k in range(len(layer.spectrum.values))],
        "singular_values": list(layer.spectrum.values),
    }
