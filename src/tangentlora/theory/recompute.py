"""Every number of a certificate from arrays alone, written a second time in numpy.

The rows are read twice, a shard at a time: for the outputs, and with them for the gradients M_t. The rank of
the kernel, where it is asked for, takes two shards at a time.

Derived in docs/theory.md, "The certificate" and "Rounding".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError
from tangentlora.theory.evidence import Answer, Array
from tangentlora.theory.shards import Layer, Shard, Store

_EPS = float(np.finfo(np.float64).eps)
_RANK = 1e-7
_KERNEL_LIMIT = 4096
_KERNEL_RANK = 1e-11
_KERNEL_ROUNDING = 1e-2  # of that threshold: how far rounding moves an eigenvalue so small


def recompute(
    tangent: Store, answer: Answer, loss: str, lam: float, tolerance: float, constraints: object = None
) -> dict[str, Any]:
    """Return the fields of the certificate of this answer at λ.

    `constraints` is the number on record: it is returned where rounding leaves a choice that it is among.
    Labels and factors have to fit. Raises InputError for an unknown loss.
    """
    f0, labels = tangent.f0, answer.labels
    z, z_error = f0.copy(), np.abs(f0) * _EPS
    extents = {name: _Extent(np.zeros_like(f0)) for name in tangent.shapes}
    for read in tangent.shards:
        _add_outputs(read(), answer, z, extents)
    for name, (u, v) in answer.factors.items():
        terms = sum(u.shape) + len(v) + extents[name].longest + f0.shape[1] + len(answer.factors)
        columns = float((np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0)).sum())
        z_error += terms * _EPS * extents[name].sizes * columns
    n, k = z.shape
    values, gradient = _loss(loss, z, labels)
    singular = {name: _singular_values(u, v) for name, (u, v) in answer.factors.items()}
    data_fit = float(values.mean())
    squares = {name: 0.5 * float((u**2).sum() + (v**2).sum()) for name, (u, v) in answer.factors.items()}
    objective = data_fit + lam * sum(float(s.sum()) for s in singular.values())
    factored = data_fit + lam * sum(squares.values())
    a = gradient / n
    M = {name: np.zeros(shape) for name, shape in tangent.shapes.items()}
    for read in tangent.shards:
        _add_gradients(read(), a, M)
    norms = {name: _norm_bound(M[name], extents[name], a) for name in tangent.shapes}
    largest = max(norms.values())
    scale = 1.0 if largest <= lam else lam / largest
    conjugate = _conjugate(loss, scale * gradient, labels)
    lower = float(scale * (a * f0).sum() - conjugate.mean())
    gap, size = objective - lower, max(1.0, abs(objective))
    top = max((float(s[0]) for s in singular.values() if len(s)), default=0.0)
    magnitude = float(1 + np.abs(values).mean() + np.abs(z).max())
    penalty = sum(
        8 * u.shape[1] * (len(u) + len(v)) * _EPS * squares[name] for name, (u, v) in answer.factors.items()
    )
    moved = float(np.abs(a * f0).sum() + np.abs(f0).max(axis=1).mean())
    b = np.abs(gradient)
    cancelling = float(1 + np.abs(conjugate).mean() + (b * (np.abs(z) + b)).sum(axis=1).mean())
    rounding = (
        float((np.abs(a) * z_error).sum() + 0.5 * (z_error**2).sum() / n)
        + 8 * (n + k) * _EPS * magnitude
        + lam * penalty
        + (n * k + k + 8) * _EPS * moved
        + 64 * (n + k + 4) * _EPS * cancelling
    )
    return {
        "objective": objective,
        "lower_bound": lower,
        "gap": gap,
        "relative_gap": gap / size,
        "rounding": rounding,
        "tolerance": tolerance,
        "certified": bool(np.isfinite(gap) and gap + rounding <= tolerance * size),
        "factored_objective": factored,
        "factored_gap": factored - lower,
        "loss": loss,
        "lam": lam,
        "dual_scale": float(scale),
        "spectral_norms": norms,
        "ranks": {name: int((s > _RANK * top).sum()) for name, s in singular.items()},
        "constraints": _constraints(tangent, loss, n, k, constraints),
        "n_examples": n,
        "n_outputs": k,
        "dtype": "float64",
    }


def labels_fit(loss: str, labels: NDArray[Any], n: int, k: int) -> bool:
    """Return whether these are labels of the loss for outputs (n,k)."""
    if loss == "cross_entropy":
        whole = labels.dtype.kind in "iu" and labels.shape == (n,)
        return bool(whole and ((labels >= 0) & (labels < k)).all())
    if loss == "logistic":
        return bool(labels.shape == (n,) and k == 1 and (np.abs(labels) == 1).all())
    return bool(labels.shape == (n, k) and np.isfinite(labels).all())


def _singular_values(u: Array, v: Array) -> Array:
    if u.shape[1] == 0:
        return np.zeros(0)
    product: Array = np.linalg.qr(u)[1] @ np.linalg.qr(v)[1].T
    return np.linalg.svd(product, compute_uv=False).astype(np.float64)


@dataclass
class _Extent:
    """How large a layer's rows are, (N,K) in all: what has been read of them so far."""

    sizes: Array
    rows: int = 0
    longest: int = 0

    def take(self, index: NDArray[np.int64], layer: Layer) -> None:
        self.sizes[index] = layer.sums(layer.sizes)
        self.rows += len(layer.x)
        self.longest = max(self.longest, int(layer.counts.max()))


def _add_outputs(shard: Shard, answer: Answer, z: Array, extents: dict[str, _Extent]) -> None:
    for name, layer in shard.layers.items():
        u, v = answer.factors[name]
        z[shard.index] += layer.sums(((layer.g @ u) * (layer.x @ v)[:, None, :]).sum(axis=2))
        extents[name].take(shard.index, layer)


def _add_gradients(shard: Shard, a: Array, M: dict[str, Array]) -> None:
    for name, layer in shard.layers.items():
        weights = a[shard.index][layer.example]
        M[name] += np.einsum("rk,rkm->rm", weights, layer.g).T @ layer.x


def _norm_bound(M: Array, extent: _Extent, a: Array) -> float:
    """Return ‖M‖₂, M = Σ a_ik J_ik, and what rounding may have taken from it."""
    k = a.shape[1]
    forming = (extent.rows + 2 * k + 2) * float((np.abs(a) * extent.sizes).sum())
    inside = (k + 6) * float(extent.sizes.sum()) / len(a)
    return float(np.linalg.norm(M, 2) * (1 + 8 * (max(M.shape) + 1) * _EPS) + (forming + inside) * _EPS)


def _loss(name: str, z: Array, y: NDArray[Any]) -> tuple[Array, Array]:
    """Return ℓ(z_i, y_i), (N,), and its gradient, (N,K)."""
    if name == "cross_entropy":
        top = z.max(axis=1, keepdims=True)
        total = np.exp(z - top).sum(axis=1, keepdims=True)
        log_p = z - top - np.log(total)
        return -log_p[np.arange(len(z)), y], np.exp(log_p) - np.eye(z.shape[1])[y]
    if name == "logistic":
        margin = y * z[:, 0]
        return np.logaddexp(0.0, -margin), (-y * np.exp(-np.logaddexp(0.0, margin)))[:, None]
    if name == "squared":
        return 0.5 * ((z - y) ** 2).sum(axis=1), z - y
    raise InputError(f"got the loss {name!r}, expected cross_entropy, logistic or squared: run fit again")


def _conjugate(name: str, a: Array, y: NDArray[Any]) -> Array:
    """Return ℓ*(a_i, y_i), (N,)."""
    values: Array
    if name == "cross_entropy":
        values = _entropy(a + np.eye(a.shape[1])[y]).sum(axis=1)
    elif name == "logistic":
        q = -y * a[:, 0]
        values = _entropy(np.stack([q, 1 - q])).sum(axis=0)
    else:
        values = 0.5 * (a**2).sum(axis=1) + (a * y).sum(axis=1)
    return values


def _entropy(q: Array) -> Array:
    """Return q log q with 0 at 0, +∞ where q is negative by more than rounding."""
    safe = np.clip(q, 0.0, None)
    return np.where(q < -1e-12, np.inf, safe * np.log(np.where(safe > 0, safe, 1.0)))


def _constraints(tangent: Store, loss: str, n: int, k: int, claimed: object) -> int:
    """Return the rank of J Jᵀ, for cross-entropy less the mean over outputs; N·K' where it is too large."""
    width = k - 1 if loss == "cross_entropy" else k
    if n * width > _KERNEL_LIMIT:
        return n * width
    kernel = np.zeros((n, n, k, k))
    for number, read in enumerate(tangent.shards):
        _add_products(read(), tangent.shards[number + 1 :], loss, kernel)
    values = np.linalg.eigvalsh(kernel.transpose(0, 2, 1, 3).reshape(n * k, n * k))
    limit = _KERNEL_RANK * values[-1]
    least, most = (int((values > limit * (1 + sign * _KERNEL_ROUNDING)).sum()) for sign in (1, -1))
    if isinstance(claimed, int) and not isinstance(claimed, bool) and least <= claimed <= most:
        return claimed
    return int((values > limit).sum())


def _add_products(
    left: Shard, others: Sequence[Callable[[], Shard]], loss: str, kernel: NDArray[np.float64]
) -> None:
    """Fill in the blocks of the kernel (N,N,K,K) of one shard with itself and with each of the others."""
    _add_block(left, left, loss, kernel)
    for read in others:
        _add_block(left, read(), loss, kernel)


def _add_block(left: Shard, right: Shard, loss: str, kernel: NDArray[np.float64]) -> None:
    block = sum(
        (_products(left.layers[name], right.layers[name], loss) for name in left.layers), np.zeros(())
    )
    kernel[np.ix_(left.index, right.index)] = block
    kernel[np.ix_(right.index, left.index)] = block.transpose(1, 0, 3, 2)


def _products(left: Layer, right: Layer, loss: str) -> Array:
    """Return ⟨J_ik, J_jl⟩ of one layer, (I,J,K,K), for the examples i of one shard and j of another."""
    ours, theirs = (_contrasted(layer.g, loss) for layer in (left, right))
    starts = np.concatenate([[0], np.cumsum(left.counts)])
    products = []
    for first, last in itertools.pairwise(starts):
        across = np.einsum("rkm,slm->rskl", ours[first:last], theirs, optimize=True)
        across *= (left.x[first:last] @ right.x.T)[:, :, None, None]
        products.append(right.sums(across.sum(axis=0)))
    return np.stack(products)


def _contrasted(g: Array, loss: str) -> Array:
    return g - g.mean(axis=1, keepdims=True) if loss == "cross_entropy" else g
