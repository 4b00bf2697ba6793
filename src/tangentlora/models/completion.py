"""Completions: how likely a causal language model thinks the given continuation of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.causal_network import CausalNetwork
from tangentlora.models.lengths import Encoded
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.text import as_texts


@final
@dataclass(frozen=True)
class Completion(Readout):
    """z = Σ_j log p(token j | all before it), in nats, over the n tokens of a completion: (B,1), in float32.

    Inputs are pairs (prompt, completion). With `per_token`, z is that sum divided by n. The mean of −z over
    the examples is then the mean over examples of each one's loss per token; the usual language-model loss,
    the mean over all tokens, counts an example n times as much, and equals it where all n are equal. Without
    `per_token` it is the mean negative log-likelihood of whole completions.

    The two texts are joined as they stand and tokenised together: a token that ends inside the completion is
    the completion's. No end-of-text token is added and one that the tokenizer appends is left out; write it
    at the end of the completion, as text, where it shall count. Where both are longer than `max_length`
    tokens (None: all that the network and its tokenizer take), the prompt loses its beginning; a completion
    is never cut.

    Raises `InputError` for a length below 2.
    """

    max_length: int | None = None
    per_token: bool = True

    when_incomplete: ClassVar[str] = "choose a causal language model"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise InputError(
                f"got max_length={self.max_length}, expected at least 2, for a token and the one after it; "
                "raise it."
            )

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def bind(self, module: nn.Module, processor: Any) -> CompletionReader:
        """Return the reader; raise `InputError` for an architecture that is no causal language model."""
        return CompletionReader(self.per_token, CausalNetwork.of(module, processor, self.max_length))


@final
@dataclass(frozen=True, eq=False)
class CompletionReader:
    """A causal language model that scores completions; the vocabulary is seen at their tokens only."""

    per_token: bool
    network: CausalNetwork

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Return the tokens and which of them are the completion's.

        Raises `InputError` for what is no pair, a completion without a token or with no token before it, and
        one that is too long.
        """
        encoded, lost, limit = [], [], self.network.tokens.max_length
        for i, texts in enumerate(as_texts(inputs)):
            if len(texts) != 2:
                raise InputError(
                    f"got one text in example {i}, expected a prompt and its completion; pass (str, str)."
                )
            tokens = self.network.encode("".join(texts))
            ids, start = tokens["input_ids"], len(texts[0])
            first = next((j for j, (_, end) in enumerate(tokens["offset_mapping"]) if end > start), len(ids))
            n = len(ids) - first
            if n == 0 or first == 0:
                raise InputError(
                    f"got example {i} with {n} tokens in the completion and {first} before it, expected at "
                    "least one of each; fill the prompt and the completion."
                )
            if n >= limit:
                raise InputError(
                    f"got example {i} whose completion takes {n} tokens, expected at most {limit - 1}; raise "
                    "max_length or shorten it."
                )
            kept = _end_of_prompt(tokens["special_tokens_mask"][:first], limit - n)
            lost.append(first - len(kept))
            self.network.tokens.require_known(ids, i)
            encoded.append(
                {
                    "input_ids": torch.tensor([ids[place] for place in kept] + ids[first:]),
                    "attention_mask": torch.ones(len(kept) + n, dtype=torch.long),
                    "completion": torch.tensor([0] * len(kept) + [1] * n),
                }
            )
        return Encoded(encoded, lost, limit=limit, part="the beginning of the prompt")

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.network.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B 1"]:
        """Return the log-likelihoods; the largest tensor made is (tokens of all completions, vocabulary)."""
        scored = tensors["completion"].bool()
        n, steps = scored.sum(dim=1), torch.arange(scored.shape[1], device=scored.device)
        steps = steps[: int(n.max())]
        own = steps < n.unsqueeze(1)  # completions shorter than the longest are filled up
        places = (scored.int().argmax(dim=1, keepdim=True) + steps).clamp(max=scored.shape[1] - 1)
        logits = self.network.logits(tensors, places - 1)[own]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        ids = tensors["input_ids"].gather(1, places)[own]
        log_p = -nn.functional.cross_entropy(logits, ids, reduction="none")
        sums = torch.stack([part.sum() for part in torch.split(log_p, n.tolist())])
        return (sums / n if self.per_token else sums).unsqueeze(1)

    def describe(self) -> dict[str, Any]:
        return {"readout": "completion", "per_token": self.per_token}


def _end_of_prompt(special: Sequence[int], room: int) -> list[int]:
    """Return which of a prompt's tokens to keep: the special ones at its beginning and the last others."""
    lead = next((j for j, one in enumerate(special) if not one), len(special))
    lead = min(lead, room)
    return [*range(lead), *range(max(lead, len(special) - (room - lead)), len(special))]
