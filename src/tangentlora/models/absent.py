"""Weights that a checkpoint lacks, and whether the outputs that are read depend on them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.network import Batch, Network
from tangentlora.models.precise import modules_of

LOST = (
    "the adapter does not hold them either, so whoever trained it drew them at random: save that network "
    "with save_pretrained where it still lives and give its folder as the model, or train again with their "
    "modules among modules_to_save"
)
"""The remedy where an adapter's network lacks weights."""

_WORDS = "it was a day like any other"


def used_weights(network: Network, names: Collection[str]) -> list[str]:
    """Return which of these weights are on the way from an input to the outputs, in alphabetical order.

    One made-up example goes through the network: a weight that autograd meets on the way back is used. So is
    one that differs from such a weight only in numbers, as the experts of a layer do, of which one example
    calls a few. What is not a parameter counts as used, and so does everything where no example can be made.
    """
    parameters = dict(network.module.named_parameters(remove_duplicate=False))
    batch = _example(network)
    if batch is None or not set(names) <= set(parameters):
        return sorted(names)
    patterns = {_pattern(name) for name in names}
    alike = {name: p for name, p in parameters.items() if _pattern(name) in patterns}
    frozen = [(p, p.requires_grad) for p in alike.values()]
    try:
        with torch.enable_grad():
            for parameter in alike.values():
                parameter.requires_grad_(True)
            outputs = _summed(network, batch)
            if outputs is None:
                return sorted(names)
            if not outputs.requires_grad:
                return []
            found = torch.autograd.grad(outputs, list(alike.values()), allow_unused=True)
    finally:
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)
    met = {_pattern(name) for name, gradient in zip(alike, found, strict=True) if gradient is not None}
    return sorted(name for name in names if _pattern(name) in met)


def absent_weights(model: str, module: nn.Module, wrong: Collection[str], remedy: str) -> InputError:
    """Return the refusal of a checkpoint that leaves these weights at random values."""
    names = sorted(wrong)
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return InputError(
        f"got {model!r} without weights of the right shape for {listed}, expected a complete "
        f"{type(module).__name__}; {remedy}."
    )


def require_unquantised(model: str, config: Any) -> None:
    """Refuse quantised weights, which are no matrices of numbers to which an update could be added."""
    settings = getattr(config, "quantization_config", None)
    if settings:
        plain = settings if isinstance(settings, dict) else settings.to_dict()
        raise InputError(
            f"got {model!r}, whose weights are quantised ({plain.get('quant_method', 'as configured')}), "
            "which is not read here, expected plain ones; give the network that it was made from, in full "
            "precision, as the model (--model)."
        )


def _summed(network: Network, batch: Batch) -> Tensor | None:
    """Return the sum of the outputs on the network's own weights, None where the reader keeps copies of some.

    A prompt's reader keeps the label words' rows of the head: then the whole network's logits are summed.
    """
    own = {id(p) for p in network.module.parameters()}
    copies = (p for kept in modules_of(network.reader) for p in kept.parameters() if id(p) not in own)
    if next(copies, None) is None:
        return network.outputs(batch).sum()
    logits = getattr(network.module(**batch.tensors), "logits", None)
    return logits.sum() if isinstance(logits, Tensor) else None


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".#", name)


def _example(network: Network) -> Batch | None:
    """Return one example of whatever the reader takes: a text, a pair of texts, an image or a sound."""
    for made in (_WORDS, (_WORDS, f" {_WORDS}"), _image(), np.sin(np.arange(16_000, dtype=np.float32))):
        try:
            batch = network.batch(network.reader.encode([made]), (0,))
            with torch.no_grad():
                network.outputs(batch)
        except Exception:  # readers and networks say in many ways that this is no input of theirs
            continue
        return batch
    return None


def _image() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64), (90, 120, 150))
