"""What run.json, metrics.jsonl and certificate.json say, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tangentlora.report.parsing import Number, parse_mapping, parse_number, parse_object
from tangentlora.report.standing import parse_standing, standing_of_losses
from tangentlora.theory.standing import Standing

FORMAT = 1
"""The version of run.json that this code reads."""

_REQUIRED = {
    "configuration": ("model", "target_modules", "lam", "tolerance"),
    "data": ("task", "label_names", "n_train"),
    "tangent": ("n_examples", "n_outputs"),
}


@dataclass(frozen=True)
class Scores:
    """Mean loss and accuracy on the training and the held-out examples; None where there are none."""

    train_accuracy: Number
    test_accuracy: Number
    train_loss: Number
    test_loss: Number

    @classmethod
    def parse(cls, values: object) -> Scores:
        scores = parse_object(values)
        return cls(*(parse_number(scores.get(f.name)) for f in fields(cls)))


@dataclass(frozen=True)
class Answer:
    """One answer δ and what is known of it: an entry of `runs` in run.json.

    `rank` is the LoRA rank r, None where the rank was free. `gap` and `lower_bound` come from the answer's
    own certificate, `ranks` and `singular_values` (descending) are those of each δ_t. `standing` says whether
    it holds on the real network, by the training losses alone where the record has no more.
    """

    name: str
    folder: str
    solver: str
    rank: int | None
    status: str
    message: str
    epochs: int
    objective: Number
    factored_objective: Number
    lower_bound: Number
    gap: Number
    relative_gap: Number
    certified: bool
    ranks: dict[str, int]
    singular_values: dict[str, tuple[float, ...]]
    linearised: Scores
    real: Scores
    seconds: Number
    standing: Standing | None

    @property
    def layer_rank(self) -> int | None:
        """The LoRA rank that can hold this answer, the largest among its layers; None after divergence."""
        return max(self.ranks.values()) if self.ranks and self.objective is not None else None

    def spectrum(self, layer: str) -> tuple[float, ...]:
        """Return the singular values of a layer that count towards its rank, the largest first."""
        return self.singular_values.get(layer, ())[: self.ranks.get(layer, 0)]

    @property
    def adapter(self) -> str:
        """Where the adapter lies in the run folder, with `/` between the parts."""
        return "adapter" if self.folder == "." else f"{self.folder}/adapter"

    @classmethod
    def parse(cls, row: object, before: Scores) -> Answer:
        values = parse_object(row)
        linearised, real = (Scores.parse(values.get(network)) for network in ("linearised", "real"))
        objective = parse_number(values["objective"])
        losses = before.train_loss, linearised.train_loss, real.train_loss
        spectra = parse_mapping(values.get("singular_values"), lambda row: tuple(float(s) for s in row))
        return cls(
            name=str(values["name"]),
            folder=str(values.get("folder", ".")),
            solver=str(values["solver"]),
            rank=None if values.get("rank") is None else int(values["rank"]),
            status=str(values.get("status", "")),
            message=str(values.get("message", "")),
            epochs=int(values.get("epochs", 0)),
            objective=objective,
            factored_objective=parse_number(values.get("factored_objective")),
            lower_bound=parse_number(values.get("lower_bound")),
            gap=parse_number(values.get("gap")),
            relative_gap=parse_number(values.get("relative_gap")),
            certified=values["certified"] is True,
            ranks=parse_mapping(values.get("ranks"), int),
            singular_values={name: tuple(sorted(row, reverse=True)) for name, row in spectra.items()},
            linearised=linearised,
            real=real,
            seconds=parse_number(values.get("seconds")),
            standing=parse_standing(values.get("real_network")) or standing_of_losses(*losses, objective),
        )


@dataclass(frozen=True)
class Run:
    """All that run.json says: one problem, the network before training, and every answer to the problem.

    All answers share the data, the tangent and λ, so the best lower bound among them holds for each.
    """

    command: str
    configuration: dict[str, Any]
    versions: dict[str, Any]
    data: dict[str, Any]
    tangent: dict[str, Any]
    before: Scores
    answers: tuple[Answer, ...]

    @property
    def main(self) -> Answer:
        """The answer that certificate.json and the folder's own adapter belong to."""
        return next((answer for answer in self.answers if answer.folder == "."), self.answers[-1])

    @property
    def best(self) -> Answer | None:
        """The answer of least objective, among the certified ones if there are any; None if all diverged."""
        finite = [answer for answer in self.answers if answer.objective is not None]
        return min(
            [a for a in finite if a.certified] or finite, key=lambda a: a.objective or 0.0, default=None
        )

    @property
    def failing(self) -> Answer | None:
        """The main or the best answer where it is known not to hold on the real network, else None."""
        return next((a for a in (self.main, self.best) if a and a.standing and not a.standing.holds), None)

    @property
    def lora(self) -> list[Answer]:
        """The answers of LoRA runs, by rank."""
        return sorted((a for a in self.answers if a.rank is not None), key=lambda a: a.rank or 0)

    @property
    def lower_bound(self) -> Number:
        """The largest of the proved lower bounds on min P."""
        return max((a.lower_bound for a in self.answers if a.lower_bound is not None), default=None)

    @property
    def has_test_set(self) -> bool:
        return bool(self.data.get("n_test")) and any(
            scores.test_accuracy is not None for a in self.answers for scores in (a.linearised, a.real)
        )

    def distance(self, objective: Number) -> Number:
        """Return the proved bound (P − best lower bound)/max(1, |P|) ≥ (P − min P)/max(1, |P|)."""
        if objective is None or self.lower_bound is None:
            return None
        return (objective - self.lower_bound) / max(1.0, abs(objective))

    def shortfall(self, answer: Answer) -> Number:
        """Return (P − least P known)/max(1, |P|) ≤ (P − min P)/max(1, |P|)."""
        known = [a.objective for a in self.answers if a.objective is not None]
        if answer.objective is None:
            return None
        return (answer.objective - min(known)) / max(1.0, abs(answer.objective))

    @classmethod
    def parse(cls, content: object) -> Run:
        """Read the parsed JSON; raises KeyError, TypeError or ValueError where it is not a run."""
        values = parse_object(content)
        for section, names in _REQUIRED.items():
            for name in names:
                parse_object(values[section])[name]  # a missing one is named by the KeyError
        before = Scores.parse(values.get("before"))
        answers = tuple(Answer.parse(row, before) for row in values["runs"])
        if not answers:
            raise ValueError("it lists no runs")
        return cls(
            command=str(values["command"]),
            configuration=dict(values["configuration"]),
            versions=dict(values.get("versions") or {}),
            data=dict(values["data"]),
            tangent=dict(values["tangent"]),
            before=before,
            answers=answers,
        )


@dataclass(frozen=True)
class Metric:
    """One logged epoch of one run: F(u,v), its duality gap and what the monitor measured."""

    run: str
    epoch: int
    objective: Number
    gap: Number
    measures: dict[str, Number]

    @classmethod
    def parse(cls, row: object) -> Metric:
        values = parse_object(row)
        return cls(
            str(values["run"]),
            int(values["epoch"]),
            parse_number(values.get("objective")),
            parse_number(values.get("gap")),
            parse_mapping(values.get("measures"), parse_number),
        )


@dataclass(frozen=True)
class CertificateRecord:
    """The fields of certificate.json that are shown; tangentlora.theory.certificate tells their meaning."""

    objective: Number
    lower_bound: Number
    gap: Number
    relative_gap: Number
    rounding: Number
    tolerance: float
    certified: bool
    lam: float
    dual_scale: Number
    spectral_norms: dict[str, Number]
    ranks: dict[str, int]
    constraints: int
    dtype: str

    @classmethod
    def parse(cls, content: object) -> CertificateRecord:
        values = parse_object(content)
        return cls(
            objective=parse_number(values["objective"]),
            lower_bound=parse_number(values["lower_bound"]),
            gap=parse_number(values["gap"]),
            relative_gap=parse_number(values["relative_gap"]),
            rounding=parse_number(values.get("rounding")),
            tolerance=float(values["tolerance"]),
            certified=values["certified"] is True,
            lam=float(values["lam"]),
            dual_scale=parse_number(values["dual_scale"]),
            spectral_norms=parse_mapping(values["spectral_norms"], parse_number),
            ranks=parse_mapping(values["ranks"], int),
            constraints=int(values["constraints"]),
            dtype=str(values["dtype"]),
        )
