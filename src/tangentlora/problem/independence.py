"""How many outputs the data leave independent: the rank of the tangent kernel, whatever the scales.

Multiplying an output's row of J, or a layer's block of columns, by a number does not change its rank. So the
kernel is scaled to a unit diagonal before its eigenvalues are counted: an example whose gradients are a
million times smaller than another's counts as much. Derived; docs/theory.md, "Contrasts".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.tangent.jacobian import Jacobian, divided
from tangentlora.tangent.operator import Operator

RANK = 1e-11
"""Of the largest eigenvalue: a hundred times what rounding leaves of a zero one."""

ABSENT = 1e-13
"""A row of J that is smaller than this fraction of its example's largest is what rounding leaves of zero."""

CANCELLED = 1e-12
"""So is one of which ‖J_ik‖² is below this fraction of (Σ_ρ ‖g_ρk‖‖x_ρ‖)²."""

_APART = 1e3  # layers whose sizes differ by more are scaled to one size
_STEEPEST = 1e70  # the most that one is scaled by
_SAFE = 1e-70, 1e70  # numbers of which products of four stay in the range of float64


def independent_outputs(jacobian: Operator, kernel: Callable[[], Tensor] | None = None) -> int:
    """Return the numerical rank of Θ = J Jᵀ, that of its scaling to a unit diagonal.

    Outputs without gradients are left out. Where layers' gradients differ in size by more than 10³ each layer
    is first scaled to the size 1. `kernel` returns Θ where it is kept for other purposes too.
    """
    level = _levelled(jacobian)
    sizes = torch.stack([extent.sizes for extent in level.extents.values()])  # (T,N,K)
    weights = _weights(sizes, list(level.extents))
    shared = kernel is not None and weights is None and level is jacobian
    gram = kernel() if shared and kernel is not None else level.gram(weights)
    correlations = _correlations(gram, weighted_sizes(sizes, weights))
    if not len(correlations):
        return 0
    values = torch.linalg.eigvalsh(correlations)
    return int((values > RANK * values[-1]).sum())


def _weights(sizes: Float[Tensor, "T N K"], names: list[str]) -> dict[str, float] | None:
    """Return what brings the layers' gradients to one size; None where they are near it."""
    largest = sizes.amax(0)
    shares = sizes[:, largest > 0] / largest[largest > 0]
    weights = [min(_STEEPEST, 1 / float(share.square().mean().sqrt())) for share in shares if share.any()]
    if not weights or max(weights) <= _APART * min(weights):
        return None
    active = [name for name, share in zip(names, shares, strict=True) if share.any()]
    return dict.fromkeys(names, 1.0) | dict(zip(active, weights, strict=True))


def weighted_sizes(
    sizes: Float[Tensor, "T N K"], weights: Mapping[str, float] | None
) -> Float[Tensor, "N K"]:
    """Return Σ_t w_t S_t."""
    if weights is None:
        return sizes.sum(0)
    return torch.einsum("t,tnk->nk", sizes.new_tensor(list(weights.values())), sizes)


def _correlations(gram: Float[Tensor, "NK NK"], sizes: Float[Tensor, "N K"]) -> Float[Tensor, "h h"]:
    """Return the kernel with a unit diagonal, of the outputs that have gradients."""
    squares = gram.diagonal()
    present = sizes > ABSENT * sizes.amax(1, keepdim=True)
    kept = present.flatten() & (squares > CANCELLED * sizes.flatten().square())
    roots = squares[kept].sqrt()
    return gram[kept][:, kept] / roots / roots.unsqueeze(1)


def _levelled(jacobian: Operator) -> Operator:
    """Return J with every example scaled to the size 1 where products of its numbers might leave float64."""
    if not isinstance(jacobian, Jacobian):
        return jacobian  # what lies in a store was float32
    total = torch.stack([extent.sizes.amax(1) for extent in jacobian.extents.values()]).amax(0)
    safe = in_range(total[total > 0], jacobian)
    return jacobian if safe else divided(jacobian, torch.where(total > 0, total, 1.0))


def in_range(sizes: Float[Tensor, " s"], jacobian: Jacobian) -> bool:
    """Return whether products of four numbers of J's rows of these sizes are far from the ends of float64."""
    numbers = torch.cat([sizes, sizes.new_tensor([bound for bound in jacobian.largest if bound])])
    return bool(((numbers > _SAFE[0]) & (numbers < _SAFE[1])).all())
