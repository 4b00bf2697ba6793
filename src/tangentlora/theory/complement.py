"""The part of a matrix outside the spaces that an update uses: its leading pair, and its values above one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.problem.spectral import EPS, SMALL, exponent, leading_eigenpair, times_power


@dataclass(frozen=True, eq=False)
class Complement:
    """M⊥ = (I − AAᵀ)M(I − BBᵀ) of one matrix 2^power·M (m,n), A (m,k) and B (n,k) orthonormal.

    The largest entry of M is near 1, so that no square leaves the range of float64. `norm` is ‖M‖₂ and
    `outside` ‖M⊥‖₂, both times 2^power; `gram` (p,p) is the smaller of M⊥M⊥ᵀ and M⊥ᵀM⊥ with `vector` (p) its
    leading eigenvector. Squares lose half the digits: singular values of M⊥ below √(4pε)·‖M‖₂ may be
    rounding and count as 0.
    """

    M: Float[Tensor, "m n"]
    power: int
    A: Float[Tensor, "m k"]
    B: Float[Tensor, "n k"]
    gram: Float[Tensor, "p p"]
    vector: Float[Tensor, " p"]
    norm: float
    outside: float

    def above(self, threshold: float) -> int:
        """Return how many singular values of M⊥ are above a threshold ≥ 0, and above rounding.

        With τ the larger of threshold and rounding, M⊥M⊥ᵀ − τ²I = LDLᵀ has as many positive eigenvalues as D
        (Sylvester's law of inertia): one factorisation, and no eigenvalue of M⊥.
        """
        shifted = self.gram.clone()
        unit = _ldexp(threshold, -self.power)
        if unit > 2 * len(self.M) * self.M.shape[1]:
            return 0  # above the norm: no entry exceeds 1
        shifted.diagonal().sub_(max(unit**2, _rounding(self.gram, _ldexp(self.norm, -self.power))))
        factor, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
        # Blocks of D: single numbers, and pairs with negative pivots, which have one eigenvalue of each sign.
        single = pivots > 0
        return int((factor.diagonal() > 0)[single].sum()) + int((~single).sum()) // 2

    def leading(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
        """Return unit vectors a, b with Aᵀa = 0, Bᵀb = 0 and aᵀMb = ‖M⊥‖₂; raises ValueError where M⊥ = 0."""
        if not self.outside > 0:
            raise ValueError("M⊥ = 0 has no leading pair")
        flat = len(self.A) == len(self.vector)
        near, far = (self.A, self.B) if flat else (self.B, self.A)
        first = _unit(self.vector, near)
        second = _unit(self.M.T @ first if flat else self.M @ first, far)
        return (first, second) if flat else (second, first)


def complement(M: Float[Tensor, "m n"], A: Float[Tensor, "m k"], B: Float[Tensor, "n k"]) -> Complement:
    """Decompose M⊥M⊥ᵀ = (I − AAᵀ)(MMᵀ − MB(MB)ᵀ)(I − AAᵀ), or M⊥ᵀM⊥ where that is smaller, in float64.

    Both norms are Lanczos' estimates to rounding: as all such they are from below, and prove nothing.
    """
    flat = len(M) <= M.shape[1]
    X, near, far = (M, A, B) if flat else (M.T, B, A)
    power = exponent(X) or 0
    X = times_power(X, -power)
    gram = X @ X.T
    square, _ = _largest(gram)
    norm = math.sqrt(max(square, 0.0))
    image = X @ far
    gram.addmm_(image, image.T, alpha=-1)
    gram.addmm_(near, near.T @ gram, alpha=-1)
    gram.addmm_(gram @ near, near.T, alpha=-1)
    value, vector = _largest(gram)
    outside = math.sqrt(value) if value > _rounding(gram, norm) else 0.0
    scaled = X if flat else X.T
    return Complement(scaled, power, A, B, gram, vector, _ldexp(norm, power), _ldexp(outside, power))


def _ldexp(value: float, power: int) -> float:
    """Return value·2^power, infinite where that overflows."""
    try:
        return math.ldexp(value, power)
    except OverflowError:
        return math.inf


def _rounding(gram: Tensor, norm: float) -> float:
    """Return the eigenvalue of M⊥M⊥ᵀ up to which it may be rounding."""
    return 4 * len(gram) * EPS * norm**2


def _largest(gram: Float[Tensor, "p p"]) -> tuple[float, Float[Tensor, " p"]]:
    """Return the largest eigenvalue and its vector, by Lanczos where that is cheaper."""
    found = leading_eigenpair(gram) if len(gram) > SMALL else None
    if found is not None:
        return found
    values, vectors = torch.linalg.eigh(gram)
    return float(values[-1]), vectors[:, -1]


def _unit(vector: Tensor, space: Tensor) -> Tensor:
    """Return the vector without its part in the space, at length 1."""
    outside: Tensor = vector - space @ (space.T @ vector)
    return torch.nn.functional.normalize(outside, dim=0)
