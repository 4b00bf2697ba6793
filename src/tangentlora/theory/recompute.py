"""Every number of a certificate from arrays alone, written a second time in numpy.

The rows are read twice, a shard at a time: for the outputs, and with them for the gradients M_t.

Derived in docs/theory.md, "The certificate" and "Rounding".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentlora.errors import InputError
from tangentlora.theory.evidence import Answer, Array
from tangentlora.theory.kernel_rank import kernel_rank, seen, width_of
from tangentlora.theory.recomputed_ranks import recomputed_ranks
from tangentlora.theory.shards import Layer, Shard, Store

_EPS = float(np.finfo(np.float64).eps)
_NO_SCALE = 1e-290


@dataclass(frozen=True)
class Recomputation:
    """The fields of a certificate computed anew, and how far another right computation may be from each.

    `allowed` has a number for every field that is one, one per layer for `spectral_norms`; `between` the
    least and the most for counts, one pair per layer for `ranks`. All other fields are exact.
    """

    fields: dict[str, Any]
    allowed: dict[str, Any]
    between: dict[str, Any]


def recompute(
    tangent: Store, answer: Answer, loss: str, lam: float, tolerance: float, constraints: object = None
) -> dict[str, Any]:
    """Return the fields of the certificate of this answer at λ.

    `constraints` is the number on record: it is returned where rounding leaves a choice that it is among.
    Labels and factors have to fit. Raises InputError for an unknown loss.
    """
    found = recomputation(tangent, answer, loss, lam, tolerance)
    least, most = found.between["constraints"]
    whole = isinstance(constraints, int) and not isinstance(constraints, bool)
    if whole and least <= constraints <= most:  # type: ignore[operator]
        return found.fields | {"constraints": constraints}
    return found.fields


def recomputation(
    tangent: Store, answer: Answer, loss: str, lam: float, tolerance: float, earlier: bool = False
) -> Recomputation:
    """Return the fields of the certificate of this answer at λ, with what rounding may change in them.

    Labels and factors have to fit. `earlier`: as `constraints` and `ranks` also what earlier versions counted
    is right.
    Raises InputError for an unknown loss.
    """
    f0, labels = tangent.f0, answer.labels
    z, z_error = f0.copy(), np.abs(f0) * _EPS
    (n, k), width = f0.shape, width_of(loss, f0.shape[1])
    extents = {name: Extent(np.zeros((n, k)), np.zeros((n, width))) for name in tangent.shapes}
    for read in tangent.shards:
        _add_outputs(read(), answer, loss, z, extents)
    for name, (u, v) in answer.factors.items():
        terms = sum(u.shape) + len(v) + extents[name].longest + f0.shape[1] + len(answer.factors)
        columns = float((np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0)).sum())
        z_error += terms * _EPS * extents[name].sizes * columns
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
    forming = {name: _forming(M[name], extents, name, a) for name in tangent.shapes}
    norms = {name: _norm(M[name]) + forming[name] for name in tangent.shapes}
    largest = max(norms.values())
    scale = dual_scale(lam, largest)

    def dual_value(s: float) -> tuple[float, Array]:
        conjugate = _conjugate(loss, s * gradient, labels)
        return float(s * (a * f0).sum() - conjugate.mean()), conjugate

    lower, conjugate = dual_value(scale)
    gap, size = objective - lower, max(1.0, abs(objective))
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
    seen_sizes = {name: extent.seen for name, extent in extents.items()}
    count, *ends = kernel_rank(tangent, loss, seen_sizes)
    if earlier:
        others = kernel_rank(tangent, loss, seen_sizes, unscaled=True)
        ends = [min(ends[0], others[1]), max(ends[1], others[2])]
    ranks, between = recomputed_ranks(tangent, answer.factors, loss, z - f0, earlier)
    fields = {
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
        "ranks": ranks,
        "constraints": count,
        "n_examples": n,
        "n_outputs": k,
        "dtype": "float64",
    }
    # Another computation of the same: its z may differ by twice the error, its a by what that and the
    # evaluation of ∇ℓ make of it, and its norms are upper bounds of their own.
    moves = 2 * z_error if loss == "squared" else np.minimum(2 * z_error, 2.0)
    moves = moves / n + (k + 8) * _EPS * (np.abs(a) + (0.0 if loss == "squared" else 1.0 / n))
    bounds = {
        name: 2 * forming[name]
        + _guess_error(M[name]) * norms[name]
        + float((moves * extents[name].sizes).sum())
        for name in norms
    }
    steps = (largest + max(bounds.values())), max(largest - max(bounds.values()), 0.0)
    scales = [dual_scale(lam, norm) for norm in steps]
    bend = max(abs(dual_value(s)[0] - lower) for s in (*scales, max(2 * scale - scales[1], 0.0)))
    answered = float((moves * np.abs(f0 - z)).sum() * max(1.0, scale))
    primal = 2 * rounding
    dual = 2 * rounding + bend + answered + float((np.abs(moves) * moves).sum() * n)
    allowed = {
        "objective": primal,
        "factored_objective": primal,
        "lower_bound": dual,
        "gap": primal + dual,
        "relative_gap": (primal + dual) / size + abs(gap) / size**2 * primal + 4 * _EPS * abs(gap) / size,
        "factored_gap": primal + dual,
        "dual_scale": max(abs(s - scale) for s in scales) + 4 * _EPS * scale,
        "spectral_norms": bounds,
        "rounding": 1e-6 * rounding
        + 2 * float((moves * z_error).sum())
        + (n * k + k + 8) * _EPS * float((moves * np.abs(f0)).sum())
        + 64 * (n + k + 4) * _EPS * (bend + answered + float((moves * (np.abs(z) + 2 * b + n * moves)).sum()))
        + 64 * (n + k + 4) * _EPS * float(((b + 1) * z_error).sum() / n),
    }
    return Recomputation(fields, allowed, {"constraints": tuple(ends), "ranks": between})


def dual_scale(lam: float, largest: float) -> float:
    """Return s = min(1, λ / max_t ‖M_t‖₂); 0 where it would be rounded by more than an ε of itself."""
    scale = 1.0 if largest <= lam else lam / largest
    return scale if scale >= _NO_SCALE else 0.0


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
class Extent:
    """How large a layer's rows are, (N,K) in all, `seen` (N,K') of what the loss can tell apart."""

    sizes: Array
    seen: Array
    rows: int = 0
    longest: int = 0
    x: float = 1.0
    g: float = 1.0

    def take(self, index: NDArray[np.int64], layer: Layer, loss: str) -> None:
        """Add the rows of a shard."""
        self.sizes[index] = layer.sums(layer.sizes)
        reach = np.linalg.norm(layer.x, axis=1)[:, None]
        self.seen[index] = layer.sums(np.linalg.norm(seen(layer.g, loss), axis=2) * reach)
        self.rows += len(layer.x)
        self.longest = max(self.longest, int(layer.counts.max()))
        self.x = max(self.x, float(np.abs(layer.x).max(initial=0.0)))
        self.g = max(self.g, float(np.abs(layer.g).max(initial=0.0)))


def _add_outputs(shard: Shard, answer: Answer, loss: str, z: Array, extents: dict[str, Extent]) -> None:
    for name, layer in shard.layers.items():
        u, v = answer.factors[name]
        z[shard.index] += layer.sums(((layer.g @ u) * (layer.x @ v)[:, None, :]).sum(axis=2))
        extents[name].take(shard.index, layer, loss)


def _add_gradients(shard: Shard, a: Array, M: dict[str, Array]) -> None:
    for name, layer in shard.layers.items():
        weights = a[shard.index][layer.example]
        M[name] += np.einsum("rk,rkm->rm", weights, layer.g).T @ layer.x


def _norm(M: Array) -> float:
    """Return an upper bound on ‖M‖₂ of the computed M, scaled by its largest entry."""
    largest = float(np.abs(M).max(initial=0.0))
    if not largest:
        return 0.0
    return float(np.linalg.norm(M / largest, 2) * largest * (1 + 8 * (max(M.shape) + 2) * _EPS))


def _guess_error(M: Array) -> float:
    """Return how far above ‖M‖₂ a bound that is proved by a factorisation may be, relative to it."""
    q, p = min(M.shape), max(M.shape)
    return float(_EPS * (q * (p + q + 4) / 2 + 8 * (p + q) + 16))


def _forming(M: Array, extents: dict[str, Extent], name: str, a: Array) -> float:
    """Return what rounding may have taken from ‖M‖₂, M = Σ a_ik J_ik, as it was formed."""
    k, extent = a.shape[1], extents[name]
    forming = (extent.rows + 2 * k + 2) * float((np.abs(a) * extent.sizes).sum())
    inside = (k + 6) * float(extent.sizes.sum()) / len(a)
    x, g = (max(getattr(one, side) for one in extents.values()) for side in "xg")
    lost = 2.0**-1074 * (2 * k + 2) * extent.rows * np.sqrt(M.size) * x * g
    return float((forming + inside) * _EPS + lost)


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
