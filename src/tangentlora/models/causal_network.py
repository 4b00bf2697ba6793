"""A causal language model whose vocabulary is looked at where it is asked for, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.network import Features
from tangentlora.models.text import TextEncoder

_TAKEN = frozenset({"input_ids", "attention_mask"})


@final
@dataclass(frozen=True, eq=False)
class CausalNetwork:
    """A causal language model whose head, its projection onto the vocabulary, sees chosen positions only."""

    module: nn.Module
    tokens: TextEncoder

    @classmethod
    def of(cls, module: Any, tokenizer: Any, max_length: int | None) -> CausalNetwork:
        """Tie the network to its tokenizer; raise `InputError` unless each token is told by those before."""
        from transformers import PreTrainedModel

        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"got the tokenizer {type(tokenizer).__name__}, expected a fast one; choose a causal "
                "language model that has a tokenizer.json."
            )
        if isinstance(module, PreTrainedModel) and isinstance(module.get_output_embeddings(), nn.Module):
            network = cls(module, TextEncoder.for_module(module, tokenizer, max_length))
            if not module.config.is_encoder_decoder and _is_causal(network):
                return network
        raise InputError(
            f"got the architecture {type(module).__name__}, expected a causal language model with one "
            "projection onto its vocabulary, such as GPT-2's or Llama's; choose one, or use a classification "
            "head."
        )

    def encode(self, text: str) -> dict[str, list[Any]]:
        """Return ids and offsets of a text's tokens without the special ones that a tokenizer appends."""
        found = self.tokens.tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        n = len(found["input_ids"])
        while n and found["special_tokens_mask"][n - 1]:
            n -= 1
        return {name: list(values)[:n] for name, values in found.items()}

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """Pad on the right, where a causal network does not look, and hide the padding."""
        return self.tokens.collate(features)

    def logits(
        self, tensors: Mapping[str, Tensor], positions: Int[Tensor, "B P"]
    ) -> Float[Tensor, "B P vocabulary"]:
        """Return the logits of the tokens after these positions, gathered before the head."""
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)

        def gather(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(state[rows, positions] for state in states)

        # Asked for anew each time: PEFT may have put a module of its own in its place.
        head: nn.Module = self.module.get_output_embeddings()  # type: ignore[operator]
        with head.register_forward_pre_hook(gather, prepend=True):
            return self.run(tensors)

    def run(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B P vocabulary"]:
        """Return the whole network's logits, without keeping anything for tokens to come."""
        taken: dict[str, Any] = {name: t for name, t in tensors.items() if name in _TAKEN & self.tokens.names}
        if "use_cache" in self.tokens.names:
            taken["use_cache"] = False
        logits: Tensor = self.module(**taken).logits
        return logits


@torch.no_grad()
def _is_causal(network: CausalNetwork) -> bool:
    """Say whether later tokens change nothing, and the head alone makes logits of what it is shown."""
    device = next(network.module.parameters()).device
    ids = torch.arange(1, 5, device=device).unsqueeze(0)
    long = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    short = {name: tensor[:, :2] for name, tensor in long.items()}
    try:
        whole, begun = network.run(long), network.run(short)
        gathered = network.logits(long, torch.tensor([[1, 3]], device=device))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False  # the architecture has the names but not the shapes that were supposed
    # Only rounding may differ; another computation would differ in the first digits.
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * max(1.0, float(whole.abs().max()))
    pairs = ((whole[:, :2], begun), (whole[:, [1, 3]], gathered))
    return all(a.shape == b.shape and bool((a - b).abs().max() <= tolerance) for a, b in pairs)
