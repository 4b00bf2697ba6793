"""Nuclear and spectral norms, shrinkage and rank, of matrices and of products u vᵀ that are never formed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

RANK_TOLERANCE = 1e-7
"""A singular value below this fraction of the largest of all layers counts as zero: half the digits."""


def product_svd(
    u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]
) -> tuple[Float[Tensor, "m q"], Float[Tensor, " q"], Float[Tensor, "n q"]]:
    """Return the thin SVD of u vᵀ as (U, σ, V) with uvᵀ = U diag(σ) Vᵀ, from QR factorisations of u and v."""
    qu, ru = torch.linalg.qr(u)
    qv, rv = torch.linalg.qr(v)
    left, sigma, right = torch.linalg.svd(ru @ rv.T, full_matrices=False)
    return qu @ left, sigma, qv @ right.T


def product_singular_values(u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]) -> Float[Tensor, " q"]:
    """Return the singular values of u vᵀ, largest first."""
    if u.shape[1] == 0:
        return u.new_zeros(0)
    core = torch.linalg.qr(u, mode="r").R @ torch.linalg.qr(v, mode="r").R.T
    sigma: Tensor = torch.linalg.svdvals(core)
    return sigma


def balance(
    u: Float[Tensor, "m r"], v: Float[Tensor, "n r"], floor: float = 0.0
) -> tuple[Float[Tensor, "m q"], Float[Tensor, "n q"]]:
    """Return (U√σ, V√σ) with the same product: uᵀu = vᵀv, so that ½(‖u‖² + ‖v‖²) = ‖uvᵀ‖_*.

    Directions with σ ≤ `floor` are dropped.
    """
    if u.shape[1] == 0:
        return u, v
    left, sigma, right = product_svd(u, v)
    keep = sigma > floor
    root = sigma[keep].sqrt()
    return left[:, keep] * root, right[:, keep] * root


def shrink(
    matrix: Float[Tensor, "m n"], threshold: float
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "n r"]]:
    """Return the proximal point of threshold·‖·‖_*, U diag((σ − threshold)₊) Vᵀ, as balanced factors."""
    left, sigma, right = torch.linalg.svd(matrix, full_matrices=False)
    keep = sigma > threshold
    root = (sigma[keep] - threshold).sqrt()
    return left[:, keep] * root, right[keep].T * root
