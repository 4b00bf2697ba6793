"""The number of independent outputs, written a second time in numpy: two shards of a store at a time.

Derived in docs/theory.md, "Contrasts".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tangentlora.theory.evidence import Array
from tangentlora.theory.shards import Layer, Shard, Store, contrasts

_EPS = float(np.finfo(np.float64).eps)
_LIMIT = 4096
_RANK, _ABSENT, _CANCELLED = 1e-11, 1e-13, 1e-12
_APART, _STEEPEST = 1e3, 1e70
_BORDER = 1e-2  # of the threshold: how far rounding moves an eigenvalue so small


def width_of(loss: str, k: int) -> int:
    """Return the number of outputs that the loss can tell apart."""
    return k - 1 if loss == "cross_entropy" else k


def seen(g: Array, loss: str) -> Array:
    """Return the rows (R,K',m) of what the loss can tell apart: for cross-entropy the contrasts."""
    return contrasts(g.shape[1]) @ g if loss == "cross_entropy" else g


def kernel_rank(
    tangent: Store, loss: str, sizes: Mapping[str, Array], unscaled: bool = False
) -> tuple[int, int, int]:
    """Return the rank of J Jᵀ, and the least and the most that rounding leaves possible.

    `sizes` (N,K') are Σ_ρ ‖g_ρk‖‖x_ρ‖ of each layer. The kernel is scaled to a unit diagonal, `unscaled` or
    not as earlier versions counted. Above 4,096 outputs it is N·K', which bounds the rank.
    """
    table = np.stack(list(sizes.values()))
    _, n, k = table.shape
    if n * k > _LIMIT:
        return (n * k,) * 3
    weights = dict.fromkeys(sizes, 1.0) if unscaled else _weights(sizes)
    kernel = np.zeros((n, n, k, k))
    for number, read in enumerate(tangent.shards):
        _add_products(read(), tangent.shards[number + 1 :], loss, weights, kernel)
    gram = kernel.transpose(0, 2, 1, 3).reshape(n * k, n * k)
    error = 0.0
    if not unscaled:
        total = np.einsum("t,tnk->nk", np.array(list(weights.values())), table)
        gram, cancelled = _correlations(gram, total)
        error = _terms(tangent, sizes) * _EPS * cancelled
    if not len(gram):
        return 0, 0, 0
    values = np.linalg.eigvalsh(gram)
    limit = _RANK * values[-1]
    least, most = (int((values > limit + sign * (_BORDER * limit + error)).sum()) for sign in (1, -1))
    return int((values > limit).sum()), least, most


def _terms(tangent: Store, sizes: Mapping[str, Array]) -> int:
    """Return how many roundings an inner product of two rows of J may add up."""
    return 8 + len(sizes) + max(sum(shape) for shape in tangent.shapes.values())


def _weights(sizes: Mapping[str, Array]) -> dict[str, float]:
    """Return what brings the layers' gradients to one size, 1 where they are near it."""
    largest = np.stack(list(sizes.values())).max(axis=0)
    there = largest > 0
    roots = {
        name: float(np.sqrt(np.mean((s[there] / largest[there]) ** 2)))
        for name, s in sizes.items()
        if s.any()
    }
    weights = {name: min(_STEEPEST, 1 / root) for name, root in roots.items()}
    if not weights or max(weights.values()) <= _APART * min(weights.values()):
        return dict.fromkeys(sizes, 1.0)
    return dict.fromkeys(sizes, 1.0) | weights


def _correlations(gram: Array, sizes: Array) -> tuple[Array, float]:
    """Return the kernel with a unit diagonal where outputs have gradients, and their Σ sizes² / squares."""
    squares, flat = np.diagonal(gram), sizes.ravel()
    present = (sizes > _ABSENT * sizes.max(axis=1, keepdims=True)).ravel()
    kept = present & (squares > _CANCELLED * flat**2)
    roots = np.sqrt(squares[kept])
    return gram[np.ix_(kept, kept)] / roots / roots[:, None], float((flat[kept] ** 2 / squares[kept]).sum())


def _add_products(
    left: Shard,
    others: Sequence[Callable[[], Shard]],
    loss: str,
    weights: Mapping[str, float],
    kernel: NDArray[np.float64],
) -> None:
    """Fill in the blocks of the kernel (N,N,K',K') of one shard with itself and with each of the others."""
    _add_block(left, left, loss, weights, kernel)
    for read in others:
        _add_block(left, read(), loss, weights, kernel)


def _add_block(
    left: Shard, right: Shard, loss: str, weights: Mapping[str, float], kernel: NDArray[np.float64]
) -> None:
    block = sum(
        (w**2 * _products(left.layers[name], right.layers[name], loss) for name, w in weights.items()),
        np.zeros(()),
    )
    kernel[np.ix_(left.index, right.index)] = block
    kernel[np.ix_(right.index, left.index)] = block.transpose(1, 0, 3, 2)


def _products(left: Layer, right: Layer, loss: str) -> Array:
    """Return ⟨J_ik, J_jl⟩ of one layer, (I,J,K',K'), for the examples i of one shard and j of another."""
    ours, theirs = (seen(layer.g, loss) for layer in (left, right))
    starts = np.concatenate([[0], np.cumsum(left.counts)])
    products = []
    for first, last in itertools.pairwise(starts):
        across = np.einsum("rkm,slm->rskl", ours[first:last], theirs, optimize=True)
        across *= (left.x[first:last] @ right.x.T)[:, :, None, None]
        products.append(right.sums(across.sum(axis=0)))
    return np.stack(products)
