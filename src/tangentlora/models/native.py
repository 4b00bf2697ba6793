"""What a checkpoint was trained to say, read from its configuration alone."""

from __future__ import annotations

from typing import Literal

from tangentlora.errors import InputError
from tangentlora.models.architecture import READ_OTHERWISE, is_of_another_task, saved_as
from tangentlora.models.load import load_config
from tangentlora.places import readout_for

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def native_readout(model: str, revision: str | None = None) -> Literal["prompt", "prototypes", "head"]:
    """Return the readout that a text checkpoint was trained for, as `readout_for` says.

    Raises InputError where there is no such model, and for one of another task: to label tokens, answer
    questions, choose or write texts.
    """
    name = saved_as(load_config(model, revision))
    if is_of_another_task(name):
        raise InputError(
            f"got {model!r}, a checkpoint of {name}, expected one that classifies or embeds whole texts or "
            f"predicts words; {READ_OTHERWISE}, and name the readout."
        )
    return readout_for(name)


def is_causal(model: str, revision: str | None = None) -> bool:
    """Say whether a checkpoint predicts the next token, or belongs to a family that can only do that.

    The family decides where the checkpoint was saved without a language-model head, as GPT-2 with a
    classifier. Raises InputError where there is no such model.
    """
    config = load_config(model, revision)
    name = saved_as(config)
    if name.endswith(("ForMaskedLM", *_CAUSAL)):
        return name.endswith(_CAUSAL)

    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
