"""Frozen embeddings: what a classifier beside the network gets to see of an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora.errors import InputError
from tangentlora.models.classification import ClassificationReader, InputEncoder
from tangentlora.models.media import AudioEncoder
from tangentlora.models.network import Network
from tangentlora.models.prompt import PromptReader
from tangentlora.models.prototypes import PrototypeReader


@torch.no_grad()
def embeddings(network: Network, inputs: Sequence[Any], batch_size: int = 32) -> Float[Tensor, "N H"]:
    """Return the mean of the body's last hidden states over positions, in float64 on the CPU.

    φ_i = Σ_l w_il h_il / Σ_l w_il with the states h_i (L,H) of the body, the network without its head. For
    texts w_i is the attention mask; images and sounds count all their positions alike. Texts are encoded as
    they are, also where the network is read by a prompt, and pairs in the tokenizer's own pair form.

    Raises `InputError` for a reader that is not one of this project's readouts and in the cases of the
    encoder.
    """
    body, encoder = _body_and_encoder(network)
    # The mask of a sound counts samples, the states are frames: alone, a sound has no padding to leave out.
    size = 1 if isinstance(encoder, AudioEncoder) else batch_size
    dtype = next(body.parameters()).dtype
    features = encoder.encode(inputs)
    rows: dict[int, Tensor] = {}
    for batch in network.batches(features, size):
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.tensors.items()}
        hidden = body(**tensors).last_hidden_state.to("cpu", torch.float64)
        attended = torch.ones(hidden.shape[:2], dtype=torch.float64)
        if "attention_mask" in tensors and not isinstance(encoder, AudioEncoder):
            attended = tensors["attention_mask"].to("cpu", torch.float64)
        mean = (hidden * attended.unsqueeze(-1)).sum(dim=1) / attended.sum(dim=1, keepdim=True)
        rows.update(zip(batch.index, mean, strict=True))
    return torch.stack([rows[i] for i in range(len(features))])


def _body_and_encoder(network: Network) -> tuple[nn.Module, InputEncoder]:
    """Return the network without its head, and what turns raw inputs into tensors."""
    reader = network.reader
    if isinstance(reader, PrototypeReader):
        return reader.module, reader.tokens
    if isinstance(reader, PromptReader):
        return reader.encoder, reader.tokens
    if isinstance(reader, ClassificationReader):
        return _without_head(reader.module), reader.encoder
    raise InputError(
        f"got the reader {type(reader).__name__}, expected one of a mask prompt, prototypes or a "
        "classification head; load the network with one of these readouts."
    )


def _without_head(module: nn.Module) -> nn.Module:
    """Return the pretrained model inside a classification network, beside its head."""
    from transformers import PreTrainedModel

    bodies: list[nn.Module] = [child for child in module.children() if isinstance(child, PreTrainedModel)]
    if not bodies:
        raise InputError(
            f"got the architecture {type(module).__name__}, expected a pretrained body beside the "
            "classification head; choose another network."
        )
    return bodies[0]
