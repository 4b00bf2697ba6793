"""A study: a YAML file that says which tasks, seeds, ranks and λ, and its expansion into cases and cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from tangentlora.errors import InputError
from tangentlora.studies.settings import Settings

Variant = Literal[
    "certified",
    "lora",
    "full",
    "published",
    "frozen-a",
    "perturbed",
    "zero-shot",
    "logistic-regression",
    "peft-lora",
]
"""What is run on a case: the global optimum; LoRA; full fine-tuning; the published code's loop, whose weight
decay has no effect; LoRA with A frozen; LoRA with a random Π; and what one would do without this project."""

BASELINES: tuple[Variant, ...] = ("zero-shot", "logistic-regression", "peft-lora")
_SIDE: tuple[Variant, ...] = ("published", "frozen-a", "perturbed")
MAKERS = ("digits", "sounds")
"""The networks that the project trains itself, see `studies/offline`."""


@dataclass(frozen=True)
class Grid:
    """What is run on every task; each field is an option of `tangentlora reproduce`.

    `seeds` draw the examples and the initial factors. Every rank of `ranks` is trained at every λ of `lams`;
    `side_ranks` are those of the variants published, frozen-a and perturbed. At `dev_lams` only the certified
    optimum is solved, for the choice of λ by the dev set. `within` is the distance to the optimum, relative
    to max(1, P), at which a run counts as arrived. `real` says for which variants the real network is
    evaluated as well, which costs a pass over all examples. Raises InputError for empty or impossible values.
    """

    seeds: tuple[int, ...] = (13, 21, 42, 87, 100)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    side_ranks: tuple[int, ...] = (8,)
    lams: tuple[float, ...] = (0.01,)
    dev_lams: tuple[float, ...] = ()
    variants: tuple[Variant, ...] = ("certified", "lora", "full")
    real: tuple[Variant, ...] = ("certified",)
    within: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("seeds", "lams", "variants"):
            if not getattr(self, name):
                raise InputError(f"got a study without {name}, expected at least one: give --{name}")
        if not all(lam > 0 for lam in (*self.lams, *self.dev_lams)):
            raise InputError(
                f"got λ in {(*self.lams, *self.dev_lams)}, expected positive ones, since at 0 there "
                "need be no minimiser: correct --lams"
            )
        if min((1, *self.ranks, *self.side_ranks)) < 1 or not 0 < self.within < 1:
            raise InputError(
                f"got ranks {(*self.ranks, *self.side_ranks)} and within {self.within}, expected ranks of at "
                "least 1 and a fraction between 0 and 1: correct --ranks or --within"
            )


@dataclass(frozen=True)
class Cell:
    """One thing run on a case; `rank` and `lam` are None where they have no meaning."""

    variant: Variant
    rank: int | None = None
    lam: float | None = None

    @property
    def slug(self) -> str:
        """The cell's file name without suffix."""
        rank = "" if self.rank is None else f"-r{self.rank}"
        return self.variant + rank + ("" if self.lam is None else f"-lam{self.lam:g}")

    @property
    def name(self) -> str:
        """What tables and figures call the cell."""
        title = {"certified": "certified optimum", "lora": "LoRA", "full": "full fine-tuning"}
        rank = "" if self.rank is None else f" r={self.rank}"
        return title.get(self.variant, self.variant) + rank + (f", λ={self.lam:g}" if self.lam else "")


@dataclass(frozen=True)
class Case:
    """One task with one seed: what is linearised once, and the grid of what is run on it.

    `made` names the network, and the data where none is given, that the project makes itself.
    """

    name: str
    task: str
    settings: Settings
    grid: Grid
    made: str | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, the certified optimum before the runs that are compared with it, the baselines last."""
        return tuple(_cells(self.grid))


@dataclass(frozen=True)
class Study:
    """One YAML file. `members` names other studies, which this one changes by its settings and grid.

    `sizes` are named changes of settings and grid, such as `ci`; `made` is as in `Case`.
    """

    name: str
    title: str
    about: str
    members: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    made: str | None = None


@dataclass(frozen=True)
class Plan:
    """A study with everything decided: the cases in the order in which they are run."""

    study: Study
    size: str
    cases: tuple[Case, ...]


def study_names() -> list[str]:
    """Return the names of the studies shipped with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in _shipped() if path.name.endswith(".yaml"))


def load_study(name: str) -> Study:
    """Return a shipped study by its name, or the one in a YAML file by its path.

    Raises InputError where there is none, or the file is not YAML, lacks a title, or has unknown keys.
    """
    path: Any = next((path for path in _shipped() if path.name == f"{name.lower()}.yaml"), None)
    if path is None:
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            raise InputError(
                f"got the study {name!r}, expected a YAML file or one of {', '.join(study_names())}: see "
                "tangentlora reproduce --list"
            )
    return _parse(path.name.rsplit(".", 1)[0], str(path), path.read_text(encoding="utf-8"))


def plan(
    study: Study,
    size: str = "full",
    settings: Mapping[str, Any] | None = None,
    grid: Mapping[str, Any] | None = None,
) -> Plan:
    """Return the cases of a study; later sources win: defaults, members, study, size, then what is given.

    Raises InputError for a size that the study does not have, and for values that Settings or Grid refuse.
    """
    members = [load_study(name) for name in study.members]
    if (
        size != "full"
        and not all(size in one.sizes for one in members or [study])
        and size not in study.sizes
    ):
        known = ", ".join(("full", *study.sizes))
        raise InputError(
            f"got the size {size!r}, expected one of {known} for the study {study.name}: correct --size"
        )
    cases = []
    for member in members or [study]:
        layers: list[Study | Mapping[str, Mapping[str, Any]]] = [
            member,
            member.sizes.get(size, {}),
            study,
            study.sizes.get(size, {}),
        ]
        common = _settings(_merged("settings", layers, settings), study.name)
        chosen = _grid(_merged("grid", layers, grid), study.name)
        made = None if "model" in (settings or {}) else member.made or study.made
        for seed in chosen.seeds:
            case = replace(common, data_seed=seed, seed=seed, lam=chosen.lams[0])
            cases.append(Case(f"{member.name}-{seed}", member.name, case, chosen, made))
    return Plan(study, size, tuple(cases))


def _merged(
    part: Literal["settings", "grid"],
    layers: Sequence[Study | Mapping[str, Mapping[str, Any]]],
    given: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the settings or the grid of all layers together, the later ones winning."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= getattr(layer, part) if isinstance(layer, Study) else layer.get(part, {})
    return merged | dict(given or {})


def _cells(grid: Grid) -> Iterator[Cell]:
    if "certified" in grid.variants:
        for lam in dict.fromkeys((*grid.lams, *grid.dev_lams)):
            yield Cell("certified", None, lam)
    for variant in grid.variants:
        if variant == "certified" or variant in BASELINES:
            continue
        ranks = {"lora": grid.ranks, "full": (None,)}.get(variant, grid.side_ranks)
        for lam in grid.lams:
            for rank in ranks:
                yield Cell(variant, rank, lam)
    for variant in grid.variants:
        if variant in BASELINES:
            yield Cell(variant)


def _shipped() -> list[Any]:
    return list(files("tangentlora.studies").joinpath("configurations").iterdir())


def _parse(name: str, where: str, text: str) -> Study:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"got {where}, which is not YAML ({error}), expected a study: correct it") from error
    known = {f.name for f in fields(Study)} - {"name"}
    if not isinstance(values, dict) or not {"title", "about"} <= set(values) <= known:
        raise InputError(
            f"got {where} with {sorted(values) if isinstance(values, dict) else values!r}, expected title, "
            f"about and any of {', '.join(sorted(known - {'title', 'about'}))}: correct the file"
        )
    if values.get("made") not in (None, *MAKERS):
        raise InputError(f"got made: {values['made']!r} in {where}, expected one of {', '.join(MAKERS)}")
    return Study(name, **{**values, "members": tuple(values.get("members", ()))})


def _settings(values: Mapping[str, Any], study: str) -> Settings:
    known = {f.name for f in fields(Settings)}
    return Settings(**_known(values, known, f"settings of the study {study}"))


def _grid(values: Mapping[str, Any], study: str) -> Grid:
    given = _known(values, {f.name for f in fields(Grid)}, f"grid of the study {study}")
    variants = get_args(Variant)
    unknown = sorted({*given.get("variants", ()), *given.get("real", ())} - set(variants))
    if unknown:
        raise InputError(
            f"got the variants {', '.join(unknown)}, expected some of {', '.join(variants)}: correct "
            "--variants or --real"
        )
    return Grid(**given)


def _known(values: Mapping[str, Any], known: set[str], where: str) -> dict[str, Any]:
    if unknown := sorted(set(values) - known):
        raise InputError(
            f"got {', '.join(unknown)} in the {where}, expected some of "
            f"{', '.join(sorted(known))}: correct it"
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
