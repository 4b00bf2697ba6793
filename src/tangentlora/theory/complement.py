"""The part of a matrix outside the spaces that an update uses: its singular values and its leading pair."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

_EPS = float(torch.finfo(torch.float64).eps)


@dataclass(frozen=True, eq=False)
class Complement:
    """M⊥ = (I − AAᵀ)M(I − BBᵀ) of one matrix M (m,n), A (m,k) and B (n,k) orthonormal.

    `norm` is ‖M‖₂ and `values` are all singular values of M⊥, largest first, both from Gram matrices in
    float64: each is known to about √(min(m,n)·ε)·‖M‖₂, and what rounding may have made counts as 0.
    """

    M: Float[Tensor, "m n"]
    A: Float[Tensor, "m k"]
    B: Float[Tensor, "n k"]
    gram: Float[Tensor, "p p"]
    norm: float
    values: Float[Tensor, " p"]

    def leading(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " n"]]:
        """Return unit vectors a, b with Aᵀa = 0, Bᵀb = 0 and aᵀMb = ‖M⊥‖₂; raises ValueError where M⊥ = 0."""
        if not self.values[0] > 0:
            raise ValueError("M⊥ = 0 has no leading pair")
        vector = torch.from_numpy(
            scipy.linalg.eigh(self.gram.numpy(), subset_by_index=[_last(self.gram)] * 2)[1]
        )
        flat = len(self.A) == len(vector)
        near, far = (self.A, self.B) if flat else (self.B, self.A)
        first = _unit(vector[:, 0], near)
        second = _unit(self.M.T @ first if flat else self.M @ first, far)
        return (first, second) if flat else (second, first)


def complement(M: Float[Tensor, "m n"], A: Float[Tensor, "m k"], B: Float[Tensor, "n k"]) -> Complement:
    """Decompose M⊥M⊥ᵀ = (I − AAᵀ)(MMᵀ − MB(MB)ᵀ)(I − AAᵀ), or M⊥ᵀM⊥ where that is smaller, in float64.

    At most two symmetric reductions to tridiagonal form, several times cheaper than singular values of M.
    """
    flat = len(M) <= M.shape[1]
    X, near, far = (M, A, B) if flat else (M.T, B, A)
    gram = X @ X.T
    top = float(scipy.linalg.eigh(gram.numpy(), eigvals_only=True, subset_by_index=[_last(gram)] * 2)[0])
    image = X @ far
    gram = gram - image @ image.T
    gram = gram - near @ (near.T @ gram)
    gram = gram - (gram @ near) @ near.T
    squares = torch.from_numpy(scipy.linalg.eigh(gram.numpy(), eigvals_only=True, driver="evr")).flip(0)
    squares = squares.where(squares > 4 * len(gram) * _EPS * top, 0.0)
    return Complement(M, A, B, gram, math.sqrt(max(top, 0.0)), squares.sqrt())


def _last(gram: Tensor) -> int:
    return len(gram) - 1


def _unit(vector: Tensor, space: Tensor) -> Tensor:
    """Return the vector without its part in the space, at length 1."""
    outside: Tensor = vector - space @ (space.T @ vector)
    return torch.nn.functional.normalize(outside, dim=0)
