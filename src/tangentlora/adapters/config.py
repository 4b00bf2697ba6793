"""`adapter_config.json`: whether it is plain LoRA, which modules it adapts, each at what rank and scaling."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from tangentlora.errors import InputError

Settings = dict[str, Any]
"""The fields of PEFT's LoraConfig as JSON has them."""

# fmt: off
_NEUTRAL = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_rslora",
})
# fmt: on
"""Settings under which a layer is W + s·B·A; where they matter (scaling, names) they are read elsewhere."""

_OTHER = {
    "use_dora": "DoRA, which also rescales the rows of W",
    "lora_bias": "a bias in lora_B, so that the update is no matrix",
    "kasa_config": "KaSA, which truncates W",
    "use_bdlora": "BD-LoRA, whose factors are block diagonal",
    "use_qalora": "QALoRA, whose lora_A sees pooled inputs",
    "velora_config": "VeLoRA, whose gradients of lora_A are compressed",
    "monteclora_config": "MonteCLoRA, whose update is random",
    "arrow_config": "Arrow, which chooses among adapters token by token",
    "alora_invocation_tokens": "aLoRA, which is active after certain tokens only",
    "layer_replication": "replicated layers, which make another network",
    "megatron_config": "Megatron's parallel layers",
    "target_parameters": "LoRA on parameters that no Linear owns",
    "trainable_token_indices": "trained rows of the embedding",
}
KNOWN = _NEUTRAL | frozenset(_OTHER)
"""Every setting that is read or refused for what it means; others are refused as unknown."""

_INITIALISED = {
    "pissa": "PiSSA, which takes its start s·B·A out of W",
    "olora": "OLoRA, which takes its start s·B·A out of W",
    "corda": "CorDA, which takes its start s·B·A out of W",
    "lora_ga": "LoRA-GA, which takes its start s·B·A out of W",
    "loftq": "LoftQ, which replaces W by its quantised weight",
    "mica": "MiCA, which trains lora_A alone",
}
_LEAVING_W = frozenset({"true", "false", "none", "gaussian", "eva", "orthogonal"})


def read_settings(path: Path, name: str) -> Settings:
    """Return the settings in a file; raise `InputError` when it is absent or no JSON object."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"got {name} ({error}), expected the folder of a PEFT adapter with {path.name}; give the one "
            "that save_pretrained wrote."
        ) from error
    if not isinstance(settings, dict):
        raise InputError(
            f"got {name} whose {path.name} is no JSON object, expected PEFT's settings; save the adapter "
            "again."
        )
    for key, kinds in _KINDS.items():
        value = settings.get(key)
        if value is not None and not _is_of(value, kinds):
            raise InputError(
                f"got {name} with {key} = {value!r} in its {path.name}, expected {kinds}; save the adapter "
                "again with PEFT."
            )
    return settings


_NAMES = "a list of names"
_KINDS = {
    "base_model_name_or_path": "a name",
    "revision": "a name",
    "task_type": "a name",
    "bias": "a name",
    "target_modules": f"a name or {_NAMES}",
    "exclude_modules": f"a name or {_NAMES}",
    "modules_to_save": _NAMES,
}
"""What the settings that are read as names may be."""


def _is_of(value: Any, kinds: str) -> bool:
    if isinstance(value, str):
        return kinds.startswith("a name")
    return kinds.endswith(_NAMES) and isinstance(value, list) and all(isinstance(item, str) for item in value)


def require_plain(settings: Settings, name: str) -> None:
    """Require settings under which every layer is W + s·B·A, with both factors trained and W as it was.

    That includes rsLoRA, patterns of ranks and alphas, modules to save, trained biases and the
    initialisations True, False, gaussian, eva and orthogonal, all of which leave W alone. Raises `InputError`
    for other methods, variants and initialisations, by name, and for a setting that is not known.
    """
    method = str(settings.get("peft_type")).rpartition(".")[2]
    if method != "LORA":
        _refuse(name, "peft_type", method, "another method than LoRA")
    for key, meaning in _OTHER.items():
        if settings.get(key):
            _refuse(name, key, settings[key], meaning)
    for key, value in settings.items():
        if value and key not in KNOWN:
            raise InputError(
                f"got the adapter {name} with {key} = {value!r} (a setting that is not known here), "
                "expected settings of plain LoRA, whose layers are W + s·B·A; remove it from "
                "adapter_config.json if it is one of the training alone, such as a learning rate, or train "
                "again without it."
            )
    start = str(settings.get("init_lora_weights", True)).lower()
    for prefix, meaning in _INITIALISED.items():
        if start.startswith(prefix):
            raise InputError(
                f"got the adapter {name} with init_lora_weights = {start!r} ({meaning}), expected LoRA "
                "beside the pretrained W; save it with path_initial_model_for_weight_conversion, with "
                "which PEFT converts PiSSA, OLoRA, CorDA and LoRA-GA, or train it again from another start."
            )
    if start not in _LEAVING_W:
        _refuse(name, "init_lora_weights", start, "an initialisation that is not known here")


def _refuse(name: str, key: str, value: object, meaning: str) -> None:
    raise InputError(
        f"got the adapter {name} with {key} = {value!r} ({meaning}), expected plain LoRA, whose layers are "
        "W + s·B·A; convert it with peft.save_as_lora where that is supported, or train it again as "
        "plain LoRA."
    )


def rank_and_scaling(settings: Settings, module: str, name: str) -> tuple[int, float]:
    """Return r and s of a module: s = alpha/r, or alpha/√r with rsLoRA, as PEFT resolves the patterns.

    Raises `InputError` when r or alpha is not a number, r is not positive, or a pattern is damaged.
    """
    try:
        r = _of(settings, "rank_pattern", module, settings["r"])
        alpha = _of(settings, "alpha_pattern", module, settings["lora_alpha"])
        if type(r) is not int or type(alpha) not in (int, float):
            raise TypeError(f"r = {r!r}, alpha = {alpha!r}")
        return r, alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, re.error) as error:
        raise InputError(
            f"got the adapter {name} whose rank or alpha at {module} cannot be told "
            f"({type(error).__name__}: {error}), expected numbers r and lora_alpha, r a whole one, and "
            "patterns that map names to numbers; save the adapter again with PEFT."
        ) from error


def adapts(settings: Settings, module: str) -> bool | None:
    """Return whether PEFT puts factors on a module of this name; None where the settings do not tell.

    They do not where `target_modules` is absent or "all-linear". What the file holds for other modules PEFT
    leaves out. Raises `InputError` when the settings are no regular expressions, or contradict each other.
    """
    from types import SimpleNamespace

    from peft.tuners.tuners_utils import check_target_module_exists

    targets = settings.get("target_modules")
    if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
        return None
    names = ("exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    chosen = {name: settings.get(name) for name in names}
    chosen |= {"target_modules": targets, "target_parameters": None}
    try:
        return bool(check_target_module_exists(SimpleNamespace(**chosen), module))
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"got target_modules = {targets!r} in an adapter's configuration, which cannot be matched with "
            f"{module} ({error}), expected names or a regular expression; save the adapter again with PEFT."
        ) from error


def _of(settings: Settings, pattern: str, module: str, default: Any) -> Any:
    patterns = settings.get(pattern) or {}
    if not patterns:
        return default
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), module), default)
