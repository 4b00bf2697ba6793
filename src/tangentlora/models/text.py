"""From raw texts to token tensors, and from examples of different lengths to one padded batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tangentlora.errors import InputError
from tangentlora.models.lengths import Encoded, length_limit, text_config
from tangentlora.models.network import Features

Side = Literal["right", "left"]


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


def vocabulary_rows(module: nn.Module) -> int | None:
    """Return the number of token embeddings, None where the network does not tell."""
    try:
        table: Any = module.get_input_embeddings()  # type: ignore[operator]
        return int(table.weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def own_padding(module: nn.Module) -> int | None:
    """Return the padding id of the network's configuration, None for none or one without an embedding."""
    pad, rows = getattr(text_config(module), "pad_token_id", None), vocabulary_rows(module)
    return pad if isinstance(pad, int) and pad >= 0 and (rows is None or pad < rows) else None


def padding_id(module: nn.Module, tokenizer: Any) -> int:
    """Return the id that fills short examples: the network's own, the tokenizer's, end of text, or 0.

    The attention mask hides it, so any id of the vocabulary would do for a network without one of its own.
    """
    rows = vocabulary_rows(module)
    known = (own_padding(module), tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(t) for t in known if t is not None and t >= 0 and (rows is None or t < rows)), 0)


@contextmanager
def padding_told(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Inside the block a network without padding id of its own has one; yields the batch filled with it.

    A decoder-only classifier reads the last token that is not padding, which it knows by this id alone: one
    that ends no text of the batch, if possible one that stands in none. Raises `InputError` where every id
    ends a text.
    """
    mask = tensors.get("attention_mask")
    config: Any = module.config
    if "input_ids" not in tensors or mask is None or own_padding(module) is not None:
        yield tensors
        return
    ids = tensors["input_ids"]
    rows = vocabulary_rows(module) or int(ids.max()) + 2
    last = (mask.long() * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(dim=1, keepdim=True)
    used, ends = set(ids[mask.bool()].tolist()), set(ids.gather(1, last).flatten().tolist())
    for taken in (used, ends):
        pad = next((token for token in range(rows) if token not in taken), None)
        if pad is not None:
            break
    else:
        raise InputError(
            f"got a batch of {len(ids)} texts that end in every one of the {rows} tokens there are, expected "
            "one left for padding; take a smaller batch size."
        )
    configs = [config, text_config(module)]
    before = [part.pad_token_id if hasattr(part, "pad_token_id") else None for part in configs]
    try:
        for part in configs:
            part.pad_token_id = pad
        yield {**tensors, "input_ids": ids.masked_fill(~mask.bool(), pad)}
    finally:
        for part, value in zip(configs, before, strict=True):
            part.pad_token_id = value


def collate(
    features: Sequence[Features], fill: Mapping[str, float], side: Side = "right"
) -> dict[str, Tensor]:
    """Stack examples along a new first axis, padding on one side; tensors not named in `fill` get zeros."""
    return {
        name: pad_sequence(
            [f[name] for f in features],
            batch_first=True,
            padding_value=fill.get(name, 0),
            padding_side=side,
        )
        for name in features[0]
    }


@final
@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer held to what one network takes: its input names, its padding and its length.

    `rows` is the number of token embeddings, None where unknown; `side` is where short examples are filled.
    """

    tokenizer: Any
    names: frozenset[str]
    pad_id: int
    max_length: int
    rows: int | None = None
    side: Side = "right"

    @classmethod
    def for_module(cls, module: nn.Module, tokenizer: Any, max_length: int | None) -> TextEncoder:
        """Hold the tokenizer to this network, at most `max_length` tokens or all that it can take.

        Raises `InputError` where only special tokens would fit, and as `length_limit` does.
        """
        limit = length_limit(module, tokenizer, max_length)
        special = tokenizer.num_special_tokens_to_add(pair=True)
        if limit <= special:
            raise InputError(
                f"got room for {limit} tokens, expected more than the {special} special ones; set max_length."
            )
        pad, rows = padding_id(module, tokenizer), vocabulary_rows(module)
        return cls(tokenizer, accepted_inputs(module), pad, limit, rows)

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Return the tokens of texts and of pairs in the tokenizer's pair form, the longer text cut first.

        Raises `InputError` for what is no text, a text without a token, and as `require_known` does.
        """
        encoded, lost = [], []
        for i, texts in enumerate(as_texts(inputs)):
            tokens = self.tokenizer(*texts, verbose=False)
            lost.append(len(tokens["input_ids"]) - self.max_length)
            if lost[-1] > 0:
                tokens = self.tokenizer(*texts, truncation="longest_first", max_length=self.max_length)
            if not tokens["input_ids"]:
                raise InputError(
                    f"got example {i} without a single token, expected some text; drop or fill it."
                )
            self.require_known(tokens["input_ids"], i)
            encoded.append({name: torch.tensor(ids) for name, ids in tokens.items() if name in self.names})
        side = "beginning" if getattr(self.tokenizer, "truncation_side", "right") == "left" else "end"
        return Encoded(
            encoded, lost, limit=self.max_length, part=f"the {side} of the text (of the longer one of a pair)"
        )

    def require_known(self, ids: Sequence[int], example: int) -> None:
        """Raise `InputError` for a token that the network has no embedding for."""
        if self.rows is not None and ids and max(ids) >= self.rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"got example {example} with the token {token!r}, number {max(ids)} of the tokenizer, for a "
                f"network of {self.rows} token embeddings, expected its own tokenizer; take that, or call "
                "resize_token_embeddings and train."
            )

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad tokens with the padding id, the attention mask and the segments with zero."""
        return collate(features, {"input_ids": self.pad_id}, self.side)
