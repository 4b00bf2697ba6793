"""Is the PEFT adapter of a run folder the certified answer: its s·B·A against u vᵀ, read with numpy alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tangentlora.errors import InputError
from tangentlora.theory.evidence import Answer, read_json
from tangentlora.theory.shards import Place

_CONFIG, _WEIGHTS, _PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_SINGLE = 2.0**-24  # float32 rounds a number by this fraction of it at most
_LEAST = 2.0**-149
_EPS = float(np.finfo(np.float64).eps)
_OTHERWISE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
}
"""What would make PEFT add something other than s·B·A, and the values with which it does not."""


def adapter_differences(
    folder: Path, answer: Answer, places: Mapping[str, Place], required: bool
) -> list[str]:
    """Return how the adapter in a folder is another update than the answer's, or is none.

    float32 rounds each entry of u and v by 2⁻²⁴ of it, so that s·BA is within (2⁻²³ + 2⁻⁴⁸)|u||v|ᵀ of uvᵀ.
    Where every rank is 0 there is no adapter. Raises InputError where a file cannot be read.
    """
    wanted = any(u.shape[1] for u, _ in answer.factors.values())
    there = [name for name in (_CONFIG, _WEIGHTS) if (folder / name).exists()]
    if not wanted:
        return ["there is an adapter, but the answer has rank 0"] if there else []
    if len(there) < 2:
        return ["the adapter is missing"] if required or there else []
    config = read_json(folder / _CONFIG, "run fit again")
    tensors = _read(folder / _WEIGHTS)
    try:
        return _compared(config, tensors, answer, places)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        return [f"the adapter's configuration cannot be followed ({type(error).__name__}: {error})"]


def _compared(
    config: Mapping[str, Any], tensors: dict[str, Any], answer: Answer, places: Mapping[str, Place]
) -> list[str]:
    reasons = [
        f"the adapter's {name} is {config.get(name)!r}"
        for name, allowed in _OTHERWISE.items()
        if name in config and config[name] not in allowed
    ]
    for module, names in _modules(answer, places).items():
        m, n = _whole(answer, places, names)
        fused = places[names[0]].rows is not None
        A, B = (tensors.pop(f"{_PREFIX}{module}.lora_{side}.weight", None) for side in "AB")
        wanted = sum(answer.factors[name][0].shape[1] for name in names)
        if (A is None) != (B is None) or (A is None) != (wanted == 0):
            reasons.append(f"the adapter's tensors of {module} are not those of rank {wanted}")
            continue
        if A is None or B is None:
            continue
        m = max(m, len(B)) if fused else m
        if A.dtype != np.float32 or B.dtype != np.float32 or A.shape != (wanted, n) or B.shape != (m, wanted):
            reasons.append(f"the adapter's tensors of {module} are {B.shape} and {A.shape} of {A.dtype}")
            continue
        update = _scaling(config, module, wanted) * (B.astype(np.float64) @ A.astype(np.float64))
        expected, size = np.zeros((m, n)), np.zeros((m, n))
        for name in names:
            u, v = answer.factors[name]
            rows = slice(*(places[name].rows or (0, m)))
            expected[rows], size[rows] = u @ v.T, np.abs(u) @ np.abs(v).T
        underflow = _LEAST * (np.abs(A).max() + np.abs(B).max() + 1) * wanted
        allowed = (2 * _SINGLE * (1 + _SINGLE) + 4 * (wanted + 2) * _EPS) * size + underflow
        if not bool((np.abs(update - expected) <= allowed).all()):
            reasons.append(f"the adapter's update of {module} is not the answer's")
    return reasons + _named(config, tensors, answer, places)


def _named(
    config: Mapping[str, Any], left: dict[str, Any], answer: Answer, places: Mapping[str, Place]
) -> list[str]:
    """Return what the configuration names that the answer does not have, and tensors that nobody names."""
    adapted = {places[name].module for name, (u, _) in answer.factors.items() if u.shape[1]}
    named = config.get("target_modules")
    reasons = []
    if not isinstance(named, list) or set(named) != adapted:
        reasons.append("the adapter's target_modules are not the layers of the answer")
    if config.get("fan_in_fan_out") is not any(p.transposed for p in places.values() if p.module in adapted):
        reasons.append("the adapter's fan_in_fan_out is not how the layers are stored")
    saved = config.get("modules_to_save") or []
    of = {name: [one for one in saved if f".{one}." in f".{name.removeprefix(_PREFIX)}"] for name in left}
    reasons += [f"the adapter has the tensor {name}, which the answer has not" for name in of if not of[name]]
    empty = set(saved) - {one for found in of.values() for one in found}
    reasons += [f"the adapter saves {one}, of which it has no tensor" for one in sorted(empty)]
    return reasons + [
        f"the adapter's {name} is not finite" for name, w in left.items() if not np.isfinite(w).all()
    ]


def _modules(answer: Answer, places: Mapping[str, Place]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in places:
        found.setdefault(places[name].module, []).append(name)
    return found


def _whole(answer: Answer, places: Mapping[str, Place], names: list[str]) -> tuple[int, int]:
    """Return the shape of a module's weight as far as the answer reaches into it."""
    rows = [places[name].rows for name in names]
    m = max(
        len(answer.factors[name][0]) if part is None else part[1]
        for name, part in zip(names, rows, strict=True)
    )
    return m, len(answer.factors[names[0]][1])


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the s by which PEFT multiplies BA: alpha over r, or over √r, by the first pattern that fits."""
    r = _patterned(config, "rank_pattern", module, config["r"])
    alpha = _patterned(config, "alpha_pattern", module, config["lora_alpha"])
    if r != rank:
        raise ValueError(f"the rank of {module} is {r} and not {rank}")
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _patterned(config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    patterns = config.get(name) or {}
    for key, value in patterns.items():
        if not re.fullmatch(r"\^?[\w\\.\-]+", key):
            raise ValueError(f"{name} has the key {key!r}, which fit does not write")
        if re.match(rf"(.*\.)?({key})$", module):
            return _number(value)
    return _number(default)


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{value!r} is no positive number")
    return value


def _read(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load

    try:
        return dict(load(path.read_bytes()))
    except Exception as error:  # safetensors raises a type of its own for each kind of damage
        raise InputError(
            f"got {path}, which cannot be read ({type(error).__name__}), expected the adapter that fit "
            "writes: run fit again"
        ) from error
