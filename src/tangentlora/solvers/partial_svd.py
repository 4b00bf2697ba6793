"""Proximal steps of the nuclear norm on matrices known only by their products, kept as thin factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_SPARE = 6  # columns beyond the last rank: they see singular values that are about to cross the threshold
_SETTLED = 1e-6  # of the largest singular value: where a singular pair counts as found


def shrink_products(
    right: Callable[[Float[Tensor, "n b"]], Float[Tensor, "m b"]],
    left: Callable[[Float[Tensor, "m b"]], Float[Tensor, "n b"]],
    guess: Float[Tensor, "n b"],
    threshold: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"], Float[Tensor, "n g"]]:
    """Return U diag((σ − threshold)₊) Vᵀ as balanced factors, and a guess for the next call.

    `right` is V ↦ G V and `left` U ↦ Gᵀ U for a matrix G (m,n). Subspace iteration from `guess`, the
    right singular vectors of a matrix near G, and random columns, twice as many in each round: it ends
    when every pair above the threshold has settled and every other is below it by more than its error, in
    a round that began with some columns to spare, at the latest when all are held. A direction that no
    round sees can be missed; only a certificate says that none was.
    Source: Halko, Martinsson, Tropp 2011, algorithm 4.4.
    """
    n, extra, held = len(guess), _SPARE, guess.shape[1]
    image = right(torch.cat([guess, _random(n, extra, generator).to(guess)], dim=1))
    while True:
        basis = torch.linalg.qr(image).Q
        v, sigma, wt = torch.linalg.svd(left(basis), full_matrices=False)
        u = basis @ wt.T
        rank = int((sigma > threshold).sum())
        image = right(v)
        slack = _SETTLED * float(sigma[:1].sum())  # a layer without rows has no singular values
        error = (image - u * sigma).norm(dim=0)  # a singular value of G lies this near to each of sigma
        found = bool((error[:rank] <= slack).all())
        below = bool((sigma[rank:] + error[rank:] <= threshold + slack).all())
        everything = len(sigma) >= min(len(u), n)
        if everything or (rank + _SPARE <= held and found and below):
            root = (sigma[:rank] - threshold).sqrt()
            return u[:, :rank] * root, v[:, :rank] * root, v[:, : rank + _SPARE]
        held, extra = len(sigma), 2 * extra
        image = torch.cat([image, right(_random(n, extra, generator).to(guess))], dim=1)


def _random(n: int, columns: int, generator: torch.Generator) -> Float[Tensor, "n b"]:
    return torch.randn(n, columns, generator=generator, dtype=torch.float64)
