"""Factors and the real network: whether they fit, and the network at W + δ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tangentlora.blocks import Factors
from tangentlora.errors import InputError
from tangentlora.models.network import Network
from tangentlora.models.targets import Target


@contextmanager
def updated(network: Network, targets: Sequence[Target], factors: Factors) -> Iterator[None]:
    """Inside the block the network's weights are W_t + δ_t, δ_t = u_t v_tᵀ (m,n); after it, W_t bit for bit.

    The sum is taken in float64 and rounded once to the weight's own dtype. The weights are put back also when
    the block raises. Raises `InputError` in the cases of `require_fit`, before any weight is touched.
    """
    require_fit(network.module, targets, factors)
    with torch.no_grad():
        weights = {target.name: target.weight(network.module) for target in targets}
        pretrained = {name: weight.clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                # On the CPU, since not every device knows float64.
                u, v = (factor.to("cpu", torch.float64) for factor in factors[name])
                weight.copy_(weight.to("cpu", torch.float64) + u @ v.T)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(pretrained[name])


def require_fit(module: nn.Module, targets: Sequence[Target], factors: Factors) -> None:
    """Require one pair u_t (m,r), v_t (n,r) for every target and no other, and every target in the network.

    Raises `InputError` when the names differ, a shape differs, or a target is not a weight of this network.
    """
    wanted, given = Counter(target.name for target in targets), Counter(list(factors))
    if unmatched := sorted((wanted - given) + (given - wanted)):
        raise InputError(
            f"got factors that do not match the targets at {', '.join(unmatched)}, expected one pair for "
            "every target and no other; use the targets that the factors were solved for."
        )
    for target in targets:
        try:
            found = str(tuple(target.weight(module).shape))
        except AttributeError:
            found = "none"
        if found != str(target.shape):
            raise InputError(
                f"got the target {target.name} of shape {target.shape}, expected a weight of this "
                f"network, which has {found} there; use the network that the target was found in."
            )
        (m, n), (u, v) = target.shape, factors[target.name]
        if u.shape != (m, u.shape[-1]) or v.shape != (n, u.shape[-1]):
            raise InputError(
                f"got factors of shapes {tuple(u.shape)} and {tuple(v.shape)} for {target.name}, expected "
                f"({m}, r) and ({n}, r); give u one row per output and v one row per input of the weight."
            )
