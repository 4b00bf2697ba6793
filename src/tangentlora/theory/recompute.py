"""Every number of a certificate from arrays alone, written a second time in numpy; see docs/theory.md, "The certificate"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError

Array = NDArray[np.float64]
_KERNEL_LIMIT = 4096
_KERNEL_RANK = 1e-11


@dataclass(frozen=True)
class Layer:
    """Rows x (R,n) and g (R,K,m) of one layer, `counts[i]` of them for example i: J_ik = Σ g_k xᵀ."""

    x: Array
    g: Array
    counts: NDArray[np.int64]

    def sums(self, rows: Array) -> Array:
        """Return the sums of rows over each example along the first axis."""
        totals = np.zeros((len(self.counts), *rows.shape[1:]))
        np.add.at(totals, np.repeat(np.arange(len(self.counts)), self.counts), rows)
        return totals


def recompute(
    layers: dict[str, Layer],
    f0: Array,
    factors: dict[str, tuple[Array, Array]],
    labels: NDArray[Any],
    claimed: dict[str, Any],
) -> dict[str, Any]:
    """Return the fields of the certificate for these factors at the claimed λ, loss and tolerance.

    Raises InputError where the claimed λ, loss or tolerance cannot be used.
    """
    lam, tolerance = claimed.get("lam"), claimed.get("tolerance")
    if not isinstance(lam, float | int) or not isinstance(tolerance, float | int) or lam < 0 or tolerance < 0:
        raise InputError(
            f"got a certificate with λ = {lam} and tolerance {tolerance}, expected two numbers of at least 0: run fit again"
        )
    z = f0 + sum(
        _per_row(layer, (layer.g @ u) * (layer.x @ v)[:, None, :])
        for layer, (u, v) in ((layers[t], factors[t]) for t in layers)
    )
    n, k = z.shape
    values, gradient = _loss(str(claimed.get("loss")), z, labels)
    singular = {name: _singular_values(u, v) for name, (u, v) in factors.items()}
    penalty = lam * sum(float(s.sum()) for s in singular.values())
    squares = 0.5 * lam * sum(float((u**2).sum() + (v**2).sum()) for u, v in factors.values())
    a = gradient / n
    norms = {}
    for name, layer in layers.items():
        weights = np.repeat(a, layer.counts, axis=0)
        M = np.einsum("rk,rkm->rm", weights, layer.g).T @ layer.x
        norms[name] = float(np.linalg.norm(M, 2))
    largest = max(norms.values())
    scale = 1.0 if largest <= lam else lam / largest
    lower = float(
        scale * (a * f0).sum() - _conjugate(str(claimed.get("loss")), scale * gradient, labels).mean()
    )
    objective = float(values.mean()) + penalty
    gap, size = objective - lower, max(1.0, abs(objective))
    top = max((float(s[0]) for s in singular.values() if len(s)), default=0.0)
    return {
        "objective": objective,
        "lower_bound": lower,
        "gap": gap,
        "relative_gap": gap / size,
        "tolerance": float(tolerance),
        "certified": bool(gap + float(claimed.get("rounding", np.inf)) <= tolerance * size),
        "factored_objective": float(values.mean()) + squares,
        "factored_gap": float(values.mean()) + squares - lower,
        "dual_scale": float(scale),
        "spectral_norms": norms,
        "ranks": {name: int((s > 1e-7 * top).sum()) for name, s in singular.items()},
        "constraints": _constraints(layers, str(claimed.get("loss")), n, k),
        "n_examples": n,
        "n_outputs": k,
    }


def _per_row(layer: Layer, products: Array) -> Array:
    return layer.sums(products.sum(axis=2))


def _singular_values(u: Array, v: Array) -> Array:
    if u.shape[1] == 0:
        return np.zeros(0)
    return np.linalg.svd(np.linalg.qr(u, mode="r") @ np.linalg.qr(v, mode="r").T, compute_uv=False)


def _loss(name: str, z: Array, y: NDArray[Any]) -> tuple[Array, Array]:
    """Return ℓ(z_i, y_i), (N,), and its gradient, (N,K)."""
    if name == "cross_entropy":
        top = z.max(axis=1, keepdims=True)
        total = np.exp(z - top).sum(axis=1, keepdims=True)
        log_p = z - top - np.log(total)
        return -log_p[np.arange(len(z)), y], np.exp(log_p) - np.eye(z.shape[1])[y]
    if name == "logistic":
        margin = y * z[:, 0]
        return np.logaddexp(0.0, -margin), (-y / (1 + np.exp(margin)))[:, None]
    if name == "squared":
        return 0.5 * ((z - y) ** 2).sum(axis=1), z - y
    raise InputError(f"got the loss {name!r}, expected cross_entropy, logistic or squared: run fit again")


def _conjugate(name: str, a: Array, y: NDArray[Any]) -> Array:
    if name == "cross_entropy":
        return _entropy(a + np.eye(a.shape[1])[y]).sum(axis=1)
    if name == "logistic":
        q = -y * a[:, 0]
        return _entropy(np.stack([q, 1 - q])).sum(axis=0)
    return np.asarray(0.5 * (a**2).sum(axis=1) + (a * y).sum(axis=1))


def _entropy(q: Array) -> Array:
    """Return q log q with 0 at 0, +∞ where q is negative by more than rounding."""
    safe = np.clip(q, 0.0, None)
    return np.where(q < -1e-12, np.inf, safe * np.log(np.where(safe > 0, safe, 1.0)))


def _constraints(layers: dict[str, Layer], loss: str, n: int, k: int) -> int:
    """Return the rank of J Jᵀ, for cross-entropy with the mean over outputs taken off; N·K' where it is too large."""
    width = k - 1 if loss == "cross_entropy" else k
    if n * width > _KERNEL_LIMIT:
        return n * width
    kernel = np.zeros((n, k, n, k))
    for layer in layers.values():
        g = layer.g - layer.g.mean(axis=1, keepdims=True) if loss == "cross_entropy" else layer.g
        starts = np.concatenate([[0], np.cumsum(layer.counts)])
        for i in range(n):
            part = slice(starts[i], starts[i + 1])
            products = (
                np.einsum("rkm,slm->rskl", g[part], g, optimize=True)
                * (layer.x[part] @ layer.x.T)[:, :, None, None]
            )
            kernel[i] += layer.sums(products.sum(axis=0)).transpose(1, 0, 2)
    values = np.linalg.eigvalsh(kernel.reshape(n * k, n * k))
    return int((values > _KERNEL_RANK * values[-1]).sum())
