"""Network + examples → Tangent: outputs at the pretrained weights and the Jacobian operator around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tangentlora import processes
from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.network import Batch, Features, Network, dealt_batches
from tangentlora.models.targets import Target
from tangentlora.progress import bar
from tangentlora.tangent.capture import capture
from tangentlora.tangent.compress import TOLERANCE, compress_rows
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.proof import prove, prove_padding
from tangentlora.tangent.shared_store import common_folder, is_stored, load_share
from tangentlora.tangent.store import of_outputs
from tangentlora.tangent.store_writer import ShardWriter, publish
from tangentlora.tangent.tangent import FORMAT, Tangent, key_of


def linearize(
    network: Network,
    inputs: Sequence[Any],
    targets: Sequence[Target] | None = None,
    *,
    batch_size: int = 32,
    centred: bool = False,
    store: Path | None = None,
    in_blocks: bool = False,
    progress: bool = False,
) -> Tangent:
    """Return the network's tangent on raw inputs: z_ik(δ) = f_k(x_i) + Σ_t ⟨∂f_k(x_i)/∂W_t, δ_t⟩, in float32.

    `targets` are the adapted matrices, by default query and value of the last layer. If `centred`, J is that
    of the outputs less their mean over the K: all that softmax cross-entropy can tell of them, for K−1
    backward passes in place of K and (K−1)/K of the output-gradients.

    `store` is a folder of tangents: one made earlier from the same network, inputs, targets and batch size is
    read instead of made again, and a new one is written there shard by shard, so that no more than a shard
    and a batch of it are in memory while it is made. The network is known by its fingerprint, so use no store
    while its weights are changed in place. With `in_blocks` the rows stay in the store, and are read from it
    block by block for every product: for more than memory holds. Several processes call this together and
    share the batches that go to a store.

    One example of the first batch is run alone: it must give the same outputs and the same Jacobian as among
    others, and that Jacobian must be autograd's.
    Raises InputError for an empty set, a network in training mode, outputs that are random or mix examples,
    and the cases of `capture` and `prove`.
    Source: Jang, Lee, Ryu 2024, section 2.
    """
    targets = tuple(network.targets() if targets is None else targets)
    require_passes(network, inputs, targets, batch_size)
    features = network.reader.encode(inputs)
    identity = identity_of(network, features, targets, batch_size, centred)
    folder = None if store is None else Path(store) / key_of(identity)
    if folder is not None and is_stored(folder):
        return _reuse(folder, in_blocks)
    work = _Work(network, targets, centred)
    parts = _parts(work, features, batch_size, progress, shared=folder is not None)
    if folder is None:
        found = list(parts)
        position = torch.cat([part.index for part in found]).argsort()
        jacobian = concatenate([part.jacobian for part in found]).select(position)
        f0 = torch.cat([part.outputs for part in found])[position]
        return Tangent(f0, of_outputs(jacobian, identity), targets, identity)
    with common_folder(folder) as partial:
        writer = ShardWriter(partial, processes.rank())
        for part in parts:
            writer.add(part.index, part.outputs, part.jacobian.layers)
        written = processes.gather_values(writer.close(), f"shards of {folder.name}")
        if processes.first():  # which had the first batch, so a part
            shards = [shard for of_one in written for shard in of_one]
            shapes = [target.shape for target in targets]
            publish(partial, folder, identity, shards, part.outputs.shape[1], shapes)
        processes.barrier(f"{folder.name} is stored")
    return _reuse(folder, in_blocks)  # the same bytes, at the same alignment in memory, as every later run


def linearize_at(
    network: Network,
    inputs: Sequence[Any],
    targets: Sequence[Target],
    factors: Factors,
    *,
    batch_size: int = 32,
    centred: bool = False,
    progress: bool = False,
) -> Tangent:
    """Return the tangent at W + δ, δ_t = u_t v_tᵀ: z(δ') = f0 + J(δ' − δ) with f0 = f(W+δ), in float32.

    It goes into no store, whose fingerprint is of W alone. Raises InputError as `linearize` and `attached`
    do.
    """
    with attached(network.module, targets, factors):
        return linearize(network, inputs, targets, batch_size=batch_size, centred=centred, progress=progress)


def require_passes(
    network: Network, inputs: Sequence[Any], targets: Sequence[Target], batch_size: int
) -> None:
    """Raise InputError for what no pass over examples can be made with: none of them, no targets, dropout."""
    if not len(inputs):
        raise InputError(
            "got an empty set of examples, expected at least one: check the data file or its filters"
        )
    if batch_size < 1:
        raise InputError(f"got batch size {batch_size}, expected at least 1: change --batch-size")
    if not targets:
        raise InputError("got no target matrices, expected at least one: name some with --target-modules")
    if any(module.training for module in network.module.modules()):
        raise InputError(
            f"got the network {network.name!r} in training mode, expected evaluation mode, in which dropout "
            "and batch statistics are off: call .eval() on its module"
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """What one batch gives, in float32 on the CPU: the numbers of its examples, their outputs and rows.

    The rows are those of the outputs' contrasts where the tangent is centred.
    """

    index: Int[Tensor, " B"]
    outputs: Float[Tensor, "B K"]
    jacobian: Jacobian


@dataclass(frozen=True, eq=False)
class _Work:
    """What is done with every batch."""

    network: Network
    targets: Sequence[Target]
    centred: bool

    def part(self, batch: Batch, proved: bool) -> _Part:
        """Return what a batch gives, which depends on nothing but the batch."""
        captured = capture(self.network, batch, self.targets, centred=self.centred)
        if proved:
            prove(self.network, batch, captured, self.targets, centred=self.centred)
        layers = {t.name: compress_rows(captured.x[t.name], captured.g[t.name]) for t in self.targets}
        return _Part(
            torch.tensor(batch.index), captured.outputs.float().cpu(), Jacobian(layers).to(torch.float32)
        )


def _parts(
    work: _Work, features: Sequence[Features], batch_size: int, progress: bool, shared: bool
) -> Iterator[_Part]:
    """Yield the parts batch by batch, this process's where they are `shared`.

    The first of all is proved, and the first that has padding is held against an example without.

    The processes tell each other how far they are as often as the one with fewest batches can, each when
    it has done that part of its own work: so none waits for another.
    """
    rank, count = (processes.rank(), processes.count()) if shared else (0, 1)
    dealt = dealt_batches(features, batch_size, count)
    total, rounds = sum(cost for _, cost in dealt[rank]), max(1, min(map(len, dealt)))
    tally, told, untold, spent = processes.Tally(shared), 0, 0, 0
    with bar(len(features), "linearising", "example", progress) as shown:
        proved = False
        for number, (index, cost) in enumerate(dealt[rank]):
            part = work.part(work.network.batch(features, index), number == rank == 0)
            proved = proved or prove_padding(work.network, features, index, part.outputs)
            yield part
            spent, untold = spent + cost, untold + len(index)
            while spent * rounds >= (told + 1) * total:
                shown.update(tally.add(untold) - shown.n)
                told, untold = told + 1, 0
        shown.update(tally.finish(rounds) - shown.n)


def _reuse(folder: Path, in_blocks: bool) -> Tangent:
    tangent = load_share(folder, in_blocks=in_blocks)
    if tangent.key != folder.name:
        raise InputError(
            f"got {folder}, which holds the tangent {tangent.key}, expected the one that it is named after: "
            "delete or rename that folder and run again to make it anew"
        )
    return tangent


def identity_of(
    network: Network,
    features: Sequence[Features],
    targets: Sequence[Target],
    batch_size: int,
    centred: bool = False,
) -> dict[str, Any]:
    """Return what a tangent is made from, by which a store knows it again."""
    digest = hashlib.sha256()
    for example in features:
        for name in sorted(example):
            tensor = example[name].contiguous().cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    identity = {
        "format": FORMAT,
        "model": network.name,
        "weights_sha256": network.fingerprint,
        "readout": network.reader.describe(),
        "data_sha256": digest.hexdigest(),
        "n_examples": len(features),
        "targets": [asdict(target) for target in targets],
        "batch_size": batch_size,
        "centred": centred,
        "compression_tolerance": TOLERANCE,
        "device": network.device.type,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(identity))
    return as_read_back
