"""Proximal steps of the nuclear norm on matrices that are known only by their products, kept as thin factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_SPARE = 6  # columns beyond the last rank: they see singular values that are about to cross the threshold


def shrink_products(
    right: Callable[[Tensor], Tensor],
    left: Callable[[Tensor], Tensor],
    guess: Float[Tensor, "n b"],
    threshold: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"], Float[Tensor, "n b"]]:
    """Return the shrunken matrix U diag((σ − threshold)₊) Vᵀ as balanced factors, and a guess for the next call.

    `right` is V ↦ G V and `left` U ↦ Gᵀ U for a matrix G (m,n). Subspace iteration from `guess`, the right singular
    vectors of a matrix near G, finds the singular values above the threshold; the subspace grows until the smallest
    value it holds is below. It is exact in the limit of matrices that settle, as those of a converging run do; only
    a certificate says that nothing was missed. Source: Halko, Martinsson, Tropp 2011, algorithm 4.4.
    """
    while True:
        spare = torch.randn(len(guess), _SPARE, generator=generator, dtype=torch.float64).to(guess)
        basis = torch.linalg.qr(right(torch.cat([guess, spare], dim=1))).Q
        basis = torch.linalg.qr(right(torch.linalg.qr(left(basis)).Q)).Q
        projected = left(basis)
        v, sigma, wt = torch.linalg.svd(projected, full_matrices=False)
        keep = sigma > threshold
        rank = int(keep.sum())
        if rank < len(sigma) or len(sigma) >= min(basis.shape[0], len(guess)):
            root = (sigma[:rank] - threshold).sqrt()
            return basis @ (wt[:rank].T * root), v[:, :rank] * root, v[:, : rank + _SPARE]
        guess = v
