"""The task that a class of transformers was made for: which of them have a head over whole examples."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tangentlora.errors import InputError

Modality = Literal["text", "image", "audio"]

_OTHER_HEADS = (
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForQuestionAnsweringSimple",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
    "ForAudioFrameClassification",
    "ForXVector",
)
"""Classes whose head may have the names and shapes of a classifier's, and another meaning."""

_WRITES = ("ForConditionalGeneration",)

READ_OTHERWISE = (
    "choose a checkpoint fine-tuned to classify whole texts, read it by a prompt or by label prototypes "
    "where it has what they need, or have a new head fitted to it (head_init='probe')"
)
"""The remedy for a network of another task."""


def saved_as(config: Any) -> str:
    """Return the class that a checkpoint was saved from, or an empty string."""
    return str((getattr(config, "architectures", None) or [""])[0])


def has_foreign_head(architecture: str) -> bool:
    """Say whether a class has a head that could be taken for one over whole examples."""
    return architecture.endswith(_OTHER_HEADS)


def is_of_another_task(architecture: str) -> bool:
    """Say whether a class was made neither to classify whole texts, nor to predict words or embed texts."""
    return architecture.endswith((*_OTHER_HEADS, *_WRITES))


def require_classifier(module: nn.Module, modality: Modality) -> None:
    """Raise `InputError` for a class of transformers that has no head over whole examples of this modality.

    Classes from elsewhere pass: what they are is seen by their outputs.
    """
    names = (c.__name__ for c in type(module).__mro__ if c.__module__.startswith("transformers.models."))
    name = next(names, None)
    if name is not None and name not in _classifiers(modality):
        raise InputError(
            f"got the architecture {name}, expected one with a head over whole {_PLURAL[modality]}, such as "
            f"{_EXAMPLE[modality]}; give a readout that suits it, such as MaskPrompt, CausalPrompt or "
            "Prototypes for texts, or the network with such a head."
        )


def require_single_label(config: Any) -> None:
    """Raise `InputError` for a head whose outputs are no logits of classes that exclude each other."""
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression"):
        what = "several labels at once" if problem.startswith("multi") else "numbers"
        raise InputError(
            f"got a network of the problem type {problem}, whose outputs tell {what}, expected one class of "
            "several, as cross-entropy takes it; choose a network trained for one label per example, or have "
            "a new head fitted (head_init='probe')."
        )


_PLURAL = {"text": "texts", "image": "images", "audio": "recordings"}
_EXAMPLE = {
    "text": "BertForSequenceClassification",
    "image": "ViTForImageClassification",
    "audio": "Wav2Vec2ForSequenceClassification",
}


def _classifiers(modality: Modality) -> set[str]:
    """Return the names of all classes that the Auto class of this modality makes."""
    from transformers.models.auto import modeling_auto as auto

    mapping = {
        "text": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "image": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "audio": auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    }[modality]
    found: set[str] = set()
    for names in mapping.values():
        found |= {names} if isinstance(names, str) else set(names)
    return found
