"""Label prototypes: a sentence encoder compares the input with one sentence naming each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tangentlora.errors import InputError
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.text import TextEncoder, accepted_inputs


@final
@dataclass(frozen=True)
class Prototypes(Readout):
    """z_k = scale · cos(e(x), e(s_k)), where e is the mean of the last hidden states over a text's tokens.

    `sentences` s_1..s_K name the labels, such as "It was terrible." and "It was great.". Their embeddings are
    computed once, at the pretrained weights, and stay constant: the Jacobian is that of e(x) alone. Pairs are
    joined in the tokenizer's own pair form; texts are cut to `max_length` tokens (None: all that the network
    and its tokenizer take). A live network with a head is read without it.

    Raises `InputError` for fewer than two sentences or a scale that is not positive.
    """

    sentences: tuple[str, ...]
    scale: float = 20.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        if len(self.sentences) < 2:
            raise InputError(
                f"got {len(self.sentences)} prototype sentences, expected at least two; give one for each "
                "label."
            )
        if not 0 < self.scale < float("inf"):
            raise InputError(f"got a prototype scale of {self.scale}, expected a positive number; try 20.")

    def model_class(self) -> Any:
        from transformers import AutoModel

        return AutoModel

    def initialises(self, module: nn.Module, weight: str) -> bool:
        """The pooler may be missing: the mean over tokens does not pass through it."""
        return "pooler" in weight.split(".")

    def bind(self, module: nn.Module, processor: Any) -> PrototypeReader:
        """Return the reader, with the prototypes embedded by this network as it is now.

        Raises `InputError` when the network is not a text encoder or a decoder-only language model.
        """
        config: Any = module.config
        module = getattr(module, "base_model", module)
        names = accepted_inputs(module)
        if (
            not {"input_ids", "attention_mask"} <= names
            or "pixel_values" in names
            or config.is_encoder_decoder
        ):
            raise InputError(
                f"got the architecture {type(module).__name__}, expected one stack of layers over text, such "
                "as BERT's; choose one, or use a classification head."
            )
        tokens = TextEncoder.for_module(module, processor, self.max_length)
        batch = tokens.collate(tokens.encode(self.sentences))
        device = next(module.parameters()).device
        with torch.no_grad():
            embedded = _embed(module, {name: tensor.to(device) for name, tensor in batch.items()})
        return PrototypeReader(self, module, tokens, embedded)


@final
@dataclass(frozen=True, eq=False)
class PrototypeReader:
    """A sentence encoder with constant, normalised prototypes (K,H)."""

    readout: Prototypes
    module: nn.Module
    tokens: TextEncoder
    prototypes: Float[Tensor, "K H"]

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        return self.tokens.encode(inputs)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.tokens.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        return self.readout.scale * _embed(self.module, tensors) @ self.prototypes.T

    def describe(self) -> dict[str, Any]:
        return {
            "readout": "prototypes",
            "sentences": list(self.readout.sentences),
            "scale": self.readout.scale,
            "max_length": self.tokens.max_length,
        }


def _embed(module: nn.Module, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B H"]:
    """Return unit vectors along the mean of the last hidden states where the attention mask is 1."""
    hidden = getattr(module(**tensors), "last_hidden_state", None)
    if hidden is None:
        raise InputError(
            f"got the architecture {type(module).__name__}, which gives no last hidden states, expected a "
            "text encoder or a decoder-only language model; choose one, or use a classification head."
        )
    attended = tensors["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    mean = (hidden * attended).sum(dim=1) / attended.sum(dim=1)
    return functional.normalize(mean, dim=-1)
