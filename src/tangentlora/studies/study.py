"""A study: a YAML file that says which tasks, seeds, ranks and λ, and its expansion into cases and cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from tangentlora.errors import InputError
from tangentlora.studies.layers import FULL, Layer, merged
from tangentlora.studies.settings import Settings

Variant = Literal[
    "certified",
    "lora",
    "full",
    "full-plain",
    "published",
    "frozen-a",
    "perturbed",
    "zero-shot",
    "logistic-regression",
    "peft-lora",
]
"""What is run on a case: the global optimum; LoRA; full fine-tuning by accelerated proximal gradient, whose
step and momentum are its own; the same by plain proximal steps, at the study's learning rate; the published
code's loop, whose weight decay has no effect; LoRA with A frozen; LoRA with a random Π; and what one would do
without this project."""

BASELINES: tuple[Variant, ...] = ("zero-shot", "logistic-regression", "peft-lora")
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
        title = {
            "certified": "certified optimum",
            "lora": "LoRA",
            "full": "full fine-tuning",
            "full-plain": "full fine-tuning, plain steps",
        }
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
    if nested := [member.name for member in members if member.members]:
        raise InputError(
            f"got the members {', '.join(nested)} in the study {study.name}, which have members themselves, "
            "expected studies of one task: name those members"
        )
    cases = []
    for member in members or [study]:
        layers = [*_layers(member, size), *(_layers(study, size) if members else ())]
        layers.append(Layer("what is given here", settings or {}, grid or {}))
        whole = merged(layers, {f.name: str(f.type) for f in fields(Grid)}, Grid.variants)
        chosen = _grid(whole.grid)
        common = Settings(**whole.settings)
        if "perturbed" in chosen.variants and not common.perturbation:
            raise InputError(
                "got the variant perturbed with a perturbation of 0, expected a positive one such as 0.001: "
                "give --perturbation"
            )
        made = None if "model" in (settings or {}) else member.made or study.made
        for seed in chosen.seeds:
            case = replace(common, data_seed=seed, seed=seed, lam=chosen.lams[0])
            cases.append(Case(f"{member.name}-{seed}", member.name, case, chosen, made))
    return Plan(study, size, tuple(cases))


def _layers(study: Study, size: str) -> list[Layer]:
    changed = study.sizes.get(size, {})
    return [
        Layer(f"the study {study.name}", study.settings, study.grid),
        Layer(f"the study {study.name}, size {size}", changed.get("settings", {}), changed.get("grid", {})),
    ]


def _cells(grid: Grid) -> Iterator[Cell]:
    if "certified" in grid.variants:
        for lam in dict.fromkeys((*grid.lams, *grid.dev_lams)):
            yield Cell("certified", None, lam)
    for variant in grid.variants:
        if variant == "certified" or variant in BASELINES:
            continue
        ranks = grid.ranks if variant == "lora" else (None,) if variant in FULL else grid.side_ranks
        for lam in grid.lams:
            for rank in ranks:
                yield Cell(variant, rank, lam)
    for variant in grid.variants:
        if variant in BASELINES:
            yield Cell(variant)


def _shipped() -> list[Any]:
    return list(files("tangentlora.studies").joinpath("configurations").iterdir())


_SHAPES: tuple[tuple[str, type, str], ...] = (
    ("title", str, "a sentence"),
    ("about", str, "sentences"),
    ("members", list, "a list of studies"),
    ("settings", dict, "names with values"),
    ("grid", dict, "names with values"),
    ("sizes", dict, "names with settings and a grid"),
)


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
    for part, kind, word in _SHAPES:
        if not isinstance(values.get(part, kind()), kind):
            raise InputError(
                f"got {part}: {values[part]!r} in the study {name}, expected {word}: correct {where}"
            )
    if values.get("made") not in (None, *MAKERS):
        raise InputError(f"got made: {values['made']!r} in {where}, expected one of {', '.join(MAKERS)}")
    _require_sizes(values.get("sizes", {}), where)
    return Study(name, **{**values, "members": tuple(values.get("members", ()))})


def _require_sizes(sizes: Any, where: str) -> None:
    """Raise InputError where a size is no mapping, or holds more than settings and a grid."""
    known = {"settings", "grid"}
    named = sizes if isinstance(sizes, Mapping) else {"sizes": sizes}
    for name, size in named.items():
        if not isinstance(size, Mapping) or not set(size) <= known:
            got = ", ".join(map(str, size)) if isinstance(size, Mapping) else repr(size)
            raise InputError(
                f"got {got} in the size {name} of {where}, expected settings and grid: correct the file"
            )


def _grid(values: Mapping[str, Any]) -> Grid:
    variants = get_args(Variant)
    unknown = sorted({*values.get("variants", ()), *values.get("real", ())} - set(variants))
    if unknown:
        raise InputError(
            f"got the variants {', '.join(unknown)}, expected some of {', '.join(variants)}: correct "
            "--variants or --real"
        )
    return Grid(**values)
