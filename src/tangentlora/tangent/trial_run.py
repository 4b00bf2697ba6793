"""A few examples, spread evenly over the lengths, linearised as all of them will be: what does one cost?

Rows and bytes of the others are read off between the lengths that were tried, seconds are the least per
padded token. The memory of a batch is what autograd saved for the sample's, whose longest example is the
longest of all, in proportion to the number of examples. All of it is measured, and none of it proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tangentlora.models.network import Features, Network, length_of
from tangentlora.models.targets import Target
from tangentlora.tangent.capture import capture
from tangentlora.tangent.compress import compress_rows
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.plan import Rates, padded_tokens
from tangentlora.tangent.store_writer import SHARD_BYTES, pack

_SHARE = 1 / 64
"""Of all tokens, padding included, so many are spent on the sample; it has at least three examples."""
_BATCHES = 3


def measured(
    network: Network,
    features: Sequence[Features],
    targets: Sequence[Target],
    batch_size: int,
    centred: bool = False,
) -> Rates:
    """Linearise a few of the examples as `linearize` would and return the rates of all; no row is kept.

    They go in three batches, of long, middling and short ones. Raises InputError in the cases of `capture`.
    """
    sample = _sample(features, batch_size)
    step = math.ceil(len(sample) / _BATCHES)
    first = next(network.batches(sample[-1:], 1))
    capture(network, first, targets, centred=centred)  # the first call of all is slow
    tried = [_try(network, sample[i : i + step], targets, centred) for i in range(0, len(sample), step)]
    lengths = [length_of(example) for example in sample]
    known = sorted(set(lengths))
    parts = [one.jacobian for one in tried]
    whole = concatenate(parts)
    # a store of one shard mixes batches, and the widest rows of a shard decide how all are stored
    one_shard = whole.nbytes * len(features) < len(sample) * SHARD_BYTES
    stored = [size for part in ([whole] if one_shard else parts) for size in _stored(part)]
    return Rates(
        tuple(known),
        {name: _means(lengths, rows.counts.tolist(), known) for name, rows in whole.layers.items()},
        _means(lengths, stored, known),
        batch_bytes=tried[0].nbytes * min(batch_size, len(features)) // step,
        # the batches of all are larger, and no slower per token than the fastest of these
        seconds=min(one.seconds / one.tokens for one in tried),
        measured=True,
    )


@dataclass(frozen=True)
class _Trial:
    """What came of a batch, its tokens with padding, and the memory and the time that it took."""

    jacobian: Jacobian
    tokens: int
    nbytes: int
    seconds: float


def _try(network: Network, features: Sequence[Features], targets: Sequence[Target], centred: bool) -> _Trial:
    """Linearise one batch of examples that come longest first."""
    saved = {p.untyped_storage().data_ptr(): 0 for p in network.module.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    batch = network.batch(features, tuple(range(len(features))))
    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        captured = capture(network, batch, targets, centred=centred)
    layers = {t.name: compress_rows(captured.x[t.name], captured.g[t.name]) for t in targets}
    jacobian = Jacobian(layers).to(torch.float32)
    pack(jacobian.layers)
    taken = time.perf_counter() - began
    held = [x.nbytes + captured.g[name].nbytes for name, x in captured.x.items()]
    # what is captured exists twice when it is put together; compressing takes a layer in float64, and more
    passing = sum(saved.values()) + sum(held)
    compressing = 20 * max(held) // captured.outputs.element_size()
    tokens = len(features) * max(length_of(example) for example in features)
    return _Trial(jacobian, tokens, sum(held) + max(passing, compressing), taken)


def _stored(jacobian: Jacobian) -> list[float]:
    """Return the bytes that each of these examples takes where they are stored together."""
    total = sum(tensor.nbytes for tensor in pack(jacobian.layers)[0].values())
    counts = torch.stack([rows.counts for rows in jacobian.layers.values()], 1).double()
    shares = counts @ torch.tensor([float(sum(shape)) for shape in jacobian.shapes.values()]).double()
    own = 8 + 4 * jacobian.n_outputs  # its number and its outputs
    sizes: list[float] = (own + total * shares / shares.sum()).tolist()
    return sizes


def _sample(features: Sequence[Features], batch_size: int) -> list[Features]:
    """Return a few examples, from the longest to the shortest, at equal distances in rank."""
    order = sorted(features, key=length_of, reverse=True)
    lengths = [length_of(example) for example in order]
    budget = _SHARE * padded_tokens(lengths, batch_size)
    most = min(len(order), _BATCHES * batch_size)
    places = list(range(min(_BATCHES, most)))
    for count in range(len(places), most + 1):
        tried = np.linspace(0, len(order) - 1, count).round().astype(int).tolist()
        taken = padded_tokens([lengths[place] for place in tried], math.ceil(count / _BATCHES))
        if count > _BATCHES and taken > budget:
            break
        places = tried
    return [order[place] for place in places]


def _means(lengths: Sequence[int], values: Sequence[float], known: Sequence[int]) -> tuple[float, ...]:
    """Return the mean value at each of the known lengths."""
    return tuple(
        float(np.mean([v for v, at in zip(values, lengths, strict=True) if at == length])) for length in known
    )
