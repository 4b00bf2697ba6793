"""The part of a matrix outside the spaces that an update uses: its leading pair, and its values above one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tangentlora.problem.spectral import EPS, SMALL, leading_eigenpair


@dataclass(frozen=True, eq=False)
class Complement:
    """M⊥ = (I − AAᵀ)M(I − BBᵀ) of one matrix M (m,n), A (m,k) and B (n,k) orthonormal.

    `norm` is ‖M‖₂ and `outside` ‖M⊥‖₂, `gram` (p,p) the smaller of M⊥M⊥ᵀ and M⊥ᵀM⊥ with `vector` (p) its
    leading eigenvector. Squares lose half the digits: singular values of M⊥ below √(4pε)·‖M‖₂ may be
    rounding and count as 0.
    """

    M: Float[Tensor, "m n"]
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
        shifted.diagonal().sub_(max(threshold**2, _rounding(self.gram, self.norm)))
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
    gram = X @ X.T
    square, _ = _largest(gram)
    norm = math.sqrt(max(square, 0.0))
    image = X @ far
    gram.addmm_(image, image.T, alpha=-1)
    gram.addmm_(near, near.T @ gram, alpha=-1)
    gram.addmm_(gram @ near, near.T, alpha=-1)
    value, vector = _largest(gram)
    outside = math.sqrt(value) if value > _rounding(gram, norm) else 0.0
    return Complement(M, A, B, gram, vector, norm, outside)


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
