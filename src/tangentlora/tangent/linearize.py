"""Network + examples → Tangent: outputs at the pretrained weights and the Jacobian operator around them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.attach import attached
from tangentlora.models.network import Batch, Features, Network
from tangentlora.models.targets import Target
from tangentlora.progress import bar
from tangentlora.tangent.capture import capture
from tangentlora.tangent.compress import TOLERANCE, compress_tokens
from tangentlora.tangent.jacobian import Jacobian, concatenate
from tangentlora.tangent.store import load_tangent, save_tangent
from tangentlora.tangent.tangent import FORMAT, Tangent, key_of


def linearize(
    network: Network,
    inputs: Sequence[Any],
    targets: Sequence[Target] | None = None,
    *,
    batch_size: int = 32,
    store: Path | None = None,
    progress: bool = False,
) -> Tangent:
    """Return the network's tangent on raw inputs: z_ik(δ) = f_k(x_i) + Σ_t ⟨∂f_k(x_i)/∂W_t, δ_t⟩, in float32.

    `targets` are the adapted matrices, by default query and value of the last layer. `store` is a folder of
    tangents: one made earlier from the same network, inputs, targets and batch size is read instead of made
    again, and a new one is written there; the network is known by its fingerprint, so use no store while its
    weights are changed in place. On the first batch the network is probed: one example must give the
    same outputs alone and among others, and the Jacobian must agree with autograd's.
    Raises InputError for an empty set, a network in training mode, outputs that are random or mix examples,
    and the cases of `capture`.
    Source: Jang, Lee, Ryu 2024, section 2.
    """
    targets = tuple(network.targets() if targets is None else targets)
    require_passes(network, inputs, targets, batch_size)
    features = network.reader.encode(inputs)
    identity = _identity(network, features, targets, batch_size)
    folder = None if store is None else Path(store) / key_of(identity)
    if folder is not None and folder.exists():
        return _reuse(folder)
    outputs: list[Tensor] = []
    parts: list[Jacobian] = []
    order: list[int] = []
    with bar(len(features), "linearising", "example", progress) as shown:
        for batch in network.batches(features, batch_size):
            captured = capture(network, batch, targets, prove=not parts)
            if not parts:
                _probe(network, batch, captured.outputs)
            outputs.append(captured.outputs.float().cpu())
            layers = {t.name: compress_tokens(captured.x[t.name], captured.g[t.name]) for t in targets}
            parts.append(Jacobian(layers).to(torch.float32))
            order.extend(batch.index)
            shown.update(len(batch.index))
    position = torch.argsort(torch.tensor(order))
    jacobian = concatenate(parts).select(position)
    tangent = Tangent(torch.cat(outputs)[position], jacobian, targets, identity, folder)
    if folder is None:
        return tangent
    save_tangent(tangent, folder)
    return _reuse(folder)  # from the same bytes, at the same alignment in memory, as every later run


def linearize_at(
    network: Network,
    inputs: Sequence[Any],
    targets: Sequence[Target],
    factors: Factors,
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Tangent:
    """Return the tangent at W + δ, δ_t = u_t v_tᵀ: z(δ') = f0 + J(δ' − δ) with f0 = f(W+δ), in float32.

    It goes into no store, whose fingerprint is of W alone. Raises InputError as `linearize` and `attached`
    do.
    """
    with attached(network.module, targets, factors):
        return linearize(network, inputs, targets, batch_size=batch_size, progress=progress)


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


def _reuse(folder: Path) -> Tangent:
    tangent = load_tangent(folder)
    if tangent.key != folder.name:
        raise InputError(
            f"got {folder}, which holds the tangent {tangent.key}, expected the one that it is named after: "
            "delete or rename that folder and run again to make it anew"
        )
    return tangent


def _identity(
    network: Network, features: Sequence[Features], targets: Sequence[Target], batch_size: int
) -> dict[str, Any]:
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
        "compression_tolerance": TOLERANCE,
        "device": network.device.type,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    as_read_back: dict[str, Any] = json.loads(json.dumps(identity))
    return as_read_back


@torch.no_grad()
def _probe(network: Network, batch: Batch, outputs: Float[Tensor, "B K"]) -> None:
    """Run the first example alone: randomness, batch statistics and mixing between examples all show here."""
    alone = network.outputs(batch.first())[0]
    error = float((alone - outputs[0]).abs().max())
    scale = float(outputs.abs().max())
    dtype = next(network.module.parameters()).dtype
    allowed = 5e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-3
    if not error <= allowed * max(scale, 1e-6):  # not >, which a NaN would pass
        raise InputError(
            f"got outputs that differ by {error:.1e} between two runs on one example, expected a network "
            "that is deterministic and treats examples separately: switch off dropout and batch statistics"
        )
