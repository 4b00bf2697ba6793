"""Adapters that PEFT puts on networks, trained with a penalty w/2 (‖A‖² + ‖B‖²), so that λ is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peft_adapters import peft_speaking
from tangentlora.data import Examples
from tangentlora.models.load import network_from_module
from tangentlora.models.network import length_of
from tangentlora.models.readouts import Readout
from tangentlora.problem.losses import CrossEntropy, Loss

_SIZE = 0.3  # of A and of B at the start: at B = 0, PEFT's own start, L-BFGS would leave a saddle


def trained(
    module: nn.Module,
    processor: Any,
    readout: Readout,
    examples: Examples,
    *,
    rank: int,
    weight_decay: float,
    steps: int,
    targets: Sequence[str],
    loss: Loss | None = None,
    frozen: Iterable[nn.Module] = (),
    **settings: Any,
) -> Any:
    """Return PEFT's model of `module`, its LoRA layers trained by full-batch L-BFGS for at most `steps`.

    The objective is the mean loss + w/2 (‖A‖² + ‖B‖²); `settings` are those of `LoraConfig`, by default with
    scaling 1. `frozen` are layers before all adapters, whose outputs are computed once.
    """
    from peft import LoraConfig, get_peft_model

    network = network_from_module(module, processor, readout, name="base")
    loss = loss or CrossEntropy()
    config = LoraConfig(r=rank, target_modules=list(targets), **({"lora_alpha": rank} | settings))
    with peft_speaking():
        model = get_peft_model(module, config).eval()
    weights = [p for name, p in model.named_parameters() if ".lora_" in name]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(_SIZE * torch.randn(weight.shape, generator=draw) / weight.numel() ** 0.5)
    features = network.reader.encode(examples.inputs)
    order = sorted(range(len(features)), key=lambda i: -length_of(features[i]))
    batch = network.batch(features, tuple(order))
    y = torch.tensor(examples.labels)[list(batch.index)]
    optimiser = torch.optim.LBFGS(
        weights, max_iter=steps, tolerance_grad=3e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        penalty = torch.stack([weight.square().sum() for weight in weights]).sum()
        value = loss.value(network.outputs(batch), y).mean() + 0.5 * weight_decay * penalty
        value.backward()
        return value

    with _remembered(frozen):
        optimiser.step(closure)
    return model


@contextmanager
def _remembered(layers: Iterable[nn.Module]) -> Iterator[None]:
    layers = list(layers)
    for layer in layers:
        layer.forward = _once(layer.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _once(forward: Any) -> Any:
    seen: list[Any] = []

    def answer(*args: Any, **kwargs: Any) -> Any:
        if not seen:
            seen.append(forward(*args, **kwargs))
        return seen[0]

    return answer
