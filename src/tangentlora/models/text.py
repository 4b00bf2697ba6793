"""From raw texts to token tensors, and from examples of different lengths to one padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tangentlora.errors import InputError
from tangentlora.models.network import Features


def as_texts(inputs: Sequence[Any]) -> list[tuple[str, ...]]:
    """Return each example as a tuple of one or two texts; raise `InputError` for anything else."""
    examples: list[tuple[str, ...]] = []
    for i, example in enumerate(inputs):
        texts = (example,) if isinstance(example, str) else example
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"got example {i} of type {type(example).__name__}, expected a text or a pair of texts; "
                "pass str or (str, str)."
            )
        if len(texts) not in (1, 2):
            raise InputError(
                f"got {len(texts)} texts in example {i}, expected one or two; pass str or (str, str)."
            )
        examples.append(texts)
    return examples


def accepted_inputs(module: nn.Module) -> frozenset[str]:
    """Return the names that the network's forward pass takes; tokenizers may offer more."""
    return frozenset(inspect.signature(module.forward).parameters)


def length_limit(module: nn.Module, tokenizer: Any, max_length: int) -> int:
    """Return the number of tokens that the caller, the tokenizer and the position embeddings allow."""
    limits = [max_length, int(tokenizer.model_max_length)]
    for name, child in module.named_modules():
        if name.split(".")[-1] in ("position_embeddings", "wpe") and isinstance(child, nn.Embedding):
            # RoBERTa counts positions from the one after the padding index.
            unused = 0 if child.padding_idx is None else child.padding_idx + 1
            limits.append(child.num_embeddings - unused)
    return min(limits)


def padding_id(module: nn.Module, tokenizer: Any) -> int:
    """Return the id that fills short examples: the network's own, the tokenizer's, or the end-of-text token.

    A decoder-only classifier finds its last token by this id, so a network without one is told of it.
    """
    config: Any = module.config
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((token for token in known if token is not None and token >= 0), None)
    if pad is None:
        raise InputError(
            "got a tokenizer without padding and end-of-text tokens, expected one of them; "
            "set tokenizer.pad_token and save the tokenizer."
        )
    config.pad_token_id = pad
    return int(pad)


def collate(features: Sequence[Features], fill: Mapping[str, float]) -> dict[str, Tensor]:
    """Stack examples along a new first axis, padding on the right; tensors not named in `fill` get zeros."""
    return {
        name: pad_sequence([f[name] for f in features], batch_first=True, padding_value=fill.get(name, 0))
        for name in features[0]
    }


@final
@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer held to what one network takes: its input names, its padding and its length."""

    tokenizer: Any
    names: frozenset[str]
    pad_id: int
    max_length: int

    @classmethod
    def for_module(cls, module: nn.Module, tokenizer: Any, max_length: int) -> TextEncoder:
        """Hold the tokenizer to this network; raise `InputError` when only special tokens would fit."""
        limit = length_limit(module, tokenizer, max_length)
        special = tokenizer.num_special_tokens_to_add(pair=True)
        if limit <= special:
            raise InputError(
                f"got room for {limit} tokens, expected more than the {special} special ones; set max_length."
            )
        return cls(tokenizer, accepted_inputs(module), padding_id(module, tokenizer), limit)

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        """Return the tokens of texts and of pairs in the tokenizer's pair form, the longer text cut first."""
        encoded = []
        for i, texts in enumerate(as_texts(inputs)):
            tokens = self.tokenizer(*texts, truncation="longest_first", max_length=self.max_length)
            if not tokens["input_ids"]:
                raise InputError(
                    f"got example {i} without a single token, expected some text; drop or fill it."
                )
            encoded.append({name: torch.tensor(ids) for name, ids in tokens.items() if name in self.names})
        return encoded

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad on the right: tokens with the padding id, the attention mask and the segments with zero."""
        return collate(features, {"input_ids": self.pad_id})
