"""LoRA as users of PEFT train it: AdamW on the real, non-linear network."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tangentlora.adapters.check import restored
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target

_LARGEST_GRADIENT = 1.0
"""The norm to which gradients are cut, as the Trainer of transformers does unless told otherwise."""


def whole_weights(module: nn.Module, targets: Sequence[Target]) -> tuple[Target, ...]:
    """Return one target per module, the whole of its weight: PEFT adapts a fused weight as one matrix."""
    wholes = (replace(target, name=target.module, rows=None) for target in targets)
    shaped = (replace(target, shape=_shape(target, module)) for target in wholes)
    return tuple(dict.fromkeys(shaped))


def _shape(target: Target, module: nn.Module) -> tuple[int, int]:
    m, n = target.weight(module).shape
    return m, n


def train_lora(
    network: Network,
    targets: Sequence[Target],
    inputs: Sequence[Any],
    labels: Sequence[int],
    *,
    rank: int,
    alpha: float,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    weight_decay: float,
    seed: int,
    on_epoch: Callable[[int, Factors], None],
) -> Factors:
    """Train PEFT's LoRA layers on the real network and return δ_t = u_t v_tᵀ, u = (alpha/rank) B and v = Aᵀ.

    min over (A, B) of Σ_i CE(f(x_i; W + (alpha/rank) B A), y_i) by AdamW: the initialisation is PEFT's own
    (A uniform, B zero), examples are reshuffled in each epoch, the learning rate falls linearly from
    `learning_rate` to 0 and gradients are cut to norm 1, as in the Trainer of transformers; no dropout.
    Inside `on_epoch(epoch, factors)`, called after epochs 1, 2, ..., the network answers with the adapter as
    it is then. After the call the network is as before, bit for bit, and so is the random state. Equal
    arguments give equal factors on one machine with one number of threads. They are on the CPU and fit
    `updated` and `write_adapter`.

    `targets` are whole weights, see :func:`whole_weights`. Raises `InputError` for a part of a fused weight,
    numbers that are out of range, labels that are not N indices of the outputs, or a reader that does not
    call an adapted layer through PEFT.
    """
    _require_numbers(rank, alpha, learning_rate, epochs, batch_size, weight_decay)
    _require_labels(network, inputs, labels)
    if parts := [target.name for target in targets if target.rows is not None]:
        raise InputError(
            f"got {', '.join(parts)}, a part of a fused weight, expected whole weights, which is what PEFT "
            "adapts; pass the targets through whole_weights."
        )
    features = network.reader.encode(inputs)
    y = torch.tensor(labels, device=network.device)
    shuffle = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(features) / batch_size)
    with _injected(network, targets, rank, alpha, seed) as layers:
        parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
        for epoch in range(1, epochs + 1):
            for index in torch.split(torch.randperm(len(features), generator=shuffle), batch_size):
                rows = index.tolist()
                optimiser.zero_grad()
                # In halves of similar length, so that less is spent on padding; their gradients add up.
                for batch in network.batches([features[i] for i in rows], (len(rows) + 1) // 2):
                    expected = y[[rows[i] for i in batch.index]]
                    loss = functional.cross_entropy(network.outputs(batch), expected, reduction="sum")
                    (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
                _require_gradients(network, layers)
                nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
                optimiser.step()
                decay.step()
            factors = {name: _factors(layer) for name, layer in layers.items()}
            on_epoch(epoch, factors)
    return factors


@contextmanager
def _injected(
    network: Network, targets: Sequence[Target], rank: int, alpha: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Inside the block the network has fresh LoRA layers, given by module name; after it, it is as before."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        # One string is a regular expression for the full name: a list would match the ends of names.
        target_modules="|".join(re.escape(target.module) for target in targets),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=any(target.transposed for target in targets),
    )
    with restored(network.module):
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # PEFT sets this right layer by layer where Linear and Conv1D are adapted together.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            # PEFT's own use of an old name in transformers.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            torch.manual_seed(seed)
            get_peft_model(network.module, config)
        yield {target.name: network.module.get_submodule(target.module) for target in targets}


def _factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return u = (alpha/rank) B (m,r) and v = Aᵀ (n,r) of one of PEFT's layers as it is now."""
    (adapter,) = layer.active_adapters
    A, B = (part[adapter].weight.detach().cpu() for part in (layer.lora_A, layer.lora_B))
    return layer.scaling[adapter] * B, A.T.clone()


def _require_gradients(network: Network, layers: dict[str, Any]) -> None:
    for name, layer in layers.items():
        if any(p.grad is None for p in layer.parameters() if p.requires_grad):
            raise InputError(
                f"got a readout of {network.name} that does not use the adapter of {name}, expected one "
                "that reads the live network; choose another readout or leave that layer out."
            )


def _require_numbers(
    rank: int, alpha: float, learning_rate: float, epochs: int, batch_size: int, weight_decay: float
) -> None:
    finite = all(map(math.isfinite, (alpha, learning_rate, weight_decay)))
    if not finite or min(rank, epochs, batch_size) < 1 or min(alpha, learning_rate) <= 0 or weight_decay < 0:
        raise InputError(
            f"got rank {rank}, alpha {alpha}, learning rate {learning_rate}, {epochs} epochs, batch size "
            f"{batch_size} and weight decay {weight_decay}, expected positive numbers, or no weight decay; "
            "correct the one that is not."
        )


def _require_labels(network: Network, inputs: Sequence[Any], labels: Sequence[int]) -> None:
    K = network.predict(inputs[:1]).shape[1] if len(inputs) else 0
    if len(labels) != len(inputs) or not len(inputs) or not set(labels) <= set(range(K)):
        raise InputError(
            f"got {len(labels)} labels for {len(inputs)} examples and {K} outputs, expected one index below "
            f"{K} for each; check the data's labels."
        )
