"""What a checkpoint was trained to say, read from its configuration alone."""

from __future__ import annotations

from typing import Literal

from tangentlora.models.load import load_config


def native_readout(model: str, revision: str | None = None) -> Literal["prompt", "prototypes", "head"]:
    """Return the readout that a text checkpoint was trained for.

    A masked language model is read by a prompt, a bare encoder (as sentence encoders are saved) by
    prototypes, and everything else by its classification head. Raises InputError where there is no such
    model.
    """
    architectures = getattr(load_config(model, revision), "architectures", None) or [""]
    name = str(architectures[0])
    if name.endswith("ForMaskedLM"):
        return "prompt"
    # GPT2LMHeadModel and its like end in Model too, and have a head that says no label
    return "prototypes" if name.endswith("Model") and "Head" not in name else "head"
