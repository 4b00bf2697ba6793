"""Names of weights from earlier releases of transformers, and what the network calls them now."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def current_names(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the network's own name for each weight, where it has one.

    `names` are full names of parameters or buffers. Files name some as earlier releases of transformers did:
    `vit.encoder.layer.0.attention.attention.query.weight` is `vit.layers.0.attention.q_proj.weight` since
    release 5. A name that the network has stands for itself. Any other is put through the renamings with
    which transformers itself loads old checkpoints of this architecture, and left out of the result when the
    network has no weight of the new name either.
    """
    known = set(module.state_dict()) | {f"{name}.weight" for name, _ in module.named_modules()}
    found, strange = {}, []
    for name in names:
        if name in known:
            found[name] = name
        else:
            strange.append(name)
    if strange:
        renamed = _renamed(module, strange)
        found |= {old: new for old, new in renamed.items() if new in known}
    return found


def _renamed(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    if not isinstance(module, PreTrainedModel):
        return {}
    # Conversions that also merge weights are no renamings: what they need is refused as absent.
    renamings = [step for step in get_model_conversion_mapping(module) if isinstance(step, WeightRenaming)]
    renamed = {}
    for name in names:
        new = name
        for step in renamings:
            new, _ = step.rename_source_key(new)
        renamed[name] = new
    return renamed
