"""Which λ an adapter is audited against, and where that λ comes from."""

from __future__ import annotations

from dataclasses import dataclass

from tangentlora.blocks import Blocks
from tangentlora.report.wording import plain
from tangentlora.studies.limits import require_lam
from tangentlora.studies.opened import Opened
from tangentlora.theory.fitted_lam import FittedLam, fitted_lam

DECOUPLED = (
    "AdamW, the Trainer's default, decays weights beside the gradient (decoupled): that is no such penalty, "
    "so for its adapters a λ is at best a fit"
)


@dataclass(frozen=True)
class ChosenLam:
    """λ_t of every layer, `source` = given, weight decay, recorded, fitted or none, and λ̂ beside it."""

    values: dict[str, float]
    source: str
    fit: FittedLam
    weight_decay: float | None = None

    def sentence(self) -> str:
        """Say which λ it is, where it comes from, and what the fit says."""
        low, high = min(self.values.values()), max(self.values.values())
        lam = plain(low) if low == high else f"{plain(low)} to {plain(high)}, by layer"
        fit = (
            "The weights themselves fit no positive λ"
            if self.fit.lam is None
            else f"The weights themselves fit λ̂ = {plain(self.fit.lam)} best, which explains "
            f"{self.fit.explained:.0%} of the forces on them"
        )
        said = {
            "given": f"λ = {lam}, as given. {fit}.",
            "weight decay": f"λ = {lam}, from the penalty {plain(self.weight_decay)}/2 (‖A‖² + ‖B‖²) divided "
            f"by the scaling. {fit}. {DECOUPLED}.",
            "recorded": f"λ = {lam}, as the run beside the adapter records. {fit}.",
            "fitted": f"λ = {lam}, fitted, since none was given: it explains {self.fit.explained:.0%} of the "
            f"forces on the weights, 100% at rest. {DECOUPLED}.",
            "none": f"λ = 0: none was given and {fit[0].lower()}{fit[1:]}, since shrinking the update would "
            "lower the loss.",
        }
        return said[self.source]


def choose_lam(opened: Opened, gradients: Blocks, lam: float | None, weight_decay: float | None) -> ChosenLam:
    """Return λ as given, else w/s_t from the weight decay, else as recorded, else as fitted, else 0.

    Raises InputError as `require_lam` does.
    """
    require_lam(lam, weight_decay)
    fit = fitted_lam(gradients, opened.factors)
    names = [target.name for target in opened.targets]
    if weight_decay is not None:
        by_layer = opened.adapter.lam_of(weight_decay)
        return ChosenLam({t: by_layer[t] for t in names}, "weight decay", fit, weight_decay)
    known = {"given": lam, "recorded": opened.recorded_lam, "fitted": fit.lam}
    source, value = next(
        ((source, value) for source, value in known.items() if value is not None), ("none", 0.0)
    )
    return ChosenLam(dict.fromkeys(names, value), source, fit)
