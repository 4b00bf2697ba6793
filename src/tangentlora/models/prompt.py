"""The prompt of a masked language model: the label words' logits at the mask, and no others."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.lengths import Encoded
from tangentlora.models.network import Features
from tangentlora.models.readouts import Readout
from tangentlora.models.template import CUT_TEXT, Template, cut
from tangentlora.models.text import TextEncoder, as_texts


@final
@dataclass(frozen=True)
class MaskPrompt(Readout):
    """z_k = the logit of the k-th label word at the mask of a prompt: (B,K) from a masked language model.

    `template` holds `{text}` and `{mask}` once, and `{text2}` if the examples are pairs: `{text} It was
    {mask}.`, `{mask}: {text}`, `{text}? {mask}, {text2:lower_first}`. Texts are stripped of outer spaces;
    where the template puts punctuation directly after a text, the text's own final `.`, `?` or `!` gives way
    to it; with `:lower_first` a text that stands inside the sentence begins in lower case. A space before
    the mask belongs to the word that the mask stands for, as in the networks' pretraining: label words are
    single tokens as they appear after a space, so for RoBERTa with the space in them. Long texts, the
    longest first, are cut to fit `max_length` tokens (None: all that the network and its tokenizer take); the
    rest of the template never is.

    Raises `InputError` when the template or the words are malformed. Source: the paper's experiments,
    section 5; the prompts are those of Gao, Fisch, Chen 2021 (arXiv:2012.15723).
    """

    template: str
    label_words: tuple[str, ...]
    max_length: int | None = None

    when_incomplete: ClassVar[str] = "choose a masked language model, or use label prototypes"

    def __post_init__(self) -> None:
        if len(self.label_words) < 2:
            raise InputError(
                f"got {len(self.label_words)} label words, expected at least two; give one for each label."
            )
        Template.parse(self.template)

    def model_class(self) -> Any:
        from transformers import AutoModelForMaskedLM

        return AutoModelForMaskedLM

    def bind(self, module: nn.Module, processor: Any) -> PromptReader:
        """Return the reader; raise `InputError` for a word of several tokens or an unknown architecture."""
        encoder, head, decoder = _encoder_and_head(module)
        if not getattr(processor, "is_fast", False) or processor.mask_token is None:
            raise InputError(
                f"got the tokenizer {type(processor).__name__}, expected a fast one with a mask token; "
                "choose a masked language model that has a tokenizer.json."
            )
        words = _label_ids(processor, self.label_words)
        reader = PromptReader(
            template=Template.parse(self.template),
            words=words,
            tokens=TextEncoder.for_module(encoder, processor, self.max_length),
            encoder=encoder,
            after_attention=_after_last_attention(encoder),
            head=_narrowed(head, decoder, words),
        )
        for candidate in (reader, replace(reader, after_attention=None)):
            if candidate.agrees_with(module):
                return candidate
        raise InputError(_unsupported(module))


@final
@dataclass(frozen=True, eq=False)
class PromptReader:
    """A masked language model read at the mask: the head sees one position and K rows of the vocabulary.

    `after_attention` is the module that follows the last self-attention, where it is known: from there on
    every position is on its own, so only the mask's goes on. That saves most of the last layer, forwards
    and even more backwards.
    """

    template: Template
    words: tuple[int, ...]
    tokens: TextEncoder
    encoder: nn.Module
    after_attention: nn.Module | None
    head: nn.Module

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Return the tokens of filled templates; raise `InputError` when one is ill-filled or too long."""
        tokenizer = self.tokens.tokenizer
        encoded, lost = [], []
        for i, texts in enumerate(as_texts(inputs)):
            sentence, slots = self.template.fill(texts, tokenizer.mask_token, i)
            tokens = tokenizer(sentence, return_offsets_mapping=True, verbose=False)
            if tokens["input_ids"].count(tokenizer.mask_token_id) != 1:
                raise InputError(
                    f"got example {i} whose text contains {tokenizer.mask_token!r}, expected the mask in the "
                    "template only; take it out of the text."
                )
            kept = cut(tokens["offset_mapping"], slots, self.tokens.max_length)
            if kept is None:
                raise InputError(
                    f"got the template {self.template.source!r}, which alone takes more than "
                    f"{self.tokens.max_length} tokens, expected room for a text; shorten it or raise "
                    "max_length."
                )
            lost.append(len(tokens["input_ids"]) - len(kept))
            self.tokens.require_known(tokens["input_ids"], i)
            encoded.append(
                {
                    name: torch.tensor(values)[kept]
                    for name, values in tokens.items()
                    if name in self.tokens.names
                }
            )
        return Encoded(encoded, lost, limit=self.tokens.max_length, part=CUT_TEXT)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return self.tokens.collate(features)

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]:
        """Return the label words' logits at the mask; the mask is gathered before the head."""
        at_mask = (tensors["input_ids"] == self.tokens.tokenizer.mask_token_id).int().argmax(dim=1)
        rows = torch.arange(len(at_mask), device=at_mask.device)

        def keep_mask(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(state[rows, at_mask].unsqueeze(1) for state in states)

        if self.after_attention is None:
            hidden = self.encoder(**tensors).last_hidden_state[rows, at_mask].unsqueeze(1)
        else:
            with self.after_attention.register_forward_pre_hook(keep_mask):
                hidden = self.encoder(**tensors).last_hidden_state
        logits: Tensor = self.head(hidden)
        return logits.squeeze(1)

    def describe(self) -> dict[str, Any]:
        return {"readout": "mask-prompt", "template": self.template.source, "label_ids": list(self.words)}

    @torch.no_grad()
    def agrees_with(self, module: nn.Module) -> bool:
        """Say whether the whole network gives the same on one prompt; some architectures do not."""
        batch = self.collate(self.encode([("one", "two")[: self.template.n_texts]]))
        batch = {name: tensor.to(next(module.parameters()).device) for name, tensor in batch.items()}
        at_mask = batch["input_ids"][0] == self.tokens.tokenizer.mask_token_id
        whole = module(**batch).logits[:, at_mask][:, 0, list(self.words)]
        try:
            ours = self.outputs(batch)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # the architecture has the names but not the shapes that were supposed
        # Only rounding may differ; another computation would differ in the first digits.
        tolerance = torch.finfo(whole.dtype).eps ** 0.5 * max(1.0, float(whole.abs().max()))
        return ours.shape == whole.shape and bool((ours - whole).abs().max() <= tolerance)


def _label_ids(tokenizer: Any, words: Sequence[str]) -> tuple[int, ...]:
    """Return the token id of each word as it reads inside a sentence, after a space."""
    before = len(tokenizer("a", add_special_tokens=False)["input_ids"])
    ids: dict[int, str] = {}
    for word in words:
        pieces = tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][before:]
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_token_id:
            raise InputError(
                f"got the label word {word!r}, which is {tokenizer.convert_ids_to_tokens(pieces)} to the "
                "tokenizer, expected a single token of its vocabulary; choose another word."
            )
        if pieces[0] in ids:
            raise InputError(
                f"got the label words {ids[pieces[0]]!r} and {word!r}, which are the same token, expected "
                "different ones; choose another word."
            )
        ids[pieces[0]] = word
    return tuple(ids)


def _encoder_and_head(module: Any) -> tuple[nn.Module, nn.Module, nn.Linear]:
    """Return the encoder, the one head beside it and the head's projection onto the vocabulary."""
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel) and module.base_model is not module:
        heads = [
            child
            for child in module.children()
            if child is not module.base_model and next(child.parameters(), None) is not None
        ]
        decoder = module.get_output_embeddings()
        inside = len(heads) == 1 and any(child is decoder for child in heads[0].modules())
        if inside and isinstance(decoder, nn.Linear) and not module.config.is_encoder_decoder:
            return module.base_model, heads[0], decoder
    raise InputError(_unsupported(module))


def _after_last_attention(encoder: nn.Module) -> nn.Module | None:
    """Return what BERT and its kin apply to the last self-attention and the residual, else None."""
    layers = [name for name, _ in encoder.named_modules() if re.fullmatch(r"encoder\.layer\.\d+", name)]
    try:
        return encoder.get_submodule(f"{layers[-1]}.attention.output") if layers else None
    except AttributeError:
        return None


def _narrowed(head: nn.Module, decoder: nn.Linear, words: Sequence[int]) -> nn.Module:
    """Return the head with only these rows of the decoder; its other layers are the network's own."""
    rows = list(words)
    # On the meta device no random number is drawn for values that are replaced at once.
    narrow = nn.Linear(decoder.in_features, len(rows), bias=decoder.bias is not None, device="meta")
    narrow.weight = nn.Parameter(decoder.weight.detach()[rows].clone(), requires_grad=False)
    if decoder.bias is not None:
        narrow.bias = nn.Parameter(decoder.bias.detach()[rows].clone(), requires_grad=False)
    # Layers and parameters stand for themselves in the copy, so that hooks and adapted weights are seen.
    memo: dict[int, Any] = {id(parameter): parameter for parameter in head.parameters()}
    memo |= {id(child): child for child in head.modules() if next(child.children(), None) is None}
    memo[id(decoder)] = narrow
    return copy.deepcopy(head, memo)


def _unsupported(module: nn.Module) -> str:
    return (
        f"got the architecture {type(module).__name__}, expected a masked language model made of one encoder "
        "and one head, such as BERT's or RoBERTa's; choose one, or use label prototypes or a classification "
        "head."
    )
