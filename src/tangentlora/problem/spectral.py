"""Nuclear and spectral norms, shrinkage and rank, of matrices and of products u vᵀ that are never formed."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

EPS = float(torch.finfo(torch.float64).eps)

RANK_TOLERANCE = 1e-7
"""A singular value below this fraction of the largest of all layers counts as zero: half the digits."""

_NORMAL = float(torch.finfo(torch.float64).tiny)
_MOST = 1024  # the exponent from which numbers are infinite

SMALL = 64  # the smaller side up to which all singular values cost less than the proof of one


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


def norm_bound(matrix: Float[Tensor, "m n"]) -> float:
    """Return an upper bound on ‖M‖₂ in float64: proved, and above it by some hundred roundoffs at most.

    M is first scaled by the power of two that brings its largest entry to between ½ and 1: that is exact, and
    no square leaves the range of float64. The bound of a matrix with an entry that is no number is infinite.
    With G = MMᵀ (q,q), the smaller of the two Gram matrices, and τ a little above Lanczos' estimate of σ₁, a
    factorisation τ²I − G = RRᵀ that succeeds in floating point proves that, with p the longer side,

        ‖M‖₂² ≤ τ² + (p + 2)ε‖M‖_F² + (q + 2)ε‖R‖₁‖R‖_∞ + 4ετ².

    The estimate itself is from below and proves nothing. Where the factorisation fails, and for small
    matrices, σ₁ comes from all singular values, times 1 + 8(p + 1)ε.
    Derived; docs/theory.md, "Rounding".
    """
    power = exponent(matrix)
    if power is None:
        return math.inf
    bound = _unit_norm_bound(times_power(matrix, -power))
    whole = math.ldexp(bound, power) if power + math.frexp(bound)[1] <= _MOST else math.inf
    return whole if whole == 0 or whole >= _NORMAL else math.nextafter(whole, math.inf)


def exponent(matrix: Float[Tensor, "*s"]) -> int | None:
    """Return the e with 2^(e−1) ≤ max |entry| < 2^e, 0 for zeros or nothing, None where one is no number."""
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    return math.frexp(largest)[1] if math.isfinite(largest) else None


def times_power(matrix: Float[Tensor, "*s"], power: int) -> Float[Tensor, "*s"]:
    """Return M·2^power: exact but for entries that end below the range of normal numbers."""
    half = power // 2  # 2^1074 is no float64, and its root is one
    return matrix if power == 0 else matrix * 2.0**half * 2.0 ** (power - half)


def _unit_norm_bound(matrix: Float[Tensor, "m n"]) -> float:
    """Return the bound for a matrix whose largest entry is near 1."""
    thin = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    q, p = thin.shape
    if q > SMALL:
        gram = thin @ thin.T
        found = leading_eigenpair(gram)
        square = (math.nan if found is None else found[0]) * (1 + 8 * q * EPS)
        slack = -gram
        slack.diagonal().add_(square)
        R, failed = torch.linalg.cholesky_ex(slack)
        sums = R.tril().abs()
        grown = float(sums.sum(0).max() * sums.sum(1).max())
        total = square * (1 + 4 * EPS) + EPS * ((p + 2) * float(thin.square().sum()) + (q + 2) * grown)
        if not failed and math.isfinite(total):
            return math.sqrt(total) * (1 + 4 * EPS)
    # a layer without rows has an empty M in span coordinates
    return float(torch.linalg.svdvals(thin)[:1].sum()) * (1 + 8 * (p + 1) * EPS)


def leading_eigenpair(gram: Float[Tensor, "q q"]) -> tuple[float, Float[Tensor, " q"]] | None:
    """Return the largest eigenvalue and its vector as Lanczos estimates them, from below and a fixed start.

    None where there are none: for a matrix of zeros, or where many eigenvalues are nearly the largest, as at
    an optimum, and Lanczos has not settled by the time that all of them would take.
    """
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    start = np.random.default_rng(0).standard_normal(len(gram))

    def times(x: NDArray[np.float64]) -> NDArray[np.float64]:
        image: NDArray[np.float64] = (gram @ torch.from_numpy(x.reshape(-1)).to(gram)).cpu().numpy()
        return image

    operator = LinearOperator(gram.shape, times, dtype=np.float64)
    patience = max(20, len(gram) // 48)  # restarts, of twenty products each
    try:
        values, vectors = eigsh(operator, 1, which="LA", v0=start, maxiter=patience)
    except ArpackError:
        return None
    return float(values[0]), torch.from_numpy(vectors[:, 0]).to(gram)
