"""From parsed options to `Settings` and other dataclasses; what is not given keeps its default."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tangentlora.errors import InputError
from tangentlora.places import ADAPTER_CONFIG, PACKAGED, adapter_folder, model_place

if TYPE_CHECKING:
    from tangentlora.studies.settings import Settings, SolverName


def settings_of(options: argparse.Namespace, solver: SolverName | None = None) -> Settings:
    """Return the settings that the options name; what is not given keeps the default of `Settings`.

    `solver` is that of a verb, where none is given. Raises InputError for an option that has no say with what
    is chosen, and for paths and names that `require_ready` refuses.
    """
    from tangentlora.belongs import LORA, OFF, refuse_unused
    from tangentlora.studies.early import require_ready
    from tangentlora.studies.settings import Settings

    given = {key: value for key, value in vars(options).items() if value is not None}
    values = given_for(Settings, options)
    values.setdefault("solver", solver or Settings.solver)
    trains = values["solver"] in LORA
    own = {name: value for name, value in values.items() if value != OFF.get(name)}
    if "init_from" in values:
        values = _told_by(values["init_from"], values, trains) | values
    decay, alpha = given.get("weight_decay"), given.get("lora_alpha")
    if decay is not None:
        if "lam" in given:
            raise InputError(
                "got both --lam and --weight-decay, expected one of them, since λ = w·r/alpha: leave one out"
            )
        rank = values.get("rank", Settings.rank)
        scaled = rank if alpha is None else alpha
        if not scaled > 0:
            raise InputError(
                f"got rank {rank} and --lora-alpha {alpha}, expected positive numbers, since "
                "λ = w·r/alpha: change them"
            )
        values["lam"] = decay * rank / scaled
        if alpha is not None and not trains:  # there the rank says what λ is, and nothing else
            values.pop("rank", None)
            own.pop("rank", None)
    elif alpha is not None:
        raise InputError(
            "got --lora-alpha without --weight-decay, expected both, since the scaling only turns a "
            "weight decay into λ: leave it out or add the other"
        )
    start = {"start": "an adapter to continue from"} if "init_from" in values else {}
    refuse_unused(own, {"solver": values["solver"]} | start)
    settings = Settings(**values)
    require_ready(settings, own)
    return settings


def _told_by(adapter: str, given: Mapping[str, Any], trains: bool) -> dict[str, Any]:
    """Return base model, revision and, where factors are trained, largest rank that an adapter folder names.

    Nothing for a hub id, and no revision of a network that is given or lies on this machine.
    """
    folder = adapter_folder(adapter)
    if folder is None:
        return {}
    try:
        told = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        ranks = [told["r"], *(told.get("rank_pattern") or {}).values()]
        found = {"model": told.get("base_model_name_or_path"), "revision": told.get("revision")}
        known = {name: value for name, value in found.items() if value}
        if "model" in given or model_place(str(known.get("model", PACKAGED))) != "hub":
            known.pop("revision", None)
        return known | ({"rank": max(ranks)} if trains else {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # what is wrong with it is said where it is read


def given_for(kind: type, options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given and are fields of a dataclass, lists as tuples."""
    from dataclasses import fields

    known = {field.name for field in fields(kind)}
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in vars(options).items()
        if value is not None and key in known
    }
    if len(given.get("text_column", ())) == 1:  # the usual case, one name
        (given["text_column"],) = given["text_column"]
    return given
