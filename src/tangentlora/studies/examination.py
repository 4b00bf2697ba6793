"""What the theorems say of one answer, part by part, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from tangentlora.report.columns import aligned, wrapped
from tangentlora.report.standing import describe_standing, reach_words
from tangentlora.report.wording import accuracy, number, plain, relative
from tangentlora.studies.rates import AGREES, RINGING, WINDOW, Rate, table as rate_table
from tangentlora.studies.regime import RegimeReport
from tangentlora.theory.bounds import Generalisation
from tangentlora.theory.certificate import Certificate
from tangentlora.theory.regime import CLOSE, FAR, Step
from tangentlora.theory.standing import Standing
from tangentlora.theory.stationarity import Kind, Stationarity


@runtime_checkable
class Part(Protocol):
    """One part of an examination: a title, lines of at most `WIDTH`, and the same as JSON can hold it."""

    @property
    def title(self) -> str: ...

    def lines(self) -> list[str]: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class StationarityPart:
    """The kind of point in F, or in F_Π where the run was perturbed, and the gap's verdict beside it."""

    found: Stationarity
    certificate: Certificate
    perturbed_gap: float | None
    title: str = "What kind of point it is"

    def lines(self) -> list[str]:
        said = [self.certificate.sentence(), self.found.sentence()]
        if self.certificate.certified and self.found.kind is Kind.NOT_STATIONARY:
            said[1] = (
                f"The gradient is not quite zero (relative size {self.found.gradient:.1e}, tolerance "
                f"{self.found.tolerance:.0e}), so the second order was not asked; the certificate needs "
                "neither."
            )
        if self.perturbed_gap is not None:
            said.append(
                f"Of the perturbed objective it is proved that F_Π exceeds its least value over all ranks by "
                f"at most {relative(self.perturbed_gap)} (rounding not counted)."
            )
        return [line for sentence in said for line in wrapped(sentence)]

    def describe(self) -> dict[str, Any]:
        found = {k: v for k, v in vars(self.found).items() if k not in ("kind", "escape")}
        return found | {
            "kind": self.found.kind.name,
            "message": self.found.kind.value,
            "certificate": asdict(self.certificate),
            "perturbed_gap": self.perturbed_gap,
        }


@dataclass(frozen=True, eq=False)
class RegimePart:
    """How far the real network is from its tangent at the answer and on the way there."""

    report: RegimeReport
    title: str = "Is the network in the NTK regime"

    def lines(self) -> list[str]:
        regime, ridge = self.report.regime, self.report.kernel_ridge
        head = ("set", "τ", "error", "linear loss", "real loss", "linear acc.", "real acc.")
        rows = [
            (which, *_step(step))
            for which, steps in (("train", regime.train), ("test", regime.held_out))
            for step in steps
        ]
        scores = ", ".join(
            f"{accuracy(ridge[f'{which}_accuracy'])} ({which})"
            for which in ("train", "test")
            if f"{which}_accuracy" in ridge
        )
        after = (
            f"At W + τδ; error is ‖f − z‖ / ‖z − f0‖. The kernel drifts by {_percent(regime.drift)} from W "
            f"to W + δ. Linear means at most {CLOSE:.0%} everywhere, nearly linear at most {FAR:.0%}: "
            "thresholds of convention. Kernel regression with the same Jacobians, the baseline, has accuracy "
            f"{scores}."
        )
        graded = reach_words(regime.reach, regime.train[0].real_loss)
        said = wrapped(f"{self.report.verdict.value} {graded}")
        return [*said, "", *aligned([head, *rows]), "", *wrapped(after)]

    def describe(self) -> dict[str, Any]:
        return self.report.record()


@dataclass(frozen=True, eq=False)
class BoundsPart:
    """Both bounds beside the held-out loss, and the λ of the theorem, the run and the dev set."""

    found: Generalisation
    lam: float
    chosen: float | None
    title: str = "What it promises for unseen examples"

    def lines(self) -> list[str]:
        measured, recalled = self.found.measured, self.found.recalled
        rows = [
            ("loss on the training set", number(self.found.train_loss)),
            ("loss on the held-out set", number(self.found.held_out_loss)),
            ("loss on it before training", number(self.found.held_out_loss_before)),
            ("measured bound on the loss [derived]", _bound(measured.bound, measured.vacuous)),
            ("its part from the complexity", number(measured.complexity_term)),
            ("its part from the deviation", number(measured.deviation_term)),
            ("Theorem 3's excess at its λ [recalled]", _bound(recalled.excess, recalled.vacuous)),
            ("λ of Theorem 3", number(recalled.lam)),
            ("λ from which the answer is δ = 0", number(recalled.zero_from)),
            ("λ of the run", plain(self.lam)),
            ("λ that the dev set chooses", number(self.chosen)),
        ]
        said = [line for sentence in self.found.sentences() for line in wrapped(sentence)]
        return [*said, "", *(f"{name:<40}{value}" for name, value in rows)]

    def describe(self) -> dict[str, Any]:
        return asdict(self.found) | {
            "sentences": self.found.sentences(),
            "vacuous": {"measured": self.found.measured.vacuous, "recalled": self.found.recalled.vacuous},
            "lam": {
                "prescribed": self.found.recalled.lam,
                "run": self.lam,
                "chosen_by_dev": self.chosen,
            },
        }


@dataclass(frozen=True, eq=False)
class RatePart:
    """The local rate predicted at the optimum against that of runs, per rank and initialisation."""

    runs: tuple[Rate, ...]
    title: str = "How fast gradient descent closes in"

    def lines(self) -> list[str]:
        agree = sum(run.verdict == "agrees" for run in self.runs)
        point = (
            f"{agree} of {len(self.runs)} runs close in at the rate that the Hessian at the optimum predicts "
            f"(log of the factor within {AGREES:.0%})."
        )
        after = (
            "predicted, measured: the factor of F − F* per epoch, at a fixed rate η (that of the run, or "
            "1/h_max where it chose its own). h: eigenvalues of the Hessian beside the rotations'. speed: "
            f"log(measured) / log(predicted). Measured where F − F* falls from {WINDOW[1]:.0e} to "
            f"{WINDOW[0]:.0e} (from {RINGING[1]:.0e} if the prediction is β, where it swings): faster means "
            "that the slowest direction has little weight there, slower speaks against the prediction."
        )
        return [*wrapped(point), "", *rate_table(self.runs), "", *wrapped(after)]

    def describe(self) -> dict[str, Any]:
        return {
            "runs": [run.describe() for run in self.runs],
            "tolerance": AGREES,
            "window": list(WINDOW),
            "window_ringing": list(RINGING),
        }


@dataclass(frozen=True)
class Missing:
    """A part that this run has not, and why."""

    title: str
    reason: str

    def lines(self) -> list[str]:
        return wrapped(self.reason)

    def describe(self) -> dict[str, Any]:
        return {"missing": self.reason}


@dataclass(frozen=True, eq=False)
class Examination:
    """The parts that were asked for, by name, of one answer of a run folder.

    `standing` says whether it holds on the real network, as measured here or else as the run recorded it.
    """

    folder: str
    answer: str
    task: str
    lam: float
    n_examples: int
    headline: str
    standing: Standing | None
    parts: dict[str, Part]

    @property
    def holds(self) -> bool:
        """Whether the answer is known to hold on the real network."""
        return self.standing is not None and self.standing.holds

    def text(self) -> str:
        """Return the headline and a titled paragraph or table per part, at most `WIDTH` wide."""
        head = (
            f"The answer {self.answer!r} of {self.folder}: {self.task}, {self.n_examples} training examples, "
            f"λ = {plain(self.lam)}. What is called real is of the network itself, all else of its "
            "linearisation."
        )
        lines = [*wrapped(self.headline), "", *wrapped(head)]
        for part in self.parts.values():
            lines += ["", part.title, "-" * len(part.title), *part.lines()]
        return "\n".join(lines)

    def describe(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        said = {name: part.describe() for name, part in self.parts.items()}
        keys = ("headline", "folder", "answer", "task", "lam", "n_examples")
        real = None if self.standing is None else describe_standing(self.standing)
        return {key: getattr(self, key) for key in keys} | {"real_network": real} | said


def _step(step: Step) -> tuple[str, ...]:
    return (
        f"{step.tau:g}",
        _percent(step.error),
        number(step.linear_loss),
        number(step.real_loss),
        accuracy(step.linear_accuracy),
        accuracy(step.real_accuracy),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _bound(value: float, vacuous: bool) -> str:
    return f"{number(value)}{' (vacuous)' if vacuous else ''}"
