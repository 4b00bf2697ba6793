"""A PEFT adapter, in a folder or on the hub → `Adapter`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tangentlora.adapters.adapter import Adapter, LoraLayer, as_layer, require_layers
from tangentlora.adapters.config import Settings, adapts, rank_and_scaling, read_settings, require_plain
from tangentlora.adapters.write import CONFIG, PREFIX, WEIGHTS
from tangentlora.errors import InputError
from tangentlora.places import adapter_folder

_FILES = [
    CONFIG,
    f"*/{CONFIG}",
    WEIGHTS,
    "README.md",
    "*token*",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*processor_config.json",
]
"""What is downloaded from the hub: the adapter, its card, and a tokenizer or processor of its own.

The configurations in folders below say that there are adapters there, where the repository is none itself.
"""

_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")
_BESIDE = re.compile(r"\.(original_module|modules_to_save)\.")
"""With bias="all" PEFT also saves these by the names of its wrappers, which it does not read again: the
base's own bias of a module to save, and once more what stands in the file by the module's own name."""
_OTHER_TENSORS = {
    "lora_magnitude_vector": "the magnitudes of DoRA",
    "lora_embedding_A": "LoRA on an embedding",
    "lora_embedding_B": "LoRA on an embedding",
    "lora_B.bias": "a bias in lora_B",
    "trainable_tokens": "trained rows of an embedding",
}


def read_adapter(path: str | Path, *, revision: str | None = None) -> Adapter:
    """Read a LoRA adapter that PEFT saved: a folder, or a hub id of which the adapter's files are downloaded.

    δ_t = s_t B_t A_t with s = alpha/r, or alpha/√r with rsLoRA, r and alpha by module. Whole weights in the
    file (modules_to_save, trained biases, resized embeddings) become `saved`. `revision` is a branch, tag or
    commit of a hub id; the adapter's own `revision` is that of its network. Only safetensors are opened.

    Raises `InputError` when a file is missing, damaged or pickled, when the adapter is not plain LoRA (see
    :func:`tangentlora.adapters.config.require_plain`), when a tensor is none that PEFT's LoRA saves, when
    shapes contradict each other or the configuration, and when entries are not finite.
    """
    name = str(path)
    folder = _located(name, revision)
    _require_one(folder, name)
    settings = read_settings(folder / CONFIG, name)
    require_plain(settings, name)
    factors, saved = _sorted_out(_tensors(folder, name), name)
    layers = {module: _layer(settings, module, pair, name) for module, pair in factors.items()}
    require_layers(name, layers)
    _require_adapted(settings, layers, name)
    return replace(described(name, settings, layers, saved), folder=folder)


def described(
    name: str, settings: Settings, layers: dict[str, LoraLayer], saved: dict[str, Tensor]
) -> Adapter:
    """Return the adapter with what its settings say about it."""
    targets = settings.get("target_modules")
    task = settings.get("task_type")
    return Adapter(
        name=name,
        layers=layers,
        saved=saved,
        rslora=bool(settings.get("use_rslora")),
        base_model=settings.get("base_model_name_or_path") or None,
        revision=settings.get("revision") or None,
        task_type=None if task is None else str(task).rpartition(".")[2],
        target_modules=targets if isinstance(targets, str | None) else tuple(sorted(targets)),
        modules_to_save=tuple(settings.get("modules_to_save") or ()),
        bias=str(settings.get("bias") or "none"),
    )


def _located(name: str, revision: str | None) -> Path:
    """Return the folder with the adapter's files, downloaded or from the cache for a hub id."""
    folder = adapter_folder(name)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"got {name!r}, which is neither a folder here nor an adapter that the hub gave ({reason}), "
            "expected a PEFT adapter within reach; check the name and the connection, or download it and "
            "give its folder."
        ) from error


def _require_one(folder: Path, name: str) -> None:
    """Refuse a repository of the hub that holds adapters in folders and none itself, and name them."""
    if (folder / CONFIG).is_file():
        return
    if below := sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")):
        raise InputError(
            f"got {name}, which holds {CONFIG} in {', '.join(below[:5])} and not itself, expected one "
            f"adapter; download that (hf download {name}) and give the folder {below[0]} in it, or another "
            "of them."
        )


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(
            f"got the adapter {name} without {WEIGHTS}, expected safetensors, since an adapter_model.bin is "
            "a pickle and never opened here; load it with PEFT and save it again with "
            "safe_serialization=True."
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"got the adapter {name} with a damaged {WEIGHTS} ({error}), expected a whole file; download or "
            "save it again."
        ) from error
    return tensors


def _sorted_out(
    tensors: dict[str, Tensor], name: str
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return lora_A and lora_B by module, and the whole weights by parameter."""
    factors: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        own = key.removeprefix(PREFIX)
        if _BESIDE.search(own):
            continue
        match = _FACTOR.fullmatch(own)
        if match and own != key:
            factors.setdefault(match[1], {})[match[2]] = tensor
            continue
        kind = next((meaning for part, meaning in _OTHER_TENSORS.items() if part in own), None)
        if kind or own == key or ".lora_" in own:
            raise InputError(
                f"got the adapter {name} with the tensor {key} ({kind or 'of a kind not known here'}), "
                f"expected {PREFIX}<module>.lora_A.weight, lora_B.weight and whole weights; convert it with "
                "peft.save_as_lora where that is supported, or train it again as plain LoRA on Linear layers."
            )
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"got the adapter {name} with entries of {own} that are not finite, expected finite ones; "
                "take an earlier checkpoint of the run that diverged."
            )
        # A whole weight of an adapted layer is saved under the layer inside PEFT's.
        saved[own.replace(".base_layer.", ".")] = tensor
    return factors, saved


def _require_adapted(settings: Settings, modules: Collection[str], name: str) -> None:
    """Refuse factors that PEFT would leave out: of modules that the configuration does not adapt."""
    idle = [module for module in modules if adapts(settings, module) is False]
    if idle:
        listed = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        raise InputError(
            f"got the adapter {name} with factors for {listed}, which its {CONFIG} does not adapt "
            "(target_modules, exclude_modules, layers_to_transform, modules_to_save) and PEFT would leave "
            "out, expected one set of modules in both; use the configuration that belongs to these weights."
        )


def _layer(settings: Settings, module: str, pair: dict[str, Tensor], name: str) -> LoraLayer:
    r, scaling = rank_and_scaling(settings, module, name)
    if set(pair) != {"A", "B"}:
        raise InputError(
            f"got the adapter {name} with lora_{''.join(pair)} alone at {module}, expected both factors; "
            "save it again with PEFT."
        )
    layer = as_layer(name, module, pair["A"], pair["B"], scaling)
    if layer.rank != r:
        raise InputError(
            f"got the adapter {name} with a lora_A of {layer.rank} rows at {module} and the rank {r} in its "
            f"{CONFIG}, expected the same, since the scaling depends on it; use the configuration that "
            "belongs to these weights."
        )
    return layer
