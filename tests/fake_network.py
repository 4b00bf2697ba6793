"""Networks for tests: any module with any function that reads its outputs, and their Jacobians by jacrev."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence

from tangentlora.models.network import Batch, Features, Network
from tangentlora.models.targets import Target

Read = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class PaddingReader:
    """Takes examples as they are, dictionaries of tensors, and pads them with zeros into batches."""

    read: Read

    def encode(self, inputs: Sequence[Any]) -> list[Features]:
        return list(inputs)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        return {name: pad_sequence([f[name] for f in features], batch_first=True) for name in features[0]}

    def outputs(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.read(tensors)

    def describe(self) -> dict[str, Any]:
        return {"readout": "padding"}


def fake_network(module: nn.Module, read: Read, fingerprint: str = "0" * 64) -> Network:
    """Return a frozen network in evaluation mode whose outputs (B,K) are `read(tensors)`."""
    return Network("fake", module.eval().requires_grad_(False), PaddingReader(read), fingerprint)


def examples_of(tensors: Mapping[str, Tensor]) -> list[Features]:
    """Split a batch into its examples."""
    size = len(next(iter(tensors.values())))
    return [{name: tensor[i] for name, tensor in tensors.items()} for i in range(size)]


def whole_batch(network: Network, tensors: Mapping[str, Tensor]) -> Batch:
    """Return all examples as one batch."""
    return next(network.batches(examples_of(tensors), batch_size=2**30))


class _Reading(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module, self.reader = network.module, network.reader

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.reader.outputs(tensors)


def jacrev_blocks(
    network: Network, tensors: Mapping[str, Tensor], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Return J_ik,t, (B,K,m,n) per target, by torch.func.jacrev with respect to the weights."""
    reading = _Reading(network)
    names = {target.name: f"module.{target.module}.weight" for target in targets}
    weights = {name: reading.get_parameter(name) for name in names.values()}

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(reading, parameters, (tensors,))

    with sdpa_kernel(SDPBackend.MATH):
        found = torch.func.jacrev(outputs)(weights)
    blocks = {}
    for target in targets:
        block = found[names[target.name]]
        block = block.mT if target.transposed else block
        blocks[target.name] = block if target.rows is None else block[:, :, slice(*target.rows)]
    return blocks


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖_F / ‖expected‖_F."""
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))
