"""The settings and the grid of a study, put together from its layers; none is ignored without a word.

Later layers win. What an earlier layer said falls away where a later one chooses a solver, a readout or
variants with which it has no say; within one layer, and with the choices already made, that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from tangentlora.belongs import BELONGS, LORA, refuse_unused, used_only
from tangentlora.errors import InputError
from tangentlora.studies.settings import Settings

TRAINED = ("lora", "published", "frozen-a", "perturbed")
"""The variants that train LoRA's factors by the study's solver."""

SIDE = ("published", "frozen-a", "perturbed")
FULL = ("full", "full-plain")

_ELSEWHERE = {
    "lam": "lams in the grid",
    "rank": "ranks in the grid",
    "seed": "seeds in the grid",
    "data_seed": "seeds in the grid",
    "freeze_a": "the variant frozen-a",
    "outer": "tangentlora fit",
    "init_from": "tangentlora fit",
}
"""Settings that a study does not read, and where what they say is said."""

_VARIANTS: dict[str, tuple[str, ...]] = {
    "solver": TRAINED,
    "epochs": (*TRAINED, *FULL),
    "learning_rate": (*TRAINED, "full-plain"),
    "momentum": TRAINED,
    "minibatch_size": TRAINED,
    "initialisation": TRAINED,
    "init_scale": TRAINED,
    "perturbation": ("perturbed",),
    "ranks": ("lora",),
    "side_ranks": SIDE,
    "dev_lams": ("certified",),
}
"""The settings, and parts of the grid, that have a say with some variants only."""


_NAMED = ("Name", "Initialisation", "HeadInit", "Dtype", "Variant")  # types that are names from a list


@dataclass(frozen=True)
class Layer:
    """Settings and grid from one place, such as a file or the command line."""

    place: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)


def merged(layers: Sequence[Layer], grid_kinds: Mapping[str, str], variants: Sequence[str]) -> Layer:
    """Return one layer of all; `variants` are those of a study that names none.

    Raises InputError, with the place, for unknown names, for settings that a study does not read, and for
    what has no say with the choices of its own layer and those before.
    """
    settings_kinds = {f.name: str(f.type) for f in fields(Settings)}
    settings: dict[str, Any] = {}
    grid: dict[str, Any] = {"variants": tuple(variants)}
    for layer in layers:
        own = _read("settings", layer.settings, settings_kinds, layer.place)
        parts = _read("grid", layer.grid, grid_kinds, layer.place)
        for name in own:
            if name in _ELSEWHERE:
                raise InputError(
                    f"got {name} in the settings of {layer.place}, which a study does not read, expected "
                    f"{_ELSEWHERE[name]} for that: move it there"
                )
        settings = used_only(settings, _choices(own))
        if "variants" in parts:
            settings = {name: value for name, value in settings.items() if _acts(name, parts["variants"])}
            grid = {name: value for name, value in grid.items() if _acts(name, parts["variants"])}
        settings, grid = settings | own, grid | parts
        _refuse_unread({**own, **parts}, settings, grid, layer.place)
    return Layer("all layers", {"solver": "sgd"} | settings, grid)


def _choices(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the solver and the readout that are named, apart from `auto`."""
    return {
        name: str(settings[name])
        for name in ("solver", "readout")
        if settings.get(name) not in (None, "auto")
    }


def _refuse_unread(
    own: Mapping[str, Any], settings: Mapping[str, Any], grid: Mapping[str, Any], place: str
) -> None:
    variants = grid["variants"]
    if settings.get("solver", "sgd") not in LORA:
        raise InputError(
            f"got the solver {settings['solver']} in {place}, expected {', '.join(LORA)}, which train LoRA's "
            "factors: name the other solvers as the variants certified and full"
        )
    given = [name for name, value in own.items() if _says(name, value)]
    for name in given:
        if not _acts(name, variants):
            raise InputError(
                f"got {name} in {place}, which has no say with the variants {', '.join(variants)}, expected "
                f"it only with {', '.join(_VARIANTS[name])}: leave it out, or add the variant"
            )
    if unrun := sorted(set(own.get("real", ())) - set(variants)):
        raise InputError(
            f"got real: {', '.join(unrun)} in {place}, expected some of the variants that are run, "
            f"{', '.join(variants)}: leave it out, or add the variant"
        )
    try:
        refuse_unused([n for n in given if n in BELONGS], {"solver": "sgd"} | _choices(settings))
    except InputError as error:
        raise InputError(f"in {place}: {error}") from error


def _says(name: str, value: Any) -> bool:
    """Say whether a value is more than the default, which may stand anywhere: null, an empty list."""
    return value is not None and value != () and value != getattr(Settings, name, None)


def _acts(name: str, variants: Sequence[str]) -> bool:
    return name not in _VARIANTS or bool(set(_VARIANTS[name]) & set(variants))


def _read(
    part: Literal["settings", "grid"], values: Any, kinds: Mapping[str, str], place: str
) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"got {part}: {values!r} in {place}, expected names with values: correct it")
    if unknown := sorted(str(name) for name in values if name not in kinds):
        raise InputError(
            f"got {', '.join(unknown)} in the {part} of {place}, expected some of "
            f"{', '.join(sorted(kinds))}: correct it"
        )
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for name, value in found.items():
        kind = kinds[name]
        if not _fits(value, kind):
            raise InputError(
                f"got {name}: {values[name]!r} in the {part} of {place}, expected {_in_words(kind)}: correct "
                "it"
            )
    return found


def _fits(value: Any, kind: str) -> bool:
    """Say whether a value is of the kind that a dataclass's annotation names."""
    if value is None:
        return "None" in kind
    if isinstance(value, tuple) and "| tuple[str" in kind:
        return all(isinstance(item, str) for item in value)
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and all(_fits(item, kind[6:].split(",")[0]) for item in value)
    if isinstance(value, bool) or "bool" in kind:
        return isinstance(value, bool) and "bool" in kind
    if isinstance(value, int) and "int" in kind:
        return True
    if isinstance(value, int | float):
        return "float" in kind
    if "Path" in kind:
        return isinstance(value, str | Path)
    if "Literal" in kind:
        return repr(value) in kind or f'"{value}"' in kind
    return isinstance(value, str) and any(word in kind for word in ("str", *_NAMED))


def _in_words(kind: str) -> str:
    item = kind[6:].split(",")[0] if kind.startswith("tuple") else kind
    names = {"int": "whole number", "float": "number such as 0.001", "bool": "true or false"}
    word = next((said for sign, said in names.items() if sign in item), "name")
    return f"a list, each a {word}" if kind.startswith("tuple") else f"a {word}".replace("a true", "true")
