"""What a study's results.json says, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tangentlora.report.parsing import Number, parse_mapping, parse_number, parse_object
from tangentlora.report.standing import parse_standing, standing_of_losses
from tangentlora.report.wording import plain
from tangentlora.theory.standing import Standing

COMPARED = ("lora", "full", "full-plain", "frozen-a", "perturbed", "published")
"""The variants that train at one λ and are held against the certified optimum of the same λ."""


@dataclass(frozen=True)
class Scores:
    """Accuracy and mean loss on the training, dev and test examples; None where there are none."""

    train_accuracy: Number
    dev_accuracy: Number
    test_accuracy: Number
    train_loss: Number
    dev_loss: Number
    test_loss: Number

    @classmethod
    def parse(cls, values: object) -> Scores:
        scores = parse_object(values)
        return cls(*(parse_number(scores.get(f.name)) for f in fields(cls)))


@dataclass(frozen=True)
class Cell:
    """One method on one case; results.json tells the meaning of each field.

    `points` are (epoch, F(u,v)), the densest record that there is; `accuracies` are (epoch, accuracy of the
    linearised network on the test examples). Baselines have neither, and no objective. `standing` says if the
    answer holds on the real network, None where that was not asked.
    """

    slug: str
    name: str
    variant: str
    rank: int | None
    lam: Number
    objective: Number
    relative_gap: Number
    certified: bool
    relative_excess: Number
    epochs_to_optimum: int | None
    learning_rate: Number
    state_bytes: Number
    rank_reached: int | None
    ranks: dict[str, int]
    singular_values: dict[str, tuple[float, ...]]
    points: tuple[tuple[int, Number], ...]
    accuracies: tuple[tuple[int, Number], ...]
    linearised: Scores
    real: Scores
    without_f0: Scores
    standing: Standing | None

    @property
    def nuclear_norm(self) -> Number:
        """Return Σ_t ‖δ_t‖_*, the penalty; None where the run ended without an answer."""
        if self.objective is None:
            return None
        return sum(s for spectrum in self.singular_values.values() for s in spectrum)

    @classmethod
    def parse(cls, row: object, before: Scores) -> Cell:
        values = parse_object(row)
        linearised, real = (Scores.parse(values.get(network)) for network in ("linearised", "real"))
        losses = before.train_loss, linearised.train_loss, real.train_loss
        objective = parse_number(values.get("objective"))
        curve = [parse_object(logged) for logged in values.get("curve") or ()]
        trace = parse_object(values.get("trace"))
        points = [(int(row["epoch"]), parse_number(row.get("objective"))) for row in curve]
        if trace.get("epoch"):
            pairs = zip(trace["epoch"], trace["objective"], strict=True)
            points = [(int(epoch), parse_number(objective)) for epoch, objective in pairs]
        spectra = parse_mapping(values.get("singular_values"), lambda row: tuple(float(s) for s in row))
        return cls(
            slug=str(values["slug"]),
            name=str(values["name"]),
            variant=str(values["variant"]),
            rank=_whole(values["rank"]),
            lam=parse_number(values["lam"]),
            objective=objective,
            relative_gap=parse_number(values.get("relative_gap")),
            certified=values.get("certified") is True,
            relative_excess=parse_number(values.get("relative_excess")),
            epochs_to_optimum=_whole(values.get("epochs_to_optimum")),
            learning_rate=parse_number(values.get("learning_rate")),
            state_bytes=parse_number(values.get("state_bytes")),
            rank_reached=_whole(values.get("rank_reached")),
            ranks=parse_mapping(values.get("ranks"), int),
            singular_values={name: tuple(sorted(row, reverse=True)) for name, row in spectra.items()},
            points=tuple(points),
            accuracies=tuple((int(row["epoch"]), parse_number(row.get("test_accuracy"))) for row in curve),
            linearised=linearised,
            real=real,
            without_f0=Scores.parse(values.get("without_f0")),
            standing=parse_standing(values.get("real_network")) or standing_of_losses(*losses, objective),
        )


@dataclass(frozen=True)
class Case:
    """One task with one seed, and every cell that was run on it; `at` is the λ that is looked at, if any."""

    name: str
    task: str
    seed: int
    model: str
    readout: str
    n_train: int
    n_test: int
    constraints: int
    before: Scores
    cells: tuple[Cell, ...]
    at: Number = None

    @property
    def lams(self) -> tuple[float, ...]:
        """Every λ of the runs that are compared, in order; without runs those of the certified answers."""
        compared = [cell.lam for cell in self.cells if cell.variant in COMPARED]
        certified = [cell.lam for cell in self.cells if cell.variant == "certified"]
        return tuple(dict.fromkeys(lam for lam in compared or certified if lam is not None))

    @property
    def lam(self) -> Number:
        """The λ that is looked at, or else the only one; None where there are several."""
        return self.lams[0] if self.at is None and len(self.lams) == 1 else self.at

    @property
    def each(self) -> tuple[Case, ...]:
        """The case at each of its λ; the case itself where it has none."""
        return tuple(replace(self, at=lam) for lam in self.lams) or (self,)

    def cell(self, variant: str, rank: int | None = None) -> Cell | None:
        """Return the cell of this variant and rank at the case's λ, or the baseline of this name."""
        found = (
            c for c in self.cells if (c.variant, c.rank) == (variant, rank) and c.lam in (self.lam, None)
        )
        return next(found, None)

    @property
    def optimum(self) -> Number:
        """P* at the case's λ: the objective of the certified cell."""
        certified = self.cell("certified")
        return None if certified is None else certified.objective

    @classmethod
    def parse(cls, row: object) -> Case:
        values = parse_object(row)
        before = Scores.parse(values.get("before"))
        return cls(
            name=str(values["name"]),
            task=str(values["task"]),
            seed=int(values["seed"]),
            model=str(values["model"]),
            readout=str(values["readout"]),
            n_train=int(values["n_train"]),
            n_test=int(values.get("n_test") or 0),
            constraints=int(values["constraints"]),
            before=before,
            cells=tuple(Cell.parse(cell, before) for cell in values["cells"]),
        )


@dataclass(frozen=True)
class Group:
    """The cases that differ by seed only, at one λ, which are averaged."""

    label: str
    cases: tuple[Case, ...]

    @property
    def lam(self) -> Number:
        """The λ of the group."""
        return self.cases[0].lam

    def cells(self, variant: str, rank: int | None = None) -> list[tuple[Case, Cell]]:
        """Return the cells of one variant and rank, each with its case."""
        found = [(case, case.cell(variant, rank)) for case in self.cases]
        return [(case, cell) for case, cell in found if cell is not None]

    def epochs(self, variant: str, rank: int | None = None) -> list[int | None]:
        """Return the epochs to the optimum of the cases that have one, None where a run never came near."""
        cells = self.cells(variant, rank)
        return [cell.epochs_to_optimum for case, cell in cells if case.optimum is not None]


@dataclass(frozen=True)
class Study:
    """All that results.json says; `within` is the relative distance to P* that counts as reached."""

    name: str
    title: str
    about: str
    within: float
    cases: tuple[Case, ...]

    @property
    def groups(self) -> list[Group]:
        """The cases by task, model, readout and λ, in the order of the study; labels say what differs."""
        return _grouped([at for case in self.cases for at in case.each])

    @property
    def tasks(self) -> list[Group]:
        """The cases by task, model and readout, whatever their λ."""
        return _grouped(self.cases)

    @property
    def lams(self) -> tuple[float, ...]:
        """Every λ at which runs are compared, in the order of the study."""
        return tuple(dict.fromkeys(lam for case in self.cases for lam in case.lams))

    def ranks(self, variant: str = "lora") -> list[int]:
        """Return the ranks at which a variant was run anywhere in the study, the smallest first."""
        cells = [cell for case in self.cases for cell in case.cells if cell.variant == variant]
        return sorted({cell.rank for cell in cells if cell.rank is not None})

    @classmethod
    def parse(cls, content: object) -> Study:
        """Read the parsed JSON; raises KeyError, TypeError or ValueError where it is not a study's."""
        values = parse_object(content)
        study = parse_object(values["study"])
        cases = tuple(Case.parse(row) for row in values["cases"])
        if not cases:
            raise ValueError("it lists no cases")
        return cls(
            name=str(study["name"]),
            title=str(study["title"]),
            about=str(study.get("about", "")),
            within=float(study["within"]),
            cases=cases,
        )


def _grouped(cases: Sequence[Case]) -> list[Group]:
    keys = list(dict.fromkeys(map(_key, cases)))
    differ = [i == 0 or len({key[i] for key in keys}) > 1 for i in range(4)]
    labels = {key: ", ".join(part for part, shown in zip(key, differ, strict=True) if shown) for key in keys}
    order = sorted(keys, key=lambda key: [other[:3] for other in keys].index(key[:3]))
    return [Group(labels[key], tuple(c for c in cases if _key(c) == key)) for key in order]


def _key(case: Case) -> tuple[str, str, str, str]:
    return case.task, case.model, case.readout, "" if case.at is None else f"λ = {plain(case.at)}"


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
