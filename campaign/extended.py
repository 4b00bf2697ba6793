"""Evaluate a linearised problem in extended precision, with numpy alone and no code of the package.

Everything is `numpy.longdouble`: on x86 64 bits of mantissa (ε = 1.1e-19) and exponents to 10^±4932, so that
neither the squares of 1e-300 nor those of 1e150 leave its range. `require_extended` refuses machines on which
longdouble is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.longdouble]
_SWEEPS = 60  # Jacobi needs about eight


@dataclass(frozen=True)
class Layer:
    """One layer's Jacobian: J_ik = Σ g_ρk x_ρᵀ over the rows ρ of example i."""

    x: NDArray[np.float64]  # (R,n)
    g: NDArray[np.float64]  # (R,K,m)
    counts: NDArray[np.int64]  # (N,), rows per example


@dataclass(frozen=True)
class Raw:
    """A problem as plain arrays: what the package is given, and what is evaluated here."""

    layers: dict[str, Layer]
    f0: NDArray[np.float64]  # (N,K)
    y: NDArray[Any]  # labels (N,), or targets (N,K) of the squared loss
    loss: str
    lam: float


@dataclass(frozen=True)
class Value:
    """P(δ), F(u,v), the largest scale s and every ‖M_t‖₂ at its dual point, and the dual value there."""

    objective: np.longdouble
    factored: np.longdouble
    norms: dict[str, np.longdouble]
    scale: np.longdouble
    dual: np.longdouble
    fenchel_young: np.longdouble  # the gap as a sum of non-negative terms

    @property
    def gap(self) -> np.longdouble:
        """P(δ) minus the dual value."""
        return self.objective - self.dual


def require_extended() -> None:
    """Raise SystemExit where longdouble is no wider than float64."""
    if np.finfo(np.longdouble).eps > 1e-18:
        raise SystemExit("got a machine whose longdouble is float64, expected extended precision: use x86")


def evaluate(
    raw: Raw, factors: dict[str, tuple[NDArray[Any], NDArray[Any]]], scale: float | None = None
) -> Value:
    """Return the values of the problem at u_t v_tᵀ; the dual value at s = min(scale, λ / max_t ‖M_t‖₂).

    `scale` is 1 where none is given.
    """
    lam, n = np.longdouble(raw.lam), np.longdouble(len(raw.f0))
    z, wide = raw.f0.astype(np.longdouble), {}
    for name, layer in raw.layers.items():
        u, v = (part.astype(np.longdouble) for part in factors[name])
        wide[name] = (layer.x.astype(np.longdouble), layer.g.astype(np.longdouble), owners(layer), u, v)
        x, g, owner, u, v = wide[name]
        np.add.at(z, owner, ((g @ u) * (x @ v)[:, None, :]).sum(2))
    value, gradient = _loss(raw, z)
    blocks = {}
    for name, (x, g, owner, _, _) in wide.items():
        weighted = ((gradient / n)[owner][:, :, None] * g).sum(1)
        blocks[name] = weighted.T @ x
    norms = {name: spectral_norm(block) for name, block in blocks.items()}
    largest, cap = max(norms.values()), np.longdouble(1.0 if scale is None else scale)
    s = cap if cap * largest <= lam else lam / largest
    nuclear = {name: product_singular_values(u, v).sum() for name, (*_, u, v) in wide.items()}
    squares = sum(((u * u).sum() + (v * v).sum()) / 2 for *_, u, v in wide.values())
    conjugate = _conjugate(raw, z, s)
    primal = value.sum() / n
    dual = s * (gradient * raw.f0).sum() / n - conjugate.sum() / n
    terms = (value + conjugate - s * (gradient * z).sum(1)).sum() / n
    aligned = sum(s * ((u.T @ blocks[name]) * v.T).sum() for name, (*_, u, v) in wide.items())
    penalty = lam * sum(nuclear.values())
    return Value(primal + penalty, primal + lam * squares, norms, s, dual, terms + penalty + aligned)


def owners(layer: Layer) -> NDArray[np.int64]:
    """Return the example of each row, (R,)."""
    return np.repeat(np.arange(len(layer.counts)), layer.counts)


def _loss(raw: Raw, z: Wide) -> tuple[Wide, Wide]:
    """Return ℓ (N,) and ∇ℓ (N,K)."""
    if raw.loss == "squared":
        rest = z - raw.y
        return (rest * rest).sum(1) / 2, rest
    if raw.loss == "logistic":
        y = raw.y.astype(np.longdouble)[:, None]
        return np.logaddexp(np.longdouble(0), -y * z)[:, 0], -y * _sigmoid(-y * z)
    p, wrong, value = _softmax(z, raw.y)
    gradient = p.copy()
    gradient[np.arange(len(z)), raw.y] = -wrong
    return value, gradient


def _conjugate(raw: Raw, z: Wide, s: np.longdouble) -> Wide:
    """Return ℓ*(s∇ℓ(z)) (N,), from z and not from the gradient: 1 − s(1 − p) loses nothing near 1."""
    if raw.loss == "squared":
        a = s * (z - raw.y)
        return (a * a).sum(1) / 2 + (a * raw.y).sum(1)
    if raw.loss == "logistic":
        q = s * _sigmoid(-raw.y.astype(np.longdouble)[:, None] * z)[:, 0]
        return _entropy(q) + _log1p_entropy(q)
    p, wrong, _ = _softmax(z, raw.y)
    q = s * p
    q[np.arange(len(z)), raw.y] = 0
    return _entropy(q).sum(1) + _log1p_entropy(s * wrong)


def _softmax(z: Wide, y: NDArray[Any]) -> tuple[Wide, Wide, Wide]:
    """Return softmax (N,K), 1 − p_y (N,) and −log p_y (N,), each without cancellation."""
    index = np.arange(len(z))
    power = np.exp(z - z.max(1, keepdims=True))
    total = power.sum(1)
    others = power.copy()
    others[index, y] = 0
    margins = z - z[index, y][:, None]
    margins[index, y] = -np.inf
    top = np.maximum(margins.max(1), 0)
    sums = np.exp(margins - top[:, None]).sum(1)
    value = np.where(top > 0, top + np.log(sums + np.exp(-top)), np.log1p(sums))
    return power / total[:, None], others.sum(1) / total, value


def _sigmoid(t: Wide) -> Wide:
    return np.where(t >= 0, 1 / (1 + np.exp(-np.abs(t))), np.exp(-np.abs(t)) / (1 + np.exp(-np.abs(t))))


def _entropy(q: Wide) -> Wide:
    """Return q log q, 0 at 0."""
    return np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0)


def _log1p_entropy(t: Wide) -> Wide:
    """Return (1 − t) log(1 − t), 0 at 1."""
    inside = np.where(t < 1, t, 0)
    return np.where(t < 1, (1 - inside) * np.log1p(-inside), 0)


def product_singular_values(u: Wide, v: Wide) -> Wide:
    """Return the singular values of u vᵀ."""
    _, r = _gram_schmidt(v)
    return singular_values(u @ r.T)


def spectral_norm(matrix: Wide) -> np.longdouble:
    """Return ‖A‖₂ from below: ‖Aᵀ(Av)‖/‖Av‖ at the leading vector v as float64 knows it.

    What v lacks enters squared, so the quotient is right to about ε of longdouble, near-equal values or not.
    """
    size = np.abs(matrix).max(initial=0)
    if not size:
        return np.longdouble(0)
    scaled = matrix / size
    _, _, right = np.linalg.svd(scaled.astype(np.float64), full_matrices=False)
    image = scaled @ right[0].astype(np.longdouble)
    back = image @ scaled
    return size * np.sqrt((back * back).sum() / (image * image).sum())


def singular_values(columns: Wide) -> Wide:
    """Return the singular values of a matrix of few columns, largest first, by one-sided Jacobi rotations."""
    size = np.abs(columns).max(initial=0)
    if not size:
        return np.zeros(columns.shape[1], np.longdouble)
    columns = columns / size
    for _ in range(_SWEEPS):
        if _sweep(columns) <= 4 * np.finfo(np.longdouble).eps * len(columns):
            return size * np.sort(np.sqrt((columns * columns).sum(0)))[::-1]
    raise ArithmeticError("Jacobi rotations did not converge")


def _sweep(columns: Wide) -> np.longdouble:
    """Rotate every pair of columns to be orthogonal, in place; return the largest cosine that was met."""
    q, worst = columns.shape[1], np.longdouble(0)
    players = list(range(q + q % 2))  # a round robin: disjoint pairs are turned together
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [(i, j) for i, j in zip(players[:half], players[half:][::-1], strict=True) if max(i, j) < q]
        if pairs:
            worst = max(worst, _rotate(columns, *np.array(pairs).T))
        players = [players[0], players[-1], *players[1:-1]]
    return worst


def _rotate(columns: Wide, i: NDArray[np.int64], j: NDArray[np.int64]) -> np.longdouble:
    one, two = columns[:, i], columns[:, j]
    alpha, beta, gamma = (one * one).sum(0), (two * two).sum(0), (one * two).sum(0)
    size = np.sqrt(alpha * beta)
    cosine = np.where(size > 0, np.abs(gamma) / np.where(size > 0, size, 1), 0)
    turned = gamma != 0
    zeta = (beta - alpha) / np.where(turned, 2 * gamma, 1)
    t = np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    t = np.where(turned, t, 0)
    c = 1 / np.sqrt(1 + t * t)
    columns[:, i], columns[:, j] = c * one - c * t * two, c * t * one + c * two
    return cosine.max()


def _gram_schmidt(matrix: Wide) -> tuple[Wide, Wide]:
    """Return Q (n,r), of orthonormal or zero columns, and R with matrix = QR."""
    n, r = matrix.shape
    basis, upper = np.zeros((n, r), np.longdouble), np.zeros((r, r), np.longdouble)
    for j in range(r):
        rest = matrix[:, j].copy()
        for _ in range(3):
            share = basis.T @ rest
            upper[:, j] += share
            rest = rest - basis @ share
        size = np.sqrt((rest * rest).sum())
        whole = np.sqrt((matrix[:, j] * matrix[:, j]).sum())
        if size > 64 * np.finfo(np.longdouble).eps * whole:
            upper[j, j], basis[:, j] = size, rest / size
    return basis, upper
