"""A pretrained network and its K outputs per example: what every later step sees of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tangentlora import processes

if TYPE_CHECKING:
    from tangentlora.models.targets import Target

Features = dict[str, Tensor]
"""One encoded example, as a tokenizer or processor returns it, without a batch axis."""

_CALL = 2  # examples of mean length that a pass of the network costs besides: docs/benchmarks.md has its gain


@dataclass(frozen=True)
class Batch:
    """Examples that pass through the network together: `index` says which, `tensors` is what it takes."""

    index: tuple[int, ...]
    tensors: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        return Batch(self.index, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def first(self) -> Batch:
        """Return the batch that holds the first example alone, padded as it was among the others."""
        return Batch(self.index[:1], {name: tensor[:1] for name, tensor in self.tensors.items()})


@runtime_checkable
class Reader(Protocol):
    """A readout bound to a network: encodes raw inputs, pads them into batches and reads the outputs."""

    def encode(self, inputs: Sequence[Any]) -> list[Features]: ...

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]: ...

    def outputs(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, "B K"]: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode with frozen parameters, and the reader that gives its outputs (B,K).

    `name` is what the user asked for (a hub id, a folder or `minilm`), `fingerprint` a SHA-256 over all
    weights, `notes` sentences about it that whoever reads its numbers should know.
    """

    name: str
    module: nn.Module
    reader: Reader
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def batches(
        self, features: Sequence[Features], batch_size: int = 32, *, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Yield every example once, those of similar length together so that little is spent on padding.

        A batch has `batch_size` examples at most, and fewer where lengths differ much. With `share` (r, p)
        these are the batches of process r of p, as `dealt_batches` gives them out.
        """
        rank, count = share
        for index, _ in dealt_batches(features, batch_size, count)[rank]:
            yield self.batch(features, index)

    def batch(self, features: Sequence[Features], index: tuple[int, ...]) -> Batch:
        """Return the batch of these examples, on the network's device."""
        return Batch(index, self.reader.collate([features[i] for i in index])).to(self.device)

    def outputs(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Return f(x_i), (B,K), on the autograd graph if anything upstream asks for gradients."""
        return self.reader.outputs(batch.tensors)

    @torch.no_grad()
    def predict(self, inputs: Sequence[Any], batch_size: int = 32) -> Float[Tensor, "N K"]:
        """Return the outputs (N,K) on raw inputs, in their order, on the CPU.

        Several processes have a share of the batches each, and all of the outputs in the end.
        """
        features = self.reader.encode(inputs)
        share = processes.rank(), processes.count()
        found = [(b.index, self.outputs(b).cpu()) for b in self.batches(features, batch_size, share=share)]
        # a process may have no batch, and then learns from the others what outputs are like
        likes = processes.gather_values([z[:0] for _, z in found[:1]], "outputs")
        z = torch.cat([z for _, z in found] or next(like for like in likes if like))
        index = torch.tensor([i for own, _ in found for i in own], dtype=torch.long)
        return processes.gather_rows(z, index, len(features), "outputs")

    def targets(self, modules: Sequence[str] = ("query", "value"), layers: str = "last") -> list[Target]:
        """Return the weight matrices to adapt; see :func:`tangentlora.models.targets.find_targets`."""
        from tangentlora.models.targets import find_targets

        return find_targets(self.module, modules, layers)


def dealt_batches(
    features: Sequence[Features], batch_size: int, count: int
) -> list[list[tuple[tuple[int, ...], int]]]:
    """Return for each of `count` processes its batches, longest first: the examples, and what they cost.

    The batches are the same for any count. The cost is their tokens with padding; each batch goes to the
    process that has least so far, so that all have about as much.
    """
    dealt: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in range(count)]
    load = [0] * count
    for index, cost in batched([length_of(example) for example in features], batch_size):
        least = load.index(min(load))
        dealt[least].append((index, cost))
        load[least] += cost
    return dealt


def batched(lengths: Sequence[int], batch_size: int) -> list[tuple[tuple[int, ...], int]]:
    """Return batches of examples of these lengths, longest first, and the tokens of each with padding.

    Of all ways to cut the examples, sorted by length, into runs of at most `batch_size`, it is the one of
    least cost Σ (tokens with padding + what a call costs), found by dynamic programming.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    scale, call = len(lengths), _CALL * sum(lengths)  # in integers: lengths times their number
    cost, begin = [0], [0]
    for stop in range(1, len(order) + 1):
        starts = range(max(0, stop - batch_size), stop)
        ways = [cost[i] + scale * lengths[order[i]] * (stop - i) + call for i in starts]
        least = min(ways)
        cost.append(least)
        begin.append(stop - 1 - ways[::-1].index(least))  # of equal ways the one whose long batches are full
    batches, stop = [], len(order)
    while stop:
        batches.append(tuple(order[begin[stop] : stop]))
        stop = begin[stop]
    return [(index, len(index) * lengths[index[0]]) for index in reversed(batches)]


def length_of(example: Features) -> int:
    """Return the number of tokens or samples, the extent that padding would equalise."""
    return max(tensor.shape[-1] if tensor.dim() else 1 for tensor in example.values())
