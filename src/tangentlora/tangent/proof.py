"""Proof that a captured Jacobian is right: one example alone, against autograd and against its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.errors import InputError
from tangentlora.models.network import Batch, Features, Network, length_of
from tangentlora.models.targets import Target
from tangentlora.tangent.capture import Capture, capture
from tangentlora.tangent.centred import helmert

_COARSE = 5e-2
_ALLOWED = 1e-3
"""Relative change allowed between a batch and one of its examples alone, `_COARSE` in half precision."""


def prove(
    network: Network, batch: Batch, captured: Capture, targets: Sequence[Target], *, centred: bool = False
) -> None:
    """Run the first example of a batch alone and hold it against autograd and against the batch.

    Alone, Σ_k a_k J_k for random a must be autograd's gradient with respect to the weights, which finds
    weights that are used without calling their module. Outputs f, inputs x and output-gradients g must be
    those that it has among the others, which finds randomness, batch statistics and examples that mix, be it
    in the gradients alone. Together: J_ik = Σ_l g_lk x_lᵀ in the batch. The gradients of a batch that is
    `centred` must be the contrasts of those that the example has alone. Raises InputError where one of them
    fails, and as `capture` does.
    """
    alone = capture(network, batch.first(), targets, prove=True)
    dtype = next(network.module.parameters()).dtype
    allowed = _COARSE if dtype in (torch.float16, torch.bfloat16) else _ALLOWED
    error = float((alone.outputs - captured.outputs[:1]).abs().max())
    scale = float(captured.outputs.abs().max())
    if not error <= allowed * max(scale, 1e-6):  # not >, which a NaN would pass
        raise InputError(
            f"got outputs that differ by {error:.1e} between two runs on one example, expected a network "
            "that is deterministic and treats examples separately: switch off dropout and batch statistics"
        )
    # a gradient that cancels to zero leaves noise of the size of what cancelled
    noise = 10 * torch.finfo(dtype).eps * max(_norm(g) for g in alone.g.values())

    def seen(g: Float[Tensor, "B K L m"]) -> Float[Tensor, "B J L m"]:
        return torch.einsum("jk,bklm->bjlm", helmert(g.shape[1]).to(g), g) if centred else g

    for target in targets:
        for what, ours, theirs, least in (
            ("inputs", alone.x[target.name], captured.x[target.name][:1], 0.0),
            ("gradients", seen(alone.g[target.name]), captured.g[target.name][:1], noise),
        ):
            error = _norm(ours - theirs) if ours.shape == theirs.shape else float("inf")
            if not error <= allowed * _norm(ours) + least:
                raise InputError(
                    f"got {what} of {target.name!r} that differ by {error:.1e} between one example alone and "
                    f"among others, at a norm of {_norm(ours):.1e}, expected a network that treats examples "
                    "separately: choose other --target-modules or --batch-size 1"
                )


@torch.no_grad()
def prove_padding(
    network: Network, features: Sequence[Features], index: Sequence[int], outputs: Float[Tensor, "B K"]
) -> bool:
    """Run the shortest example of a batch without padding; its outputs must be those that it had with it.

    `index` are the batch's examples and `outputs` theirs. Returns False, with nothing run, where none of the
    batch was padded. Raises InputError where the outputs differ.
    """
    lengths = [length_of(features[i]) for i in index]
    if min(lengths) == max(lengths):
        return False
    place = lengths.index(min(lengths))
    alone = network.outputs(network.batch(features, (index[place],))).to(outputs)
    error, scale = float((alone[0] - outputs[place]).abs().max()), float(outputs.abs().max())
    dtype = next(network.module.parameters()).dtype
    allowed = _COARSE if dtype in (torch.float16, torch.bfloat16) else _ALLOWED
    if not error <= allowed * max(scale, 1e-6):
        raise InputError(
            f"got outputs of example {index[place]} that differ by {error:.1e} with and without padding, "
            f"expected a network that leaves it out of account, which {type(network.module).__name__} does "
            "not: use batch size 1"
        )
    return True


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)))
