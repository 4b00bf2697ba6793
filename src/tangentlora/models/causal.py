"""The prompt of a causal language model: the label words' logits for the token that comes next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.causal_network import CausalNetwork
from tangentlora.models.lengths import Encoded
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.template import CUT_TEXT, Template, cut
from tangentlora.models.text import as_texts


@final
@dataclass(frozen=True)
class CausalPrompt(Readout):
    """z_k = the logit of the k-th label word as a prompt's next token: (B,K) from a causal language model.

    `template` is that of :class:`tangentlora.models.MaskPrompt` and ends with `{mask}`; punctuation after it
    is dropped, since a causal network reads from left to right: `{text} It was {mask}.` asks for what
    follows "… It was". A label word is read as it stands after a space. One of several tokens is known by
    the first token in which the words differ, and the tokens before, which all words share, end the prompt:
    where digits are `▁`, `0` and `▁`, `1`, the prompt ends with `▁` and the outputs are the logits of `0` and
    `1`. Long texts are cut as for masks, to `max_length` tokens (None: all that the network and its tokenizer
    take).

    Raises `InputError` when the template or the words are malformed.
    """

    template: str
    label_words: tuple[str, ...]
    max_length: int | None = None

    when_incomplete: ClassVar[str] = "choose a causal language model, or use a classification head"

    def __post_init__(self) -> None:
        if len(self.label_words) < 2:
            raise InputError(
                f"got {len(self.label_words)} label words, expected at least two; give one for each label."
            )
        _without_mask(Template.parse(self.template))

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def bind(self, module: nn.Module, processor: Any) -> CausalReader:
        """Return the reader; raise `InputError` for words that look alike or an unknown architecture."""
        network = CausalNetwork.of(module, processor, self.max_length)
        template = _without_mask(Template.parse(self.template))
        shared, words = _next_tokens(processor, template.literals[-2], self.label_words)
        return CausalReader(template, shared, words, network)


@final
@dataclass(frozen=True, eq=False)
class CausalReader:
    """A causal language model read after the prompt; `shared` are the tokens that end every prompt."""

    template: Template
    shared: tuple[int, ...]
    words: tuple[int, ...]
    network: CausalNetwork

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Return the tokens of filled templates; raise `InputError` when one is ill-filled or too long."""
        encoded, lost = [], []
        room = self.network.tokens.max_length - len(self.shared)
        for i, texts in enumerate(as_texts(inputs)):
            sentence, slots = self.template.fill(texts, "", i)
            tokens = self.network.encode(sentence)
            kept = cut(tokens["offset_mapping"], slots, room)
            if kept is None:
                raise InputError(
                    f"got the template {self.template.source!r}, which alone takes more than {room} tokens, "
                    "expected room for a text; shorten it or raise max_length."
                )
            ids = [tokens["input_ids"][place] for place in kept] + list(self.shared)
            if not ids:
                raise InputError(
                    f"got example {i} without a single token, expected some text; drop or fill it."
                )
            lost.append(len(tokens["input_ids"]) - len(kept))
            self.network.tokens.require_known(ids, i)
            encoded.append({"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)).long()})
        return Encoded(encoded, lost, limit=self.network.tokens.max_length, part=CUT_TEXT)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.network.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        """Return the label words' logits after the last token that is not padding."""
        attended = tensors["attention_mask"]
        last = (attended * torch.arange(1, attended.shape[1] + 1, device=attended.device)).argmax(dim=1)
        return self.network.logits(tensors, last.unsqueeze(1))[:, 0, list(self.words)]

    def describe(self) -> dict[str, Any]:
        return {
            "readout": "causal-prompt",
            "template": self.template.source,
            "shared_ids": list(self.shared),
            "label_ids": list(self.words),
        }


def _without_mask(template: Template) -> Template:
    """Return the template with nothing in place of the mask, which must be at its end."""
    after = template.literals[-1]
    if template.fields[-1] != "mask" or re.fullmatch(r"[\s.?!,;:]*", after) is None:
        raise InputError(
            f"got the template {template.source!r}, expected one that ends with {{mask}} for a causal "
            "language model, which reads from left to right; write for example '{text} It was {mask}.' or "
            "'{text} {text2} Answer: {mask}'."
        )
    return replace(template, literals=(*template.literals[:-1], ""))


def _next_tokens(
    tokenizer: Any, before: str, words: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that all words share at their beginning, and of each word the one that follows."""
    context = before if before.strip() else "a"
    start = tokenizer(context, add_special_tokens=False)["input_ids"]
    pieces = []
    for word in words:
        found = tokenizer(f"{context} {word.strip()}", add_special_tokens=False)["input_ids"]
        own = found[len(start) :]
        if not word.strip() or found[: len(start)] != start or tokenizer.unk_token_id in own:
            raise InputError(
                f"got the label word {word!r}, which is {tokenizer.convert_ids_to_tokens(own)} to the "
                f"tokenizer after {context!r}, expected tokens of its vocabulary; choose another word."
            )
        pieces.append(own)
    n = 0
    while all(len(own) > n and own[n] == pieces[0][n] for own in pieces):
        n += 1
    seen: dict[Any, str] = {}
    for word, own in zip(words, pieces, strict=True):
        token = own[n] if len(own) > n else None  # None: the word is the beginning of all others
        if token is None or token in seen:
            raise InputError(
                f"got the label word {word!r}, {tokenizer.convert_ids_to_tokens(own)} to the tokenizer: its "
                f"token {n + 1} does not tell it from {seen.get(token, words[-1])!r}, expected words that "
                "all differ there; choose another word."
            )
        seen[token] = word
    return tuple(pieces[0][:n]), tuple(seen)
