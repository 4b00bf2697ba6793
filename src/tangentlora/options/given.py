"""From parsed options to `Settings` and other dataclasses; what is not given keeps its default."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tangentlora.errors import InputError

if TYPE_CHECKING:
    from tangentlora.studies.settings import Settings


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options name; what is not given keeps the default of `Settings`."""
    from tangentlora.studies.settings import Settings

    given = {key: value for key, value in vars(options).items() if value is not None}
    values = given_for(Settings, options)
    if "init_from" in values:
        values = _told_by(Path(values["init_from"])) | values
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
    elif alpha is not None:
        raise InputError(
            "got --lora-alpha without --weight-decay, expected both, since the scaling only turns a "
            "weight decay into λ: leave it out or add the other"
        )
    return Settings(**values)


def _told_by(adapter: Path) -> dict[str, Any]:
    """Return base model, revision and largest rank that an adapter folder names; nothing for a hub id."""
    try:
        told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        ranks = [told["r"], *(told.get("rank_pattern") or {}).values()]
        found = {"model": told.get("base_model_name_or_path"), "revision": told.get("revision")}
        return {name: value for name, value in found.items() if value} | {"rank": max(ranks)}
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
