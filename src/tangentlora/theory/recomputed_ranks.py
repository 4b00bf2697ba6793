"""The ranks of a certificate from arrays alone: a small singular value counts where the outputs show it.

A component σ a bᵀ of δ_t counts as zero where σ is at most 1e-7 of the largest of all layers and its effect,
√(mean_i ‖J_i(σ a bᵀ)‖²), at most 1e-7 of that of δ, and 1e-7; or where σ is the rounding of its own layer's
largest. Only components in doubt cost another reading of the rows. Derived in docs/certificates.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tangentlora.theory.evidence import Array
from tangentlora.theory.shards import Layer, Store

_RANK = 1e-7
_NEAR = 1e-6  # how near an effect may be to its threshold to count either way
_EPS = float(np.finfo(np.float64).eps)

Columns = Mapping[str, tuple[Array, Array]]


def recomputed_ranks(
    tangent: Store, factors: Columns, loss: str, change: Array, earlier: bool = False
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """Return the rank of each u vᵀ, and the least and the most that rounding leaves possible.

    `change` (N,K) is what all of them together do to the outputs. `earlier`: as the least also the count by
    singular values alone is right.
    """
    parts = {name: _decomposed(u, v) for name, (u, v) in factors.items()}
    top = max((float(s.max()) for _, s, _ in parts.values() if len(s)), default=0.0)
    floor = _RANK * min(1.0, float(np.sqrt((_seen(change, loss) ** 2).sum(axis=1).mean())))
    asked = {t: _small(a, s, b, top) for t, (a, s, b) in parts.items()}
    asked = {t: columns for t, columns in asked.items() if columns[0].shape[1]}
    effects = _effects(tangent, asked, loss) if asked else {}
    ranks, between = {}, {}
    for name, (a, s, b) in parts.items():
        u, v = factors[name]
        error = 8 * u.shape[1] * (len(u) + len(v)) * _EPS * float(np.linalg.norm(u) * np.linalg.norm(v))
        error += 1e-9 * _RANK * top
        own = max(len(a), len(b)) * _EPS * float(s.max()) if len(s) else 0.0
        effect = np.full(len(s), np.inf)  # of those that are large enough without
        effect[_is_small(s, top)] = effects.get(name, np.zeros(0))

        def count(limit: float, least: float, shown: float, s: Array = s, effect: Array = effect) -> int:
            return int(((s > limit) | ((s > least) & (effect > shown))).sum())

        ranks[name] = count(_RANK * top, own, floor)
        fewest = count(_RANK * top + error, np.inf if earlier else own + error, floor * (1 + _NEAR))
        between[name] = fewest, count(_RANK * top - error, own - error, floor * (1 - _NEAR))
    return ranks, between


def _decomposed(u: Array, v: Array) -> tuple[Array, Array, Array]:
    """Return the singular value decomposition (a, σ, b) of u vᵀ."""
    qu, ru = np.linalg.qr(u)
    qv, rv = np.linalg.qr(v)
    left, sigma, right = np.linalg.svd(ru @ rv.T, full_matrices=False)
    return qu @ left, sigma.astype(np.float64), qv @ right.T


def _is_small(sigma: Array, top: float) -> NDArray[np.bool_]:
    small: NDArray[np.bool_] = sigma <= 2 * _RANK * top
    return small


def _small(a: Array, sigma: Array, b: Array, top: float) -> tuple[Array, Array]:
    """Return the factors of the components that do not count by their σ alone, or hardly."""
    small = _is_small(sigma, top)
    return a[:, small] * sigma[small], b[:, small]


def _effects(tangent: Store, columns: Columns, loss: str) -> dict[str, Array]:
    """Return √(mean_i ‖J_i(a_j b_jᵀ)‖²) of each column, with the rows read once."""
    squares = {name: np.zeros(a.shape[1]) for name, (a, _) in columns.items()}
    for read in tangent.shards:
        layers = read().layers
        for name, (a, b) in columns.items():
            squares[name] += (_moved(layers[name], a, b, loss) ** 2).sum(axis=(0, 1))
    return {name: np.sqrt(total / len(tangent.f0)) for name, total in squares.items()}


def _moved(layer: Layer, a: Array, b: Array, loss: str) -> Array:
    """Return what each column does to the outputs of a shard's examples, (B,K,r)."""
    return _seen(layer.sums((layer.g @ a) * (layer.x @ b)[:, None, :]), loss)


def _seen(outputs: Array, loss: str) -> Array:
    """Return what the loss can tell of outputs (B,K,…): cross-entropy ignores their mean."""
    return outputs - outputs.mean(axis=1, keepdims=True) if loss == "cross_entropy" else outputs
