"""The leading singular pairs of a matrix whose right singular vectors are nearly known, as M_t's are.

At a stationary point Mv = −λu and Mᵀu = −λv: the columns of (u, v) are singular pairs of M_t at λ. So a
Krylov space that begins with v soon holds the pairs above λ too, at a fraction of a full decomposition.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_DEPTH, _SPARE = 4, 4
"""Powers of MᵀM in the Krylov space, and the random columns that it begins with beside v: they see a pair a
few thousandths above λ. What they miss is found where a full decomposition is asked for."""


def leading_pairs(
    M: Float[Tensor, "m n"], v: Float[Tensor, "n r"], floor: float, most: int, *, exact: bool = False
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"], Float[Tensor, "n k"]]:
    """Return the singular pairs (a, σ, b) of M with σ > floor, largest first and at most `most`.

    They are rough, each σ from below, unless `exact` or where a full decomposition costs no more.
    Source: Musco and Musco 2015, algorithm 2 (block Krylov).
    """
    basis = None if exact or 2 * _DEPTH * (v.shape[1] + _SPARE) > min(M.shape) else _krylov(M, v)
    image = M if basis is None else M @ basis
    left, sigma, right = torch.linalg.svd(image, full_matrices=False)
    k = min(int((sigma > floor).sum()), most)
    rows = right[:k].T
    return left[:, :k], sigma[:k], rows if basis is None else basis @ rows


def _krylov(M: Float[Tensor, "m n"], v: Float[Tensor, "n r"]) -> Float[Tensor, "n b"]:
    """Return an orthonormal basis of the span of (MᵀM)^j (v, random columns), j = 1 … depth."""
    generator = torch.Generator().manual_seed(0)
    spare = torch.randn(len(v), _SPARE, generator=generator, dtype=torch.float64).to(v)
    power, blocks = torch.cat([v, spare], 1), []
    for _ in range(_DEPTH):
        power = torch.linalg.qr(M.T @ (M @ power)).Q
        blocks.append(power)
    basis: Tensor = torch.linalg.qr(torch.cat(blocks, 1)).Q
    return basis
