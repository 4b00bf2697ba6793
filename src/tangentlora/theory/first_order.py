"""First-order optimality on the real network: what the gradient M_t = ∇_{W_t} L(W + δ) says of an update δ.

With δ_t = A_t diag(σ) B_tᵀ its singular value decomposition and M⊥ = (I − AAᵀ)M(I − BBᵀ), δ is optimal for
L + λ Σ‖δ_t‖_* to first order exactly if M_t = −λ A_tB_tᵀ + M⊥_t and ‖M⊥_t‖₂ ≤ λ. The first is what training
at this rank brings about, the second asks for more rank. All is a function of M and δ alone: factors uR and
vR⁻ᵀ give the same numbers. Derived; docs/theory.md, "A real adapter: first-order measures".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.blocks import Blocks, Factors
from tangentlora.errors import InputError
from tangentlora.problem.spectral import product_svd
from tangentlora.tangent.rows import lengths
from tangentlora.theory.complement import complement
from tangentlora.theory.update_spectrum import UpdateSpectrum

USED = 1e-3
"""A column counts as used if its singular value is above this fraction of the largest of all layers."""

ABOVE = 0.05
"""A direction counts if its singular value exceeds λ by this fraction, as a run is never quite at rest."""


@dataclass(frozen=True, eq=False)
class Escape:
    """The leading new direction, unit a (m) and b (n): columns √τ(−a, b) lower F by rate·τ to first order."""

    a: Float[Tensor, " m"]
    b: Float[Tensor, " n"]
    rate: float


@dataclass(frozen=True, eq=False)
class LayerFirstOrder:
    """One layer's measures.

    `slope` is ‖∇F‖ and `steepest` (λ + ‖M‖₂)‖(u,v)‖, its largest value; `forces` is ‖(Mv, Mᵀu)‖ + λ‖(u,v)‖,
    the two forces that cancel at rest; all at the balanced factors of δ. `spectral_norm` is ‖M‖₂ and
    `outside` ‖M⊥‖₂; `directions` counts the singular values of M⊥ above λ(1 + tolerance). `imbalance` is
    ‖uᵀu − vᵀv‖_F relative to ‖uᵀu‖_F + ‖vᵀv‖_F for the factors as given, `rank` their width, `used` the
    columns that count, `spectrum` all of δ's singular values.
    """

    lam: float
    slope: float
    steepest: float
    forces: float
    spectral_norm: float
    outside: float
    directions: int
    escape: Escape | None
    imbalance: float
    rank: int
    used: int
    spectrum: UpdateSpectrum

    @property
    def gradient(self) -> float:
        """The relative gradient in [0, 1], as `Stationarity.gradient` has it."""
        return _share(self.slope, self.steepest)

    @property
    def force(self) -> float:
        """What is left of the two forces, in [0, 1], at least `gradient`; at λ = 0 nothing cancels."""
        return _share(self.slope, self.forces)

    @property
    def spectral_ratio(self) -> float | None:
        """‖M‖₂/λ, None for λ = 0."""
        return self.spectral_norm / self.lam if self.lam else None


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """The layers, and all of them as one point."""

    layers: dict[str, LayerFirstOrder]
    tolerance: float

    @property
    def gradient(self) -> float:
        """(Σ slope²)^½ / (Σ steepest²)^½."""
        return self._relative(lambda layer: layer.steepest)

    @property
    def force(self) -> float:
        """(Σ slope²)^½ / (Σ forces²)^½."""
        return self._relative(lambda layer: layer.forces)

    @property
    def directions(self) -> int:
        """The number of further directions along which F falls to first order, over all layers."""
        return sum(layer.directions for layer in self.layers.values())

    @property
    def penalised(self) -> bool:
        """Whether every layer has λ > 0."""
        return all(layer.lam > 0 for layer in self.layers.values())

    def _relative(self, scale: Callable[[LayerFirstOrder], float]) -> float:
        slope = math.hypot(*(layer.slope for layer in self.layers.values()))
        return _share(slope, math.hypot(*map(scale, self.layers.values())))


def first_order(
    gradients: Blocks, factors: Factors, lam: float | Mapping[str, float], *, tolerance: float = ABOVE
) -> FirstOrder:
    """Measure how far δ_t = u_t v_tᵀ is from first-order optimality of L + λ Σ‖δ_t‖_*, M_t = ∇_{W_t} L there.

    `lam` is λ, or one per layer. In float64 on the CPU, a layer at a time. Singular values of M⊥ come from
    Gram matrices: those below √(4 min(m,n) ε)‖M‖₂, 1.2e-6 of ‖M‖₂ at 1,536, may be rounding and count as 0.
    Raises InputError for gradients and factors of other layers or shapes, numbers that are not finite, and a
    λ that is negative or missing.
    """
    penalties = (
        {t: lam.get(t, math.nan) for t in gradients}
        if isinstance(lam, Mapping)
        else dict.fromkeys(gradients, lam)
    )
    _require(gradients, factors, penalties)
    svd = {t: _product_svd(*pair) for t, pair in factors.items()}
    largest = max((float(sigma.max()) for _, sigma, _ in svd.values() if len(sigma)), default=0.0)
    layers = {
        t: _layer(M, factors[t], svd[t], penalties[t], tolerance, USED * largest)
        for t, M in gradients.items()
    }
    return FirstOrder(layers, tolerance)


def escape_factors(factors: Factors, found: FirstOrder, tau: float) -> Factors:
    """Append columns √τ_t (−a_t, b_t) where a layer has an escape, τ_t = τ·rate_t / max_t rate_t.

    To first order F falls by Σ_t τ_t rate_t, so that one line search over τ moves all layers. Raises
    InputError for τ < 0.
    """
    if not (math.isfinite(tau) and tau >= 0):
        raise InputError(
            f"got the step τ = {tau}, expected a number of at least 0: search along positive steps"
        )
    escapes = {t: layer.escape for t, layer in found.layers.items() if layer.escape is not None}
    fastest = max((escape.rate for escape in escapes.values()), default=1.0)
    longer = dict(factors)
    for t, escape in escapes.items():
        u, v = factors[t]
        root = math.sqrt(tau * escape.rate / fastest)
        longer[t] = (
            torch.cat([u, -root * escape.a.to(u).unsqueeze(1)], dim=1),
            torch.cat([v, root * escape.b.to(v).unsqueeze(1)], dim=1),
        )
    return longer


def _layer(
    gradient: Float[Tensor, "m n"],
    pair: tuple[Tensor, Tensor],
    svd: tuple[Tensor, Tensor, Tensor],
    lam: float,
    tolerance: float,
    floor: float,
) -> LayerFirstOrder:
    M = gradient.to("cpu", torch.float64)
    left, sigma, right = svd
    u, v = left * sigma.sqrt(), right * sigma.sqrt()
    down, across, size = M @ v, M.T @ u, _norm(u, v)
    used = int((sigma > floor).sum())
    rest = complement(M, left[:, :used], right[:, :used])
    directions = rest.above(lam * (1 + tolerance))
    escape = None
    if directions:
        a, b = rest.leading()
        escape = Escape(a, b, float(a @ M @ b) - lam)
    return LayerFirstOrder(
        lam=lam,
        slope=_norm(down + lam * u, across + lam * v),
        steepest=(lam + rest.norm) * size,
        forces=_norm(down, across) + lam * size,
        spectral_norm=rest.norm,
        outside=rest.outside,
        directions=directions,
        escape=escape,
        imbalance=_imbalance(*pair),
        rank=pair[0].shape[1],
        used=used,
        spectrum=UpdateSpectrum(tuple(sigma.tolist())),
    )


def _product_svd(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return product_svd(u.to("cpu", torch.float64), v.to("cpu", torch.float64))


def _imbalance(u: Float[Tensor, "m r"], v: Float[Tensor, "n r"]) -> float:
    left, right = (w.to("cpu", torch.float64).T @ w.to("cpu", torch.float64) for w in (u, v))
    return _share(_norm(left - right), _norm(left) + _norm(right))


def _norm(*parts: Tensor) -> float:
    return math.hypot(*(float(lengths(part.flatten())) for part in parts))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _require(gradients: Blocks, factors: Factors, penalties: Mapping[str, float]) -> None:
    if unmatched := sorted(set(gradients) ^ set(factors)):
        raise InputError(
            f"got gradients and factors that do not match at {', '.join(unmatched)}, expected both for every "
            "layer: measure the gradients at the matrices that the update changes"
        )
    for t, M in gradients.items():
        u, v = factors[t]
        if u.shape != (len(M), u.shape[-1]) or v.shape != (M.shape[1], u.shape[-1]):
            raise InputError(
                f"got factors of shapes {tuple(u.shape)} and {tuple(v.shape)} for {t!r}, expected (m, r) and "
                f"(n, r) with (m, n) = {tuple(M.shape)}: give those of the update that was differentiated at"
            )
        if not all(bool(torch.isfinite(w).all()) for w in (M, u, v)):
            raise InputError(
                f"got a gradient or factors of {t!r} that are not finite, expected numbers: the run "
                "diverged, so lower the learning rate"
            )
        if not (math.isfinite(penalties[t]) and penalties[t] >= 0):
            raise InputError(
                f"got λ = {penalties[t]} for {t!r}, expected a number of at least 0: give --lam such as 0.01"
            )
